"""What generate promises: the same answer in any company, honest costs, thoughts that can be corrupted."""

import itertools
from dataclasses import replace

import pytest
import torch
from contract_cases import (
    CASES,
    FIRST,
    GRIDS,
    MARKERS,
    NULLS,
    WHOLE,
    WORDS,
    WORKSPACE,
    backbone_for,
    batch_of,
    make,
    pad,
    row_of,
    scratch,
    sliding,
)

from quietreasoning.contract import CONTROLS, IGNORE, Batch, Markers, Role

ROWS = [0, 1, 2, 4, 5]
WRITES_CHAIN = [
    case
    for case, (name, s) in CASES.items()
    if (name in ("cot", "bake", "thoughts", "distill", "cross") and s.get("steps", True))
    or "visible_from" in s
]
APART = (*WORKSPACE, *GRIDS)  # whose thoughts stand at no position of the backbone
IN_TOKENS = [case for case in CASES if case not in APART]
SILENT = (
    "plain",
    "bake",
    "bake-pursuit",
    *(case for case in CASES if case.startswith(("distill", "prefer", "cross", "recall"))),
)
OWN = [case for case in IN_TOKENS if case.startswith("thoughts")]  # tests/methods/test_thoughts.py
THINKS = [
    case for case in IN_TOKENS if case not in (*SILENT, *OWN) and not case.endswith(("-none", "-start"))
]
TOKENS = 5
ENDLESS = replace(MARKERS, eos=-1)  # an end that no model writes, so that lengths are known


@pytest.fixture(scope="module")
def shared():
    return scratch()


@pytest.fixture
def method_of(shared):
    """Case -> a method in eval mode on the shared backbone, whose text never ends by itself."""

    def get(case):
        method = make(case, backbone_for(case) if case in APART else shared).eval()
        method.markers = replace(method.markers, eos=ENDLESS.eos)
        return method

    return get


def prompts(rows, columns=None):
    """Prompts padded on the left, to more columns than they need if asked."""
    return pad([row_of(row)[0] for row in rows], left=True, width=columns)


def said_by(method, prompt_BP, **options):
    response = method.generate(prompt_BP, max_new_tokens=TOKENS, **options)
    return list(
        zip(
            response.tokens,
            response.answers,
            response.visible_tokens,
            response.passes,
            response.latent_steps,
            strict=True,
        )
    )


def with_own_markers(method, row):
    """Give `method` an answer prefix that it writes itself after a chain of at least one token of this row.

    Returns the length of that chain: the text of a model with random weights soon repeats itself.
    """
    written = method.generate(prompts([row]), max_new_tokens=9).tokens[0]
    pairs = list(itertools.pairwise(written))
    chain = max(at for at in range(1, 5) if pairs.index(pairs[at]) == at)
    method.markers = Markers(answer_prefix=pairs[chain], eos=-1)
    return chain


@pytest.mark.parametrize("case", CASES)
def test_answers_do_not_depend_on_the_batch(case, method_of):
    """Alone, in company, and in another order beside a twin and more padding."""
    method, controls = method_of(case), [None]
    if case not in WORKSPACE or case in WHOLE:
        controls += [name for name in ("noise", "filler") if name in method.controls]
    for control in controls:
        rows = ROWS if control is None else ROWS[:3]
        alone = {row: said_by(method, prompts([row]), control=control)[0] for row in rows}
        for others, columns in ((rows, None), ([*rows[::-1], 2], 13)):
            together = said_by(method, prompts(others, columns=columns), control=control)
            assert together == [alone[row] for row in others], control
        assert len({str(tokens) for tokens, *_ in alone.values()}) > 1, "it says the same to everyone"


@pytest.mark.parametrize("control", [None, "noise", "filler"])
@pytest.mark.parametrize("case", ["cot", "coconut", "slots"])
def test_a_sliding_window_keeps_answers_apart_too(case, control):
    """Chains of different lengths side by side: a window counts columns, so there must be no gap in a row."""
    method = make(case, sliding()).eval()
    method.markers = ENDLESS
    written = method.generate(prompts(ROWS), max_new_tokens=TOKENS).tokens

    def lengths(end):
        return {row.index(end) if end in row else TOKENS for row in written}

    end = max(itertools.chain(*written), key=lambda end: len(lengths(end)))
    assert len(lengths(end)) > 1
    method.markers = replace(MARKERS, eos=end)
    alone = [said_by(method, prompts([row]), control=control)[0] for row in ROWS]
    assert said_by(method, prompts(ROWS), control=control) == alone


@pytest.mark.parametrize("case", CASES)
def test_rows_that_end_early_leave_the_others_alone(case, method_of):
    method = method_of(case)
    first = method.generate(prompts(ROWS), max_new_tokens=TOKENS).tokens
    given = 0 if case in WRITES_CHAIN else len(MARKERS.answer_prefix)
    eos = first[0][given + 1]  # the second token of the first row now ends it
    method.markers = replace(MARKERS, eos=eos)
    after = method.generate(prompts(ROWS), max_new_tokens=TOKENS).tokens
    for before, now in zip(first, after, strict=True):
        written = before[given:]
        end = written.index(eos) if eos in written else TOKENS
        assert now[given:] == written[:end] and now[:given] == before[:given]
    assert len(after[0]) <= given + 1


@pytest.mark.parametrize("case", CASES)
def test_generate_touches_nothing(case, method_of):
    method = method_of(case)
    method.train()
    before = {name: t.clone() for name, t in method.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for control in (None, *method.controls):
        said = method.generate(prompts(ROWS[:3]), max_new_tokens=2, control=control)
        assert len(said.tokens) == 3, control
    assert all(torch.equal(t, before[name]) for name, t in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters()) and method.training
    assert torch.equal(torch.get_rng_state(), state)


def as_gold(method, row) -> Batch:
    """A batch whose gold chain and answer are what the method itself says."""
    response = method.generate(prompts([row]), max_new_tokens=9)
    chain = response.tokens[0][: response.visible_tokens[0]]
    hidden = method.config.visible_from or 0 if method.config.name == "continuous" else 0
    steps = [*[[1]] * hidden, chain] if chain else []
    steps_BKS = pad(steps)[None] if steps else torch.full((1, 0, 0), IGNORE)
    answer_BA = torch.tensor([response.answers[0]])
    unknown_B = torch.full((1,), IGNORE)
    return Batch(torch.zeros(1).long(), prompts([row]), steps_BKS, steps_BKS, answer_BA, unknown_B)


@pytest.mark.parametrize("row", [0, 4])
@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if not case.endswith(
            ("-only", "-all", "-text", "-grpo", "-per-step", "-pursuit", "-spans", "-own", "-halt")
        )
        and not case.startswith(("bake", "thoughts", "prefer", "cross"))
        and case not in GRIDS
    ],
)
def test_what_it_writes_is_what_training_finds_most_likely(case, row, method_of):
    """Greedy text, given back as gold, is hit at every position: both sides see the same thoughts."""
    method = method_of(case)
    chain = with_own_markers(method, row) if case in WRITES_CHAIN else None
    batch = as_gold(method, row)
    if chain is not None:
        assert batch.steps_BKS[0, -1].shape == (chain,) and batch.answer_BA.shape[1] == 9 - chain - 2
    out = method(batch)
    hits, count = out.metrics["token_accuracy"]
    times = method.config.steps if case in ("recursion", "recursion-near") else 1  # supervised steps
    assert int(hits) == int(count) > 0 and times * int(count) == method.units(batch)["token"]


@pytest.mark.parametrize("case", [case for case in IN_TOKENS if case not in OWN])
def test_costs_are_counted_as_they_happen(case, method_of):
    method, row = method_of(case), 1
    chain = with_own_markers(method, row) if case in WRITES_CHAIN else 0
    new = chain + 2 + 1 if chain else 1  # chain, prefix, first answer token
    with method.backbone.tap() as calls:
        response = method.generate(prompts([row]), max_new_tokens=new)
    assert response.passes == [len(calls) - 1], "the first call reads the prompt"
    assert response.visible_tokens == [chain]
    assert len(response.answers[0]) == 1 and response.milliseconds > 0
    thoughts = sum(int((call.role_BT == Role.THOUGHT).sum()) for call in calls)
    if method.config.name == "continuous":
        thoughts = (thoughts + 1) // 2  # each but the last stands in two passes
    if method.config.name == "recursion":
        thoughts *= method.config.steps  # of the reasoner, before the model reads what it found
    assert response.latent_steps == [thoughts]


def test_costs_at_a_glance(method_of):
    """passes, latent steps: what the table will say."""
    expected = {
        "plain": (0, 0),
        "pause": (0, 3),
        "pause-none": (0, 0),
        "continuous": (3, 3),
        "continuous-two-a-step": (5, 5),
        "slots": (3, 9),
        "slots-wide": (3, 12),
        "slots-full": (2, 6),
    }
    for case, costs in expected.items():
        response = method_of(case).generate(prompts([0, 1]), max_new_tokens=1)
        assert (response.passes, response.latent_steps) == ([costs[0]] * 2, [costs[1]] * 2), case


@pytest.mark.parametrize(
    ("case", "effort", "passes", "latent_steps"),
    [
        ("pause", 0, 0, 0),
        ("pause", 7, 0, 7),
        ("continuous", 0, 1, 0),
        ("continuous", 1, 1, 1),
        ("continuous", 6, 6, 6),
        ("slots", 1, 1, 3),
        ("slots", 6, 6, 18),
    ],
)
def test_the_effort_dial(case, effort, passes, latent_steps, method_of):
    method = method_of(case)
    trained = said_by(method, prompts(ROWS))
    turned = said_by(method, prompts(ROWS), effort=effort)
    assert all(row[3:] == (passes, latent_steps) for row in turned)
    assert [row[0] for row in turned] != [row[0] for row in trained]
    own = {"pause": "fillers", "continuous": "latents", "slots": "loops"}[case]
    assert said_by(method, prompts(ROWS), effort=getattr(method.config, own)) == trained


@pytest.mark.parametrize(
    ("case", "effort"),
    [
        ("plain", 1),
        ("cot", 1),
        ("pause", -1),
        ("pause-none", 2),
        ("continuous", -1),
        ("continuous-none", 2),
        ("slots", 0),
    ],
)
def test_efforts_it_does_not_have_are_refused(case, effort, method_of):
    with pytest.raises(ValueError, match=f"effort={effort}"):
        method_of(case).generate(prompts([0]), max_new_tokens=1, effort=effort)


@pytest.mark.parametrize("case", [*FIRST, *NULLS, "workspace-trunk"])
def test_controls_it_does_not_take_are_refused(case, method_of):
    method = method_of(case)
    assert set(method.controls) <= set(CONTROLS)
    for control in {*CONTROLS, "sleep"} - set(method.controls):
        with pytest.raises(ValueError, match=f"control='{control}'"):
            method.generate(prompts([0, 1]), max_new_tokens=2, control=control)


def thoughts_of(method, prompt_BP, control=None):
    """What stands at the thoughts in the pass that the answer reads [B, K, D], and which of it is real."""
    seen = []
    hook = method.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[:2]))
    method.generate(prompt_BP, max_new_tokens=3, control=control)
    hook.remove()
    inputs_BTD, role_BT = next(args for args in reversed(seen) if args[0].is_floating_point())
    wanted = Role.STEP if method.config.name == "cot" else Role.THOUGHT
    columns_T = (role_BT == wanted).any(0)
    return inputs_BTD[:, columns_T], (role_BT == wanted)[:, columns_T]


@pytest.mark.parametrize("case", THINKS)
def test_controls_replace_the_thoughts_as_they_say(case, method_of):
    method, prompt_BP = method_of(case), prompts([0, 2])
    if case == "cot":  # its thoughts are its chain, which stands here in embeddings under a control alone
        chains = method.generate(prompt_BP, max_new_tokens=3).tokens
        own_BKD = method.backbone.embed(torch.tensor(chains))
    else:
        own_BKD, _ = thoughts_of(method, prompt_BP)
    found = {name: thoughts_of(method, prompt_BP, name)[0] for name in method.controls}
    assert own_BKD.shape == found["zero"].shape and own_BKD.shape[1] > 0
    assert not found["zero"].any()
    filler_D = method.backbone.embed(torch.tensor([MARKERS.answer_prefix[-1]]))[0]
    torch.testing.assert_close(found["filler"], filler_D.expand_as(own_BKD))
    torch.testing.assert_close(found["shuffle"], own_BKD.flip(0))
    torch.testing.assert_close(found["mean"], own_BKD.mean(0, keepdim=True).expand_as(own_BKD))
    torch.testing.assert_close(found["noise"].norm(dim=-1), own_BKD.norm(dim=-1))
    assert not torch.allclose(found["noise"], own_BKD)
    if method.config.name != "pause":  # the fillers of all prompts are one
        assert not torch.allclose(found["shuffle"], own_BKD)


def test_a_chain_control_brings_lengths_along(method_of):
    """Chains of 1 and 3 tokens: shuffled, the first row reads 3 and the second 1; the mean skips padding."""
    method, rows = method_of("cot"), [0, 4]
    first, second = method.generate(prompts(rows), max_new_tokens=3).tokens
    method.markers = Markers(answer_prefix=(37, 38), eos=first[1])
    assert first[0] != first[1] and first[1] not in second, "choose other rows"
    own = [method.backbone.embed(torch.tensor(chain)) for chain in (first[:1], second)]
    swapped, real = thoughts_of(method, prompts(rows), "shuffle")
    assert real.tolist() == [[True] * 3, [False, False, True]]
    torch.testing.assert_close(swapped[0], own[1])
    torch.testing.assert_close(swapped[1, 2:], own[0])
    mean, real = thoughts_of(method, prompts(rows), "mean")
    assert real.tolist() == [[False, False, True], [True] * 3]
    torch.testing.assert_close(mean[1], torch.cat([(own[0] + own[1][:1]) / 2, own[1][1:]]))


def test_shuffle_needs_company(method_of):
    for case in ("cot", "continuous", "slots", "pause"):
        with pytest.raises(ValueError, match="at least 2 prompts"):
            method_of(case).generate(prompts([0]), max_new_tokens=1, control="shuffle")


@pytest.mark.parametrize("case", CASES)
def test_the_limit_holds(case, method_of):
    method = method_of(case)
    for limit in (1, 4):
        response = method.generate(prompts(ROWS), max_new_tokens=limit)
        given = 0 if case in WRITES_CHAIN else len(MARKERS.answer_prefix)
        room = [len(row_of(row)[0]) if case in GRIDS else limit for row in ROWS]
        assert [len(tokens) for tokens in response.tokens] == [min(limit, most) + given for most in room]


def test_rows_and_prompts_are_what_the_tests_think():
    assert len({tuple(row_of(row)[0]) for row in ROWS}) == len(ROWS)
    assert len({len(row_of(row)[0]) for row in ROWS}) > 2
    assert max(max(row_of(row)[0]) for row in ROWS) < WORDS
    assert torch.equal(batch_of(ROWS).prompt_BP, prompts(ROWS))
