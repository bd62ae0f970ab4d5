"""Answers of the task `tools` from the prompt alone: what is declared, what is asked for, what came back."""

import json
import re

# names, what asks for it, and what its answer says; a group of the pattern is a parameter, spelled below
TOOLS = (
    (
        "find_hotel search_hotel",
        r"(?:find a hotel|where can i sleep) in (?P<city>\w+)(?: with (?P<stars>\d) stars)?"
        r"(?: (?P<breakfast>with|without) breakfast)?",
        "the hotel {hotel} in {city} costs {price}",
    ),
    (
        "book_hotel reserve_hotel",
        r"(?:book a hotel|i need a bed) in (?P<city>\w+) for (?P<nights>\d) nights"
        r"(?: for (?P<guests>\d) guests)?",
        "your hotel in {city} has code {code} and costs {total}",
    ),
    (
        "find_flight search_flight",
        r"(?:find a flight|i want to fly) from (?P<from>\w+) to (?P<to>\w+)(?: in (?P<cabin>\w+) class)?",
        "flight {flight} to {to} costs {price}",
    ),
    (
        "book_flight reserve_flight",
        r"(?:book a flight|i must travel by plane) from (?P<from>\w+) to (?P<to>\w+)"
        r" with (?P<seats>\d) seats",
        "your flight from {from} has code {code} and costs {total}",
    ),
    (
        "find_train search_train",
        r"(?:find a train|i go by rail) from (?P<from>\w+) to (?P<to>\w+)(?: at hour (?P<hour>\d+))?",
        "the train to {to} leaves from track {track} and takes {minutes} minutes",
    ),
    (
        "book_table reserve_table",
        r"(?:book a table|i want to eat out) in (?P<city>\w+) for (?P<guests>\d) guests"
        r"(?: with (?P<food>\w+))?",
        "your table at {place} for {guests} has code {code}",
    ),
    (
        "get_weather read_weather",
        r"(?:how is the weather|do i need a coat) in (?P<city>\w+) on day (?P<day>\d+)"
        r"(?: of (?P<month>\w+))?",
        "expect {sky} and {degrees} degrees in {city}",
    ),
    (
        "get_traffic read_traffic",
        r"(?:how is the traffic|are the roads full) in (?P<city>\w+) at hour (?P<hour>\d+)",
        "the delay in {city} is {delay} minutes",
    ),
    (
        "convert_money change_money",
        r"(?:change money :|what do i get for) (?P<amount>\d) (?P<from>\w+) in (?P<to>\w+)",
        "that makes {sum} {to}",
    ),
    (
        "convert_length change_length",
        r"(?:convert a length :|how long is) (?P<amount>\d\.5) (?P<from>\w+) in (?P<to>\w+)",
        "that makes {length} {to}",
    ),
    (
        "set_light change_light",
        r"(?:set the light|make it bright) in the (?P<room>\w+) to (?P<level>\d+)(?: in (?P<color>\w+))?",
        "the light in the {room} went from {before} to {level}",
    ),
    (
        "set_heat change_heat",
        r"(?:set the heat|make it warm) in the (?P<room>\w+) to (?P<degrees>\d+) degrees"
        r"(?: at hour (?P<hour>\d+))?",
        "the {room} went from {before} to {degrees} in {minutes} minutes",
    ),
    (
        "add_meeting book_meeting",
        r"(?:plan a meeting|i must talk) with (?P<person>\w+) on day (?P<day>\d+) at hour (?P<hour>\d+)",
        "you meet {person} in office {office} under code {code}",
    ),
    (
        "find_meeting get_meeting",
        r"(?:when is the meeting|when did i plan to talk) with (?P<person>\w+) after day (?P<after>\d+)"
        r"(?: of (?P<month>\w+))?",
        "you meet {person} at slot {slot} in office {office}",
    ),
    (
        "order_items add_items",
        r"(?:order|please bring) (?P<items>\w+(?: and \w+)*)(?: by (?P<express>express|normal) ?(?:mail)?)?",
        "your order has code {code} and costs {total}",
    ),
    (
        "get_price read_price",
        r"(?:what is the price|how much do i pay) of (?P<item>\w+) for (?P<count>\d+) pieces",
        "{count} pieces of {item} cost {price}",
    ),
)
SPELLED = {
    group: {group, *others.split()}
    for group, others in {
        **{"city": "town", "stars": "rank", "breakfast": "meal", "nights": "stay", "guests": "people"},
        **{"from": "origin", "to": "target", "cabin": "class", "seats": "tickets", "hour": "time"},
        **{"food": "menu", "day": "date", "month": "season", "amount": "value", "room": "space"},
        **{"level": "power", "color": "tone", "degrees": "level", "person": "member", "after": "since"},
        **{"items": "goods", "express": "fast", "item": "good", "count": "pieces"},
    }.items()
}


def declared(line: str) -> tuple[str, list[tuple[str, ...]]]:
    """Name and the keys down to each parameter of a `tool` line."""
    words, boxes, leaves = line.split(), [], []
    for i, word in enumerate(words[2:], start=2):
        if word == "}":
            boxes.pop()
        elif word.startswith('"') and words[i + 1 : i + 2] == [":"]:
            after = words[i + 2] if words[i + 2] != "optional" else words[i + 3]
            if after == "{":
                boxes.append(json.loads(word))
            else:
                leaves.append((*boxes, json.loads(word)))
    return json.loads(words[1]), leaves


def value(group: str, text: str):
    if group == "items":
        return text.split(" and ")
    if group in ("breakfast", "express"):
        return text in ("with", "express")
    return float(text) if "." in text else int(text) if text.isdigit() else text


def spaced(data: object) -> str:
    return " ".join(re.findall(r'"[^"]*"|[\[\]{}:,]|[^\s\[\]{}:,]+', json.dumps(data)))


def solve(prompt: str) -> str:
    *lines, last = prompt.split("\n")
    given = None
    if last.startswith("result : "):
        given, last = json.loads(last.removeprefix("result : ")), lines[-2]
        given = given if isinstance(given, list) else [given]
        lines = lines[:-2]
    request = last.removeprefix("user : ")
    if request.endswith("?"):  # it tells its own answer
        (number,) = re.findall(r"\d+", request)
        return number
    shown = dict(map(declared, lines))
    calls, said = [], []
    for i, part in enumerate(request.removesuffix(" .").split(" and also ")):
        ((names, match, tells),) = [
            (names.split(), match, tells)
            for names, pattern, tells in TOOLS
            if (match := re.fullmatch(pattern, part))
        ]
        values = {group: value(group, text) for group, text in match.groupdict().items() if text is not None}
        if not shown.keys() & names:
            return "no tool fits"
        (name,) = shown.keys() & names
        arguments: dict = {}
        for path in shown[name]:
            for group in values:
                if path[-1] in SPELLED[group]:
                    here = arguments
                    for box in path[:-1]:
                        here = here.setdefault(box, {})
                    here[path[-1]] = values[group]
        calls.append({"name": name, "arguments": arguments})
        said += [tells.format(**(values | given[i]))] if given else []
    return f"{' . '.join(said)} ." if given else spaced(calls[0] if len(calls) == 1 else calls)
