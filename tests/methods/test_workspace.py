"""The workspace method: counts by hand, controls and effort, annealing, and what its settings refuse."""

import math
from dataclasses import replace

import pytest
import torch

from quietreasoning.backbone import BackboneConfig, load_backbone
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch, Markers
from quietreasoning.methods.workspace import Workspace
from quietreasoning.methods.workspace.contrast import drawn
from quietreasoning.train.doctor import examine
from quietreasoning.validation import validate

VOCAB, CHUNK = 40, 4
MARKERS = Markers((37, 38), 39, (3,))
EVERY = ("workspace", "pkm", "adapters", "ssm")
SIZES = {
    **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
    **{"initializer_range": 0.3, "max_position_embeddings": 96, "chunk_size": CHUNK, "slots": 6},
    **{"slot_width": 16, "slot_heads": 2, "read_block": 1, "router_width": 8, "ssm_blocks": (1,)},
    **{
        "ssm_inner": 16,
        "ssm_state": 4,
        "ssm_head_dim": 8,
        "pkm_blocks": (3,),
        "pkm_slots": 64,
        "mean_steps": 1.5,
    },
    **{"pkm_value_dim": 8, "pkm_heads": 2, "pkm_key_dim": 4, "pkm_topk": 3, "adapters": 3, "adapter_rank": 2},
}


def made(markers=MARKERS, loud=False, **settings) -> Workspace:
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(workspace={"sizes": SIZES}), VOCAB)
    if loud:
        for reader in backbone.model.model.readers.values():
            torch.nn.init.constant_(reader.gate, 1.0)
    return Workspace(backbone, validate(Workspace.Config, {"name": "workspace"} | settings), markers)


def rows(prompts, answers, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def ids(lengths, left):
        out = torch.full((len(lengths), max(lengths)), IGNORE)
        for row, length in enumerate(lengths):
            cells = slice(max(lengths) - length, None) if left else slice(0, length)
            out[row, cells] = torch.randint(0, 36, (length,), generator=draw)
        return out

    count = len(prompts)
    answer_BA = ids(answers, False)
    steps_BKS = torch.randint(0, 36, (count, 3, 2), generator=draw)
    return Batch(
        *(torch.arange(count), ids(prompts, True), steps_BKS, steps_BKS[..., -1:], answer_BA),
        torch.arange(count) % 2,
    )


def text(lengths):
    batch = rows(lengths, [1] * len(lengths))
    none = torch.full((len(lengths), 0), IGNORE)
    return replace(batch, answer_BA=none, steps_BKS=none[..., None], results_BKR=none[..., None])


@pytest.mark.parametrize(
    ("prompt", "answer", "updates"),
    [(1, 1, 1), (4, 1, 1), (4, 2, 1), (5, 2, 2), (9, 3, 4), (8, 6, 3)],
)
def test_updates_are_counted_by_hand(prompt, answer, updates):
    """Prefix of 2, chunks of 4: each new chunk is one update, and what follows the prompt is a new chunk."""
    method = made()
    batch = rows([prompt], [answer])
    units = method.units(batch)
    assert (units["chunk"], units["pair"]) == (updates, max(updates - 1, 0))
    sequence = method.layout(batch)
    trace = method.backbone(sequence.ids_BT, sequence.role_BT, starts_BT=sequence.starts_BT, trace=True).trace
    assert sum(advance is not None for advance in trace.advances) == updates


def test_every_chunk_and_pair_is_a_summand_once():
    """Terms whose value is known for each summand: a mean over chunks lies where one chunk's value must."""
    weights = {"orthogonality": 1, "sparsity": 1, "halting": 1, "next_latent": 1}
    method, batch = made(weights=weights), rows([9, 3, 5], [3, 1, 6])
    units, terms = method.units(batch), method(batch).terms
    alone = [made(weights=weights)(rows_of(batch, row)).terms for row in range(3)]
    for name in weights:
        assert float(terms[name].total) == pytest.approx(sum(float(t[name].total) for t in alone), rel=1e-4)
    assert units["chunk"] == 4 + 1 + 3 and units["pair"] == 3 + 0 + 2


def rows_of(batch, row):
    cut = {name: getattr(batch, name)[row : row + 1] for name in batch.__dataclass_fields__}
    return Batch(**cut)


def test_the_slots_of_the_answer_are_those_at_the_prompts_end():
    """Short and long prompts side by side: each row's slots equal those of a forward of that row alone."""
    from quietreasoning.methods.workspace.reading import at_answer

    method, batch = made(features=EVERY, loud=True), rows([9, 3, 5, 8], [3, 1, 6, 2])

    def slots(batch):
        seq = method.layout(batch)
        trace = method.backbone(seq.ids_BT, seq.role_BT, starts_BT=seq.starts_BT, trace=True).trace
        return at_answer(trace, batch.prompt_BP.shape[1], seq.ids_BT.shape[1]).slots_BKD

    together = slots(batch)
    for row in range(4):
        torch.testing.assert_close(together[row], slots(rows_of(batch, row))[0], rtol=1e-4, atol=1e-5)


def test_effort_and_controls_change_the_slots_the_answer_reads():
    method, prompt_BP = made(loud=True).eval(), rows([9, 3, 5], [1, 1, 1]).prompt_BP
    plain = method.generate(prompt_BP, max_new_tokens=4)
    assert plain.passes == [1] * 3 and all(n % 6 == 0 and 6 <= n <= 18 for n in plain.latent_steps)
    for effort in (1, 5):
        turned = method.generate(prompt_BP, max_new_tokens=4, effort=effort)
        assert turned.latent_steps == [6 * effort] * 3
    assert method.generate(prompt_BP, max_new_tokens=4).tokens == plain.tokens, "the dial turns back"
    seen = []
    hook = method.backbone.register_forward_hook(lambda *args: seen.append(args[-1].hidden_BTD[:, -1]))
    for control in (None, *method.controls):
        method.generate(prompt_BP, max_new_tokens=1, control=control)
    hook.remove()
    after = seen[1::2]
    assert len(after) == 6 and all(not torch.allclose(state, after[0], atol=1e-3) for state in after[1:])
    off = made(features=("ssm",)).eval()
    trunk = off.generate(prompt_BP, max_new_tokens=1)
    assert off.controls == () and trunk.latent_steps == [0] * 3
    assert trunk.passes == [1] * 3, "the answer prefix is read after the prompt, slots or none"
    for bad in ({"effort": 0}, {"control": "zero"}):
        with pytest.raises(ValueError, match=r"effort=0|control='zero'"):
            (method if "effort" in bad else off).generate(prompt_BP, max_new_tokens=1, **bad)


def test_temperature_follows_the_budget_and_dead_keys_are_sown():
    method = made(features=EVERY, temperature=(2.0, 0.5), reseed=2)
    table = method.body.table
    for progress, want in ((0.0, 2.0), (0.5, 1.0), (1.0, 0.5)):
        method.pace(progress)
        assert float(method.body.temperature) == pytest.approx(want)
    method.sown.zero_()
    method.train()(rows([9, 3], [3, 1]))
    assert table.hits.any()
    keys = table.keys.clone()
    method.pace(0.1)
    assert torch.equal(table.keys, keys)
    method.pace(0.4)
    assert int(method.sown) == 1 and not torch.equal(table.keys, keys) and not table.hits.any()


# the doctor

LOSSES = {
    **{
        "next_latent": 1,
        "spread": 0.1,
        "sparsity": 0.1,
        "orthogonality": 0.05,
        "contrast": 0.2,
        "halting": 0.01,
    },
    **{"router_z": 1e-3, "balance": 0.1, "entropy": 0.1, "gate": 0.1, "budget": 0.1},
}
STAGES = {
    "trunk": {"features": ()},
    "workspace": {},
    "inner": {"supervise": "inner", "weights": {"step": 1, "halting": 0.01}},
    "all": {"features": EVERY, "learn": "all"},
    "steps": {"features": EVERY, "weights": {"step": 1, "rationale": 5}},
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_doctor_finds_nothing(stage):
    diagnosis = examine(made(**STAGES[stage]), rows([9, 3, 5, 8], [3, 1, 6, 2]))
    assert diagnosis.healthy, [str(finding) for finding in diagnosis.findings]


@pytest.mark.parametrize("weights", [{}, {k: v for k, v in LOSSES.items() if k not in ("entropy", "budget")}])
def test_the_doctor_finds_nothing_on_text(weights):
    method = made(features=EVERY, learn="all", weights=weights)
    diagnosis = examine(method, text([17, 13, 9, 14]))
    assert diagnosis.healthy, [str(finding) for finding in diagnosis.findings]


# what is refused

REFUSED = [
    ({"features": ("workspace", "pmk")}, "features"),
    (
        {"features": ("pkm",), "weights": {"halting": 1}},
        "halting has no effect without the feature workspace",
    ),
    ({"weights": {"balance": 1}}, "balance has no effect without the feature adapters"),
    ({"weights": {"gate": 1}}, "gate has no effect without the feature ssm"),
    ({"temperature": (2.0, 0.7)}, "without the feature pkm"),
    ({"reseed": 3}, "without the feature pkm"),
    ({"weights": {"teacher": 1}}, "teacher and weights.teacher belong together"),
    ({"teacher": {}, "weights": {"teacher": 1}}, "name a model folder"),
    ({"features": ("workspace", "knn")}, "need weights.retrieval"),
    ({"weights": {"router_z": 1}}, "the router decides nothing"),
    ({"weights": {"retrieval": 1}}, "nothing to teach"),
    ({"features": EVERY, "int8": True, "reseed": 1}, "reseed=0"),
    ({"step_width": 7, "weights": {"step": 1}}, "step_width=7 is more than the 6 slots"),
]


@pytest.mark.parametrize(("settings", "says"), REFUSED, ids=str)
def test_settings_that_cannot_be_are_refused(settings, says):
    with pytest.raises(UserError, match=says) as caught:
        made(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "weight"),
    [
        ({}, 0.05),
        ({"features": ()}, 0),
        ({"features": ("ssm",)}, 0),
        ({"weights": {"halting": 1}}, 0.05),
        ({"weights": {"orthogonality": 0}}, 0),
        ({"weights": {"orthogonality": 2}}, 2),
    ],
    ids=str,
)
def test_slots_are_kept_apart_unless_somebody_says_otherwise(settings, weight):
    config = validate(Workspace.Config, {"name": "workspace"} | settings)
    assert config.weights.orthogonality == weight
    assert validate(Workspace.Config, config.model_dump(mode="json")) == config


def test_it_needs_a_workspace_model_and_words_to_punish(backbone):
    with pytest.raises(UserError, match=r"backbone\.workspace\.preset=tiny"):
        Workspace(backbone, Workspace.Config(), MARKERS)
    with pytest.raises(UserError, match=r"data\.format\.rationale"):
        made(markers=Markers((37,), 39), weights={"rationale": 5})


def test_rows_without_answers_are_refused_where_answers_are_learned():
    with pytest.raises(UserError, match="learn=all"):
        made()(text([6, 9]))
    with pytest.raises(UserError, match="this task is text"):
        made(learn="all", weights={"step": 1})(text([6, 9]))


@pytest.mark.parametrize("learn", ["answer", "all"])
def test_the_contrast_is_told_beside_its_chance_level(learn):
    """Of an answer ln(1 + negatives); of a chunk ln of the row's chunks, which are two, three and one."""
    method = made(learn=learn, negatives=7, weights={"contrast": 1})
    batch = rows([9, 3, 5], [3, 1, 6]) if learn == "answer" else text([8, 12, 4])
    metrics = method(batch).metrics
    chance, count = metrics["contrast_chance"]
    if learn == "all":
        wanted, of = math.log(2) + 2 * math.log(3), 3
    else:
        answers = [set(row.tolist()) for row in batch.answer_BA]
        kept = [
            [t for t in row.tolist() if t not in a]
            for row, a in zip(drawn(batch, VOCAB, 7), answers, strict=True)
        ]
        wanted, of = sum(math.log(1 + len(tokens)) for tokens in kept), 3
    assert int(count) == int(metrics["contrast_accuracy"][1]) == of
    assert float(chance) == pytest.approx(wanted, rel=1e-5)
