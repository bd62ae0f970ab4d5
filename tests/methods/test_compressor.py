"""The compressor counts the states it should, whatever the padding; what it solves is the best there is."""

from dataclasses import replace

import pytest
import torch
from whole_rows import MARKERS, WIDTH, small_model, solutions, text

from quietreasoning.backbone.compressor_file import load_compressor, read_origin
from quietreasoning.backbone.states import read_states
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch
from quietreasoning.methods.compressor import StateCompressor
from quietreasoning.methods.whole import whole
from quietreasoning.nn.compressor import fisher_metric, metric_pca, pca
from quietreasoning.nn.moments import Moments
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.doctor import examine
from quietreasoning.train.loop import train
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.state import TrainState
from quietreasoning.validation import validate


@pytest.fixture(scope="module")
def model():
    return small_model()


def made(model, before=None, **settings) -> StateCompressor:
    """A compressor of 4 numbers; it goes on from `before` as stages do."""
    torch.manual_seed(1)
    config = validate(StateCompressor.Config, {"name": "compressor", "d_compressed": 4} | settings)
    method = StateCompressor(model, config, MARKERS)
    if before is not None:
        own, given = method.state_dict(), before.state_dict()
        with torch.no_grad():
            for name in own.keys() & given.keys():
                own[name].copy_(given[name])
    return method.train()


def states_of(model, batch: Batch, layer="last", skip=1) -> torch.Tensor:
    """Row by row, without any padding."""
    found = []
    ids_BT, role_BT = whole(batch, MARKERS)
    for ids_T, role_T in zip(ids_BT, role_BT, strict=True):
        real_T = ids_T != IGNORE
        found.append(read_states(model, ids_T[real_T][None], role_T[real_T][None], (layer,))[layer][0, skip:])
    return torch.cat(found)


def moments_of(*states: torch.Tensor) -> Moments:
    moments = Moments(WIDTH)
    for part in states:
        moments.update(part)
    return moments


def learn(method, batches, steps: int | None = None, accumulate=1, **optim):
    """A stage over these batches of 8 rows; its records."""
    config = TrainConfig(steps=steps or len(batches), batch_size=8, accumulate=accumulate, precision="fp32")
    optim = OptimConfig(**{"lr": 1e-2, "weight_decay": 0.0, "clip": 0.0} | optim)
    state = TrainState.create(method, config, optim)

    def batch_at(step, lane, lanes, rank, world):
        rows = slice(lane * 8 // lanes, (lane + 1) * 8 // lanes)
        batch = batches[step % len(batches)]
        return Batch(**{name: getattr(batch, name)[rows] for name in batch.__dataclass_fields__})

    records = list(train(state, batch_at, config, optim))
    state.finish()
    return records


TEXTS = [text(8, seed) for seed in range(6)]


@pytest.mark.parametrize("layer", ["last", "pre_norm", 1, 0])
def test_it_is_the_pca_of_the_counted_states_of_its_layer(model, layer):
    method = made(model, layers=[layer])
    learn(method, TEXTS)
    wanted = pca(moments_of(*(states_of(model, batch, layer) for batch in TEXTS)), 4)
    (found,) = method.solved()
    states_ND = states_of(model, text(8, 99), layer)
    torch.testing.assert_close(found(states_ND), wanted(states_ND), rtol=1e-3, atol=1e-4)
    assert float(method.text[0].count) == sum(len(states_of(model, batch, layer)) for batch in TEXTS)


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_what_is_counted_is_every_state_but_padding_and_the_first(model, skip):
    method, batch = made(model, skip_first=skip), TEXTS[0]
    lengths = (batch.prompt_BP != IGNORE).sum(1)
    assert method.units(batch) == {
        "state": int((lengths - skip).clamp(min=0).sum()),
        "token": int((lengths - 1).sum()),
    }
    learn(method, [batch])
    torch.testing.assert_close(method.moments().mean_D(), states_of(model, batch, skip=skip).double().mean(0))


def test_lanes_change_nothing(model):
    one, other = made(model), made(model)
    records = [learn(method, TEXTS, accumulate=lanes) for method, lanes in ((one, 1), (other, 4))]
    for a, b in zip(*records, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4) and a.grad_norm == b.grad_norm == 0
    torch.testing.assert_close(one.moments().covariance_DD(), other.moments().covariance_DD())


def test_the_curve_is_the_error_of_states_not_counted_yet(model):
    """The first loss knows nothing; later ones are those of the latest solution, on rows it has not seen."""
    records = learn(made(model), TEXTS)
    first = states_of(model, TEXTS[0])
    assert records[0].loss == pytest.approx(float(first.square().sum() / WIDTH / len(first)), rel=1e-4)
    second = states_of(model, TEXTS[1])
    error_ND = second - pca(moments_of(first), 4)(second)
    assert records[1].loss == pytest.approx(float(error_ND.square().sum() / WIDTH / len(second)), rel=1e-3)
    assert all(record.updated for record in records)


def test_neither_eval_mode_nor_a_cast_touches_the_sums(model):
    method = made(model)
    learn(method, TEXTS[:2])
    before = {name: buffer.clone() for name, buffer in method.text[0].named_buffers()}
    method.eval()(TEXTS[3])
    method.text.to(torch.bfloat16)
    for name, buffer in method.text[0].named_buffers():
        assert torch.equal(buffer, before[name]) and buffer.dtype == before[name].dtype, name


def test_the_second_stage_counts_rows_with_steps_into_a_set_of_its_own(model):
    first = made(model)
    learn(first, TEXTS)
    rows = [solutions(8, seed) for seed in range(3)]
    second = made(model, first, stage="1b", blend=0.3)
    learn(second, rows)
    with_steps = [[row for row in range(8) if row % 3]] * 3
    thinking = moments_of(
        *(
            states_of(model, Batch(**{n: getattr(batch, n)[kept] for n in batch.__dataclass_fields__}))
            for batch, kept in zip(rows, with_steps, strict=True)
        )
    )
    assert float(second.thinking[0].count) == float(thinking.count)
    wanted = moments_of(*(states_of(model, batch) for batch in TEXTS)).blend(thinking, 0.3)
    torch.testing.assert_close(second.moments().covariance_DD(), wanted.covariance_DD(), rtol=1e-5, atol=1e-6)
    for weight, alone in ((0.0, first.moments()), (1.0, thinking)):  # any weight, without reading anew
        again = made(model, second, stage="1b", blend=weight)
        torch.testing.assert_close(
            again.moments().covariance_DD(), alone.covariance_DD(), rtol=1e-5, atol=1e-6
        )


def test_a_second_stage_without_a_first_is_refused_unless_it_stands_alone(model):
    rows = [solutions(8)]
    with pytest.raises(UserError, match=r"no states of a stage 1a.*method\.blend=1"):
        learn(made(model, stage="1b"), rows)
    learn(made(model, stage="1b", blend=1), rows)
    diagnosis = examine(made(model, stage="1b", blend=1), TEXTS[0])
    assert [finding.check for finding in diagnosis.findings] == ["missing-field"]


def held_out_error(method) -> float:
    method.eval()
    out, counts = method(TEXTS[0]), method.units(TEXTS[0])
    return float(out.terms["reconstruction"].total) / counts["state"]


@pytest.mark.parametrize("centred", [True, False])
def test_a_trained_map_learns_and_is_never_better_than_pca(model, centred):
    closed, tied = made(model, centred=centred), made(model, centred=centred, kind="tied")
    learn(closed, TEXTS[:1], steps=2)
    before = learn(tied, TEXTS[:1], steps=1)[0].loss
    records = learn(tied, TEXTS[:1], steps=120)
    best = held_out_error(closed)
    assert best <= held_out_error(tied) * (1 + 1e-6) < before
    assert records[-1].loss < 1.3 * best and tied.counts is False
    assert held_out_error(tied) == pytest.approx(records[-1].loss, rel=0.05)


def test_a_trained_map_goes_on_from_a_solved_one(model):
    closed = made(model)
    learn(closed, TEXTS)
    tied = made(model, closed, kind="tied")
    assert learn(tied, TEXTS, steps=1)[0].loss == pytest.approx(
        learn(closed, TEXTS, steps=1)[0].loss, rel=0.1
    )


def test_figures_are_those_of_the_round_trip_inside_the_model(model):
    method = made(model, layers=["last", 1], widths=[2])
    learn(method, TEXTS)
    method.eval()
    batch = text(3, 50)
    out = method(batch)
    found = {name: float(total / count) for name, (total, count) in out.metrics.items()}
    states_ND = states_of(model, batch)
    for width in (2, 4):
        part = method.solved()[0].sliced(width)
        told_ND = part(states_ND)
        kl = torch.nn.functional.kl_div(
            model.logits(told_ND).log_softmax(-1),
            model.logits(states_ND).log_softmax(-1),
            reduction="batchmean",
            log_target=True,
        )
        mean_D = method.moments().mean_D()
        left = (states_ND - told_ND).square().sum() / (states_ND - mean_D).square().sum()
        assert found[f"last/{width}/kl"] == pytest.approx(float(kl), rel=1e-3)
        assert found[f"last/{width}/centred_r2"] == pytest.approx(1 - float(left), rel=1e-3)
        cosine = torch.nn.functional.cosine_similarity(states_ND, told_ND).mean()
        assert found[f"last/{width}/cosine"] == pytest.approx(float(cosine), rel=1e-3)
    assert found["last/4/kl"] < found["last/2/kl"] and found["1/4/kl"] < found["1/2/kl"]


def test_all_directions_lose_nothing_in_any_layer(model):
    method = made(model, layers=["last", "pre_norm", 1, 0], d_compressed=WIDTH, skip_first=0)
    learn(method, TEXTS)
    batch = text(3, 50)
    out = method.eval()(batch)
    found = {name: float(total / count) for name, (total, count) in out.metrics.items()}
    after = float(out.terms["lm"].total) / method.units(batch)["token"]
    assert after == pytest.approx(found["uncompressed/nll"], rel=1e-4)
    for layer in method.config.layers:
        assert found[f"{layer}/{WIDTH}/kl"] == pytest.approx(0, abs=1e-4)
        assert found[f"{layer}/{WIDTH}/centred_r2"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("metric", ["fisher", "unembedding"])
def test_a_metric_is_that_of_the_head(model, metric):
    method = made(model, kind="metric", metric=metric)
    learn(method, TEXTS)
    head_VD = model.model.get_output_embeddings().weight.detach()
    if metric == "fisher":
        shown = []
        for batch in TEXTS:  # every eighth counted position of a row
            for row in range(len(batch)):
                one = Batch(**{n: getattr(batch, n)[row : row + 1] for n in batch.__dataclass_fields__})
                shown.append(states_of(model, one)[7::8])
        metric_DD = fisher_metric(head_VD, model.logits(torch.cat(shown)).softmax(-1))
    else:
        metric_DD = head_VD.T.double() @ head_VD.double()
    moments = moments_of(*(states_of(model, batch) for batch in TEXTS))
    states_ND = states_of(model, text(3, 50))
    wanted = metric_pca(moments, metric_DD, 4, ridge=method.config.ridge)
    torch.testing.assert_close(method.solved()[0](states_ND), wanted(states_ND), rtol=1e-3, atol=1e-3)


def test_files_fit_their_layer_and_nothing_else(model, tmp_path):
    method = made(model, layers=["last", 1], centred=False)
    learn(method, TEXTS)
    paths = method.export(tmp_path)
    assert [path.name for path in paths] == ["compressor-last.safetensors", "compressor-1.safetensors"]
    origin = read_origin(paths[1])
    assert (origin.layer, origin.kind, origin.centred, origin.skipped) == (1, "pca", False, 1)
    assert origin.tokens == int(method.text[1].count)
    right = {"identity": model.identity, "layer": 1, "hidden_size": WIDTH}
    loaded = load_compressor(paths[1], **right, width=3)
    states_ND = states_of(model, text(3, 50), 1)
    torch.testing.assert_close(loaded(states_ND), method.solved()[1].sliced(3)(states_ND))
    for wrong in ({"layer": "last"}, {"hidden_size": 32}, {"identity": {"path": "x"}}, {"width": 5}):
        with pytest.raises(UserError, match="compressor"):
            load_compressor(paths[1], **right | wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_compressed": 17}, "17: states of this model have 16 numbers"),
        ({"widths": [5]}, r"widths=\[5\] must lie between 1 and d_compressed=4"),
        ({"kind": "metric", "layers": [1]}, r"needs layers=\[last\]"),
        ({"kind": "metric", "centred": False}, "centred=true"),
        ({"layers": []}, "layers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(model, settings, message):
    with pytest.raises(UserError, match=message):
        made(model, **settings)


def test_it_answers_nothing_and_says_so(model):
    with pytest.raises(UserError, match="answers nothing"):
        made(model).generate(TEXTS[0].prompt_BP, max_new_tokens=1)


@pytest.mark.parametrize("batch", [text(8), solutions(8)], ids=["text", "solutions"])
@pytest.mark.parametrize(
    "settings", [{}, {"kind": "metric"}, {"kind": "tied"}, {"layers": [1, "last"]}, {"layers": [1]}], ids=str
)
def test_the_doctor_finds_it_healthy(model, settings, batch):
    method = made(model, **settings)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    diagnosis = examine(method, batch)
    assert diagnosis.healthy, [str(finding) for finding in diagnosis.findings]
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


def test_the_doctor_still_sees_a_model_that_reads_ahead(model):
    method = made(model)
    hook = model.register_forward_hook(
        lambda module, args, states: replace(
            states, hidden_BTD=states.hidden_BTD + states.hidden_BTD.mean(1, keepdim=True)
        )
    )
    found = {finding.check for finding in examine(method, TEXTS[0]).findings}
    hook.remove()
    assert "future-leak" in found


def test_states_that_are_not_finite_are_refused(model):
    method = made(model)
    hook = model.model.get_decoder().norm.register_forward_hook(lambda *args: args[-1] * float("inf"))
    with pytest.raises(UserError, match=r"layer last: .*not finite.*backbone\.dtype=float32"):
        method(TEXTS[0])
    hook.remove()
    assert not method.text[0].seen
