"""English words that the rule-based reading of statements goes by. Data alone."""

from __future__ import annotations

FUNCTION_WORDS = frozenset(
    """a an the this that these those of in on at by for from to into onto with within over under about as
    than and or but so while whereas both either neither nor if unless then when where which who whom
    whose what is are was were be been being am has have had do does did will would can could may might
    shall should must it its they them their he him his she her we us our you your i me my there here
    not no also too very just each per s t""".split()
)

# without content of their own: dropped before words are compared
STOPWORDS = FUNCTION_WORDS - {"over", "under", "than", "from", "to", "per"} | {"by", "now"}

AUXILIARIES = frozenset(
    """is are was were be been has have had do does did can could will would may might must shall should
    isn't aren't wasn't weren't hasn't haven't hadn't doesn't don't didn't can't cannot couldn't won't
    wouldn't mustn't""".split()
)
COPULAS = frozenset("is are was were be been isn't aren't wasn't weren't equals equal".split())

VERBS = AUXILIARIES | frozenset(
    """rises rose grows grew falls fell drops climbs shrinks shrank increases decreases declines improves
    equals contains holds includes covers takes took gives gave gets got makes made says said shows showed
    returns raises throws calls accepts reads wrote writes runs ran uses sends sent saves stores loads
    passes fails works crashes compiles builds built deploys fixes breaks broke adds removes needs requires
    reaches scores beats wins won loses lost leads led lies stands sits lives lived became becomes begins
    began starts ends ended ships supports causes caused cost costs sells sold buys bought eats ate met
    pays pay charges
    found finds keeps kept left leaves came comes went goes knows knew means meant weighs measures lasts
    know think believe use need run take return contain include show have equal pass fail work say reach
    exceeds exceed remains remain orbits flows borders boils freezes matches match outperforms
    outperform""".split()
)

# verbs behind a plural alone, nouns elsewhere: "costs rise", but "the rise of costs"
PLURAL_VERBS = frozenset(
    """rise grow fall drop increase decrease decline shrink improve climb score cost fix break build start end
    cause support ship read write call save load add remove lead lie stand live win lose beat make give
    hold cover store match""".split()
)

NEGATIONS = frozenset(
    """not no never none nobody nothing neither nor without cannot lacks lack
    isn't aren't wasn't weren't hasn't haven't hadn't doesn't don't didn't can't couldn't won't
    wouldn't""".split()
)

HEDGES = frozenset(
    """might could perhaps maybe possibly probably likely presumably supposedly reportedly allegedly arguably
    potentially conceivably seems seem seemed appears appear appeared suspect guess believe think suppose
    or either if unless would should""".split()
)  # `may` is one too, unless it is the month

# evidence that says one of these says less than the same sentence without it
RESTRICTIONS = frozenset(
    """only some few most several part partly partially almost nearly half mostly sometimes rarely
    occasionally hardly barely seldom usually often except excluding""".split()
)

# a pair speaks of one thing in two directions: (more, less)
OPPOSITES = (
    (
        "rise grow increase climb gain up higher rose grew upward",
        "fall drop decrease decline shrink down lower fell shrank downward",
    ),
    ("more larger bigger greater above over", "less smaller fewer below under"),
    ("pass succeed success successful", "fail failure unsuccessful"),
    ("true correct right valid", "false incorrect wrong invalid"),
    ("faster quicker", "slower"),
    ("better best improve", "worse worst worsen"),
    ("enable on", "disable off"),
    ("open", "close"),
    ("before earlier", "after later"),
    ("win won", "lose lost"),
    ("possible", "impossible"),
    ("safe", "unsafe"),
    ("first", "last"),
    ("always", "never"),
    ("hot warmer hotter", "cold colder"),
    ("add", "remove"),
    ("start begin began", "end stop"),
)  # fmt: skip

IRREGULAR = {
    "won": "win", "lost": "lose", "ran": "run", "took": "take", "gave": "give", "got": "get", "made": "make",
    "said": "say", "wrote": "write", "built": "build", "broke": "break", "sent": "send", "found": "find",
    "kept": "keep", "left": "leave", "came": "come", "went": "go", "knew": "know", "meant": "mean",
    "ate": "eat", "sold": "sell", "bought": "buy", "became": "become", "began": "begin", "led": "lead",
    "held": "hold", "people": "person", "children": "child", "men": "man", "women": "woman",
}  # fmt: skip

NUMBER_WORDS = {
    word: value
    for value, word in enumerate("zero . two three four five six seven eight nine ten eleven twelve".split())
    if word != "."
}  # not "one", which is mostly a pronoun
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
UNITS = {"%": "%", "dollar": "$", "dollars": "$", "euro": "€", "euros": "€"}
