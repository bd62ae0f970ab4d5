"""Spans, schedules and layers of distillation: each term is its formula, at its places, with its count."""

import sys
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from quietreasoning.backbone import role_of
from quietreasoning.build import resolve
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.export import export
from quietreasoning.kinds import Kind
from quietreasoning.methods import METHODS
from quietreasoning.methods.distill.layers import layer_pairs
from quietreasoning.methods.distill.settings import SPAN_TERMS, DistillConfig, HiddenSettings
from quietreasoning.methods.sequence import visible_part
from quietreasoning.run import train_run
from quietreasoning.train.snapshot import load_state, load_weights, save_state
from quietreasoning.train.state import TrainState

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from contract_cases import MARKERS, batch_of, batches, configs, make, scratch, spans_of, train

ROWS = [0, 1, 3, 5, 8]


@cache
def taught():
    """A small teacher's settings."""
    return make("distill").config.teacher.model_dump()


def student(**settings):
    settings = {"teacher": taught(), "weights": {"kd": 1}} | settings
    torch.manual_seed(1)
    backbone = scratch(layers=2, width=16, mlp=16)
    return METHODS["distill"](backbone, DistillConfig(**settings), MARKERS).train()


def pairs_of(method, batch):
    """(row, states that predict its visible tokens, their labels) of student and teacher, row by row."""
    for row in range(len(batch)):
        whole = batch.prompt_BP[row : row + 1], *batch.steps_BKS[row], batch.answer_BA[row]
        steps = list(whole[1:-1]) if method.config.steps else []
        ids = [whole[0][0], *steps, torch.tensor(MARKERS.answer_prefix), whole[-1]]
        ids = [part[part != IGNORE] for part in ids]
        learned = sum(map(len, ids[1:])) if method.config.steps else len(ids[-1])
        ids_1T = torch.cat(ids)[None]
        role_1T = role_of(ids_1T, Role.PROMPT)
        laws = []
        for model in (method.backbone, method.teacher):
            read = model(ids_1T, role_1T, layers=True)
            place = slice(ids_1T.shape[1] - learned - 1, -1)
            laws.append((model.logits(read.hidden_BTD[0, place]), read.layers_LBTD[:, 0, place]))
        yield row, laws, ids_1T[0, -learned:]


@pytest.mark.parametrize("steps", [True, False])
def test_span_terms_touch_the_states_that_predict_their_tokens_and_no_others(steps):
    names = ("tool_name", "arg_key", "arg_value", "grammar", "tool_choice")
    weights = {"kd": 0, "answer": 0} | dict.fromkeys(names, 1)
    method, batch = student(teacher=None, steps=steps, weights=weights), spans_of(ROWS)
    visible = visible_part(batch, MARKERS, 0 if steps else None)
    read, seen = method.read, {}

    def watched(*given, **named):
        hidden_BTD, layers = read(*given, **named)
        hidden_BTD.retain_grad()
        seen["BTD"] = hidden_BTD
        return hidden_BTD, layers

    method.read = watched
    out, units = method(batch), method.units(batch)
    assert set(out.terms) == set(names) == set(units)
    for name in names:
        seen["BTD"].grad = None
        out.terms[name].total.backward(retain_graph=True)
        touched_BT = seen["BTD"].grad.abs().sum(-1) > 0
        wanted_BT = torch.zeros_like(touched_BT)
        for row in range(len(batch)):
            places = (visible.role_BT[row] == Role.ANSWER).nonzero()[:, 0].tolist()
            for at, place in enumerate(places):
                kind, told = int(batch.classes_BA[row, at]), bool(batch.allowed_BAW[row, at].any())
                wanted_BT[row, place] = {
                    "grammar": told,
                    "tool_choice": told and kind == Kind.TOOL_NAME,
                }.get(name, kind == SPAN_TERMS.get(name))
        assert torch.equal(touched_BT, wanted_BT), name
        assert units[name] == int(wanted_BT.sum()) > 0, name
        assert out.terms[name].unit == name


def test_span_terms_are_cross_entropies_by_class_and_the_batch_must_know_them():
    names = ("tool_name", "arg_key", "arg_value")
    method = student(teacher=None, steps=False, weights={"kd": 0, "answer": 0} | dict.fromkeys(names, 1))
    batch, wanted, hits = spans_of(ROWS), dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    method.teacher = method.backbone
    for row, ((logits_TV, _), _), labels_T in pairs_of(method, batch):
        for at, label in enumerate(labels_T):
            for name in names:
                if batch.classes_BA[row, at] == SPAN_TERMS[name]:
                    wanted[name] += F.cross_entropy(logits_TV[at], label).item()
                    hits[name] += int(logits_TV[at].argmax() == label)
    out, units = method(batch), method.units(batch)
    for name in names:
        assert out.terms[name].total.item() == pytest.approx(wanted[name], rel=1e-5)
    for name in ("tool_name", "arg_value"):
        assert [int(x) for x in out.metrics[f"{name}_accuracy"]] == [hits[name], units[name]]
    with pytest.raises(UserError, match=r"weights\.tool_name needs .* set data\.format\.spans\.dialect"):
        method.units(batch_of(ROWS))
    grammar = student(teacher=None, weights={"kd": 0, "answer": 0, "grammar": 1})
    told = grammar(spans_of(ROWS))  # alone, without any class
    assert float(told.terms["grammar"].total.detach()) > 0
    without = spans_of(ROWS)
    object.__setattr__(without, "allowed_BAW", without.allowed_BAW[:, :0, :0])
    with pytest.raises(UserError, match=r"needs the grammar of calls: set data\.format\.spans\.grammar"):
        grammar.units(without)


@pytest.mark.parametrize(("follow", "labels"), [("uncertain", "truth"), ("certain", "teacher")])
def test_the_entropy_schedule_is_its_formula(follow, labels):
    """Some positions lie beyond both ends, and count in one sum alone."""
    batch, entropies = batch_of(ROWS), []
    for _, (_, (their_TV, _)), _ in pairs_of(student(), batch):
        entropies += (-(their_TV.softmax(-1) * their_TV.log_softmax(-1)).sum(-1)).tolist()
    thirds = [sorted(entropies)[len(entropies) * part // 3 :][:2] for part in (1, 2)]
    low, high = (sum(pair) / 2 for pair in thirds)  # between two positions: on which side they are is sure
    rule = {"min_entropy": low, "max_entropy": high, "follow": follow, "labels": labels}
    method = student(entropy=rule, weights={"kd": 1, "answer": 1})
    kd = ce = 0.0
    in_kd = in_ce = hits = agree = 0
    for _, ((own_TV, _), (their_TV, _)), labels_T in pairs_of(method, batch):
        for own_V, their_V, label in zip(own_TV.detach(), their_TV, labels_T, strict=True):
            p_V = their_V.softmax(-1)
            r = float(((-(p_V * p_V.log()).sum() - low) / (high - low)).clamp(0, 1))
            r = r if follow == "uncertain" else 1 - r
            t, share = 1.5 + r * 1.5, 1 - r if labels == "truth" else r / 2
            law_V, taught_V = (own_V / t).log_softmax(-1), (their_V / t).log_softmax(-1)
            kd += float(r / 2 * t**2 * (taught_V.exp() * (taught_V - law_V)).sum())
            ce += float(share * F.cross_entropy(own_V, label))
            in_kd, in_ce = in_kd + (r > 0), in_ce + (share > 0)
            hits += int(share > 0 and own_V.argmax() == label)
            agree += int(r > 0 and own_V.argmax() == their_V.argmax())
    out = method(batch)
    assert out.terms["kd"].total.item() == pytest.approx(kd, rel=1e-4)
    assert out.terms["answer"].total.item() == pytest.approx(ce, rel=1e-4)
    assert in_kd < method.units(batch)["token"]  # a figure over all of them would be wrong
    assert [int(x) for x in out.metrics["weighed_accuracy"]] == [hits, in_ce]
    assert [int(x) for x in out.metrics["agreement"]] == [agree, in_kd]


MOVING = {
    "divergence": {"temperature": 3, "final_temperature": 1},
    "hidden": {"pairs": 1, "decay": True},
    "weights": {"kd": 1, "answer": 0.5, "hidden": 0.4},
    "final_weights": {"kd": 0, "answer": 1},
}


def test_temperature_and_weights_follow_the_stage():
    method, fixed, batch = student(**MOVING), student(), batch_of(ROWS)
    for progress, temperature, kd, answer, hidden in [
        (0.0, 3.0, 1.0, 0.5, 0.4),
        (0.5, 2.0, 0.5, 0.75, 0.2),
        (1.0, 1.0, 0.0, 1.0, 0.0),
    ]:
        method.pace(progress)
        out = method(batch)
        found = [out.terms[name].weight for name in ("kd", "answer", "hidden")]
        assert found == pytest.approx([kd, answer, hidden])
        fixed.config = DistillConfig(teacher=taught(), divergence={"temperature": temperature})
        torch.testing.assert_close(out.terms["kd"].total, fixed(batch).terms["kd"].total)
    assert "progress" in method.state_dict() and "progress" not in fixed.state_dict()


def test_a_resume_goes_on_to_the_bit_with_projections_and_schedules(tmp_path):
    def state():
        config, optim = configs(steps=4, batch_size=2)
        return TrainState.create(student(**MOVING), config, optim), config, optim

    def go(state, config, optim, steps=4):
        records = islice(train(state, batches(2), config, optim), steps)
        return [{"loss": r.loss, **r.losses} for r in records]

    through, config, optim = state()
    before = through.method.layers.project[0].weight.detach().clone()
    records = go(through, config, optim)
    assert not torch.equal(before, through.method.layers.project[0].weight), "projections learn"
    first, *_ = state()
    half = go(first, config, optim, 2)
    folder = save_state(first, tmp_path, run={}, position={})
    second, *_ = state()
    load_weights(folder, second.method)
    assert float(second.method.progress) == float(first.method.progress) > 0
    assert torch.equal(second.method.layers.project[0].weight, first.method.layers.project[0].weight)
    assert load_state(second, folder) == []
    assert half + go(second, config, optim) == records


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_the_distance_of_layers_is_its_formula(distance):
    hidden = {"layers": [(0, 0), (1, 0)], "distance": distance}
    method = student(hidden=hidden, weights={"kd": 0, "answer": 0, "hidden": 1})
    batch, wanted = batch_of(ROWS), 0.0
    for _, ((_, own_LTD), (_, their_LTE)), _ in pairs_of(method, batch):
        for (mine, theirs), project in zip(hidden["layers"], method.layers.project, strict=True):
            for own_D, taught_E in zip(own_LTD[mine], their_LTE[theirs], strict=True):
                own_E = project(own_D)
                if distance == "cosine":
                    apart = 1 - own_E @ taught_E / own_E.norm() / taught_E.norm()
                else:
                    apart = (own_E - taught_E).square().mean() / taught_E.square().mean()
                wanted += float(apart.detach()) / 2
    out = method(batch)
    assert out.terms["hidden"].total.item() == pytest.approx(wanted, rel=1e-4)
    assert out.terms["hidden"].unit == "token" and set(out.terms) == {"hidden"}
    out.terms["hidden"].total.backward()
    assert all(project.weight.grad.any() for project in method.layers.project)
    assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize(
    ("settings", "student_layers", "teacher_layers", "pairs"),
    [
        ({"pairs": 2}, 2, 3, ((0, 0), (1, 2))),
        ({"pairs": 4}, 8, 24, ((1, 5), (3, 11), (5, 17), (7, 23))),
        ({"pairs": 9}, 2, 4, ((0, 1), (1, 3))),  # no more than there are
        ({"layers": "last", "pairs": 2}, 4, 6, ((2, 4), (3, 5))),
        ({"layers": [(0, 5), (3, 1)]}, 4, 6, ((0, 5), (3, 1))),
    ],
)
def test_pairs_of_layers(settings, student_layers, teacher_layers, pairs):
    assert layer_pairs(HiddenSettings(**settings), student_layers, teacher_layers) == pairs


def test_a_layer_that_is_not_there_is_refused():
    for pair in ((2, 0), (0, 1), (-1, 0)):
        with pytest.raises(UserError, match=r"the student's layers are 0 to 1, the teacher's 0 to 0"):
            layer_pairs(HiddenSettings(layers=[pair]), 2, 1)
    with pytest.raises(UserError, match="is empty; give pairs, uniform or last"):
        layer_pairs(HiddenSettings(layers=[]), 2, 1)


TEACHER, CACHE, CE = {"path": "t"}, {"path": "c"}, {"weights": {"kd": 0}}
REFUSED = [
    ({"weights": {"kd": 0, "answer": 0}}, "all 0: nothing is learned"),
    ({"teacher": TEACHER, "weights": {"hidden": 1}}, r"method\.weights\.hidden=1 and method\.hidden=null"),
    ({"teacher": TEACHER, "hidden": {}}, r"method\.weights\.hidden=0 and method\.hidden=\{\.\.\.\}"),
    ({"teacher": TEACHER, "weights": {"own": 1}}, r"method\.weights\.own=1 and method\.own=null"),
    ({"teacher": TEACHER, "cache": CACHE}, "two teachers; drop one"),
    ({"cache": CACHE, "hidden": {}, "weights": {"hidden": 1}}, "method.hidden asks a teacher"),
    ({"cache": CACHE, "own": {}, "weights": {"own": 1}}, "method.own asks a teacher"),
    ({"cache": CACHE, "entropy": {}}, "method.entropy asks a teacher"),
    ({"cache": CACHE, "weights": {"kd": 0}}, "method.cache has no effect: weight kd is 0"),
    ({"teacher": TEACHER, "weights": {"kd": 0}}, "method.teacher has no effect"),
    ({"entropy": {}, "divergence": {"temperature": 2}}, "drop divergence.temperature"),
    ({"entropy": {}, "divergence": {"final_temperature": 2}}, "drop divergence.temperature"),
    ({"entropy": {}, "weights": {"kd": 0}}, "whose weight kd is 0; drop it"),
    ({"cache": CACHE, "divergence": {"final_temperature": 2}}, "drop divergence.final_temperature"),
    ({"final_weights": {"kdd": 1}}, r"final_weights\.kdd is no weight; choices: kd, answer, own"),
    ({"final_weights": {"hidden": 1}}, r"final_weights\.hidden=1: from above 0 to 0 or more"),
    ({"final_weights": {"kd": -1}}, r"final_weights\.kd=-1: from above 0 to 0 or more"),
    (MOVING | {"final_weights": {"hidden": 1}}, r"drop it or final_weights\.hidden"),
    ({"entropy": {"min_entropy": 9}}, "is no range"),
    (
        CE | {"divergence": {"temperature": 2}},
        r"temperature=2\.0 has no effect: .* set it to 1\.0, or drop it",
    ),
    (CE | {"divergence": {"final_temperature": 2}}, r"final_temperature=2\.0 has no effect.* set it to null"),
    ({"weights": {"early_tool": 1}}, r"early_tool=1 and method\.early_tool=null belong together"),
    ({"early_tool": {}}, r"early_tool=0 and method\.early_tool=\{\.\.\.\} belong together"),
    (
        {"teacher": TEACHER, "length": {}, "weights": {"length": 1}},
        "gold text is as long as it is: give method.own",
    ),
]


@pytest.mark.parametrize(("settings", "says"), REFUSED, ids=range(len(REFUSED)))
def test_settings_that_contradict_each_other_are_refused_with_the_cure(settings, says):
    with pytest.raises(ValueError, match=says):
        DistillConfig(**settings)


def test_projections_are_in_the_checkpoint_and_not_in_the_export(tmp_path):
    scratch(9, layers=1, width=16, mlp=16).model.save_pretrained(tmp_path / "teacher")
    recipe = tmp_path / "quiet.yaml"
    recipe.write_text(f"""
method:
  {{name: distill, teacher: {{path: {tmp_path / "teacher"}}}, hidden: {{pairs: 1}}, weights: {{hidden: 1}}}}
backbone: {{scratch: {{layers: 1, width: 16, heads: 2, mlp: 16}}}}
data: {{task: pointer, train: 4, options: {{nodes: 4, symbols: 6, hops: [1]}}, tokenizer: {{train: words}}}}
train: {{steps: 1, batch_size: 2, eval_every: 0}}
""")
    train_run(resolve(str(recipe), [], str(tmp_path / "run")), doctor=False)
    held = load_file(tmp_path / "run" / "step-000001" / "method.safetensors")
    assert "layers.project.0.weight" in held and not any(name.startswith("teacher.") for name in held)
    export(str(tmp_path / "run"), str(tmp_path / "out"))
    assert not any("project" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
