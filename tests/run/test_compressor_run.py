"""From recipe to file: a model learns, its states are counted, and what others load lies in the run."""

import hashlib

import pytest

from quietreasoning.backbone.compressor_file import load_compressor, read_origin
from quietreasoning.run import evaluate_run, next_commands, open_run, resolve, train_run
from quietreasoning.track import read_log

SMALL = [
    "backbone.scratch={layers: 1, width: 32, heads: 2, context: 128, tie: true}",
    *("train.save_every=0", "train.batch_size=8", "eval.n=10", "eval.batch_size=5", "data.valid=20"),
    *("stages.model.train.steps=3", "stages.text.train.steps=3", "stages.text.train.eval_every=3"),
    *("stages.thinking.train.steps=3", "stages.thinking.train.eval_every=3", "track.console=false"),
    *(f"stages.{stage}.train.batch_size=8" for stage in ("text", "thinking")),
    *(f"stages.{stage}.method.d_compressed=6" for stage in ("text", "thinking")),
    *(f"stages.{stage}.method.widths=[2]" for stage in ("text", "thinking")),
    "stages.model.data.train=200",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    resolved = resolve("recursion/compressor-thinking-tiny", SMALL, str(out))
    assert train_run(resolved) == 0
    return resolved


def test_the_file_is_that_of_the_runs_own_model(run):
    path, loaded = run.out / "compressor-last.safetensors", open_run(run.out)
    method = loaded.method
    origin = read_origin(path)
    assert origin.kind == "pca" and origin.tokens == int(method.moments().count) > 0
    assert method.text[0].seen > 0 and method.thinking[0].seen > 0
    identity = method.backbone.identity
    found = load_compressor(path, identity=identity, layer="last", hidden_size=32, width=2)
    assert found.width == 2


def test_the_same_command_writes_the_same_file_again(run):
    path = run.out / "compressor-last.safetensors"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.unlink()
    assert train_run(run, doctor=False) == 0
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_log_and_evaluation_hold_the_figures_of_every_width(run, capsys):
    logged = [row for row in read_log(run.out / "log.jsonl") if "eval/pointer/compressor/last/6/kl" in row]
    assert [row["stage"] for row in logged] == ["text", "thinking"]
    (row,) = evaluate_run(str(run.out))
    assert row["method"] == "compressor" and row["n"] == 10 and row["tokens"] > 0
    shown = capsys.readouterr().out
    for width in (2, 6):
        for measure in ("cosine", "centred_r2", "kl"):
            value = row["figures"][f"last/{width}/{measure}"]
            assert value == pytest.approx(logged[-1][f"eval/pointer/compressor/last/{width}/{measure}"])
            assert f"{value:.4f}" in shown
    assert row["figures"]["last/6/centred_r2"] > row["figures"]["last/2/centred_r2"]


def test_chat_is_not_offered_for_a_method_that_answers_nothing(run):
    assert "chat" not in next_commands(run.out) and "quiet eval" in next_commands(run.out)
