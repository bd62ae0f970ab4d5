"""What goes wrong for users, through the command line: one clear line, a right exit code, nothing lost."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from command_child import command
from typer.testing import CliRunner

from quietreasoning.cli.main import app
from quietreasoning.track import read_log

SMALL = [
    "backbone.scratch={layers: 1, width: 32, heads: 2, context: 128}",
    *("train.steps=4", "train.batch_size=4", "train.save_every=1", "train.eval_every=0"),
    *("data.train=64", "data.valid=16", "data.test=16", "eval.n=4", "eval.timing=0", "eval.max_new_tokens=8"),
]
TRAIN = ["train", "cot/pointer", *SMALL, "--no-doctor"]
FROM_FILE = ["train", "cot/gsm8k-tiny", SMALL[0], *SMALL[1:5], "--no-doctor", "data.tokenizer.vocab=300"]
LINE = json.dumps({"question": "What is 1 + 2 ?", "answer": "1 + 2 = <<1+2=3>>3\n#### 3"})


def quiet(*arguments, stdin=None):
    """Run in this process; (exit code, stdout, stderr)."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def refused(*arguments, stdin=None):
    """The one line of a refusal."""
    code, out, err = quiet(*arguments, stdin=stdin)
    assert code == 2 and err.count("\n") == 1 and "Traceback" not in out + err, err
    return err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cot"
    code, _, err = quiet(*TRAIN, "--out", folder)
    assert code == 0, err
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def last(folder):
    return (folder / "step-000004" / "method.safetensors").read_bytes()


# --- a run and what stands in its folder


def test_a_finished_run_says_so_and_what_comes_next(run, trained):
    code, out, _ = quiet(*TRAIN, "--out", run)
    assert code == 0 and "nothing is left to train" in out
    assert f"next: quiet eval {run} ; quiet report {run} ; quiet chat {run}" in out
    assert last(run) == last(trained)


def test_another_run_is_not_overwritten(run, trained):
    assert "holds another run: seed: 0 -> 3" in refused(*TRAIN, "seed=3", "--out", run)
    assert last(run) == last(trained)
    assert (run / "config.yaml").read_bytes() == (trained / "config.yaml").read_bytes()


def test_foreign_files_and_files_in_the_way_are_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "holds no run" in refused(*TRAIN, "--out", tmp_path)
    assert "is a file" in refused(*TRAIN, "--out", tmp_path / "mine.txt")
    assert "is a file" in refused(*TRAIN, "--out", tmp_path / "mine.txt" / "deeper")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_resume_without_a_run_is_refused_and_leaves_nothing(tmp_path):
    assert "holds no checkpoint" in refused(*TRAIN, "--resume", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_start_that_was_refused_does_not_hold_its_folder(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join([LINE] * 20))
    start = [*FROM_FILE, f"data.path={tmp_path}/rows.jsonl", "--out", tmp_path / "run"]
    refused(*start, "data.max_prompt_tokens=1", "data.too_long=refuse")
    assert quiet(*start)[0] == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train.batch_size=3", "--nproc", "2"], "on 2 rank(s)"),
        (["train.accumulate=3"], "train.accumulate=3"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused_before_anything_is_written(tmp_path, settings, says):
    assert says in refused(*TRAIN, *settings, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_fault_is_counted_once():
    assert "more]" not in refused("show", "slots/pointer", "train.stpes=4")
    assert "[and 1 more]" in refused("show", "slots/pointer", "train.stpes=4", "train.epocs=4")


# --- damage


@pytest.mark.parametrize("how", ["flipped", "cut", "deleted"])
@pytest.mark.parametrize("name", ["method.safetensors", "state.json", "manifest.json"])
def test_damage_is_named_and_the_checkpoint_before_is_used(run, trained, how, name):
    file = run / "step-000004" / name
    content = file.read_bytes()
    if how == "deleted":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert "is damaged" in refused("eval", run / "step-000004")
    for words, stdin in ((["eval", run, "--n", "2"], None), (["chat", run], "? a 1\n")):
        code, _, err = quiet(*words, stdin=stdin)
        assert code == 0 and "step-000004 passed over" in err
    code, out, _ = quiet(*TRAIN, "--out", run)
    assert code == 0 and "step-000004 passed over" in out and "going on from step-000003" in out
    assert last(run) == last(trained)


def test_a_damaged_older_checkpoint_does_not_stop_the_run(run, trained):
    (run / "step-000003" / "state.json").write_text("{")
    shutil.copytree(run / "step-000004", run / "step-000002")  # older by name, so two are older than the last
    (run / "step-000002" / "state.json").unlink()
    assert quiet("eval", run, "--n", "2")[0] == 0
    assert quiet(*TRAIN, "--out", run)[0] == 0


def test_a_damaged_tokenizer_is_named_and_the_train_command_mends_it(run):
    file = run / "tokenizer" / "tokenizer.json"
    for damaged in (file.read_text()[:100], '{"a": 1}'):
        file.write_text(damaged)
        assert "writes it anew" in refused("eval", run)
        assert quiet(*TRAIN, "--out", run)[0] == 0
        assert quiet("generate", run, "--prompt", "? a 1")[0] == 0


def test_a_damaged_config_is_named(run):
    (run / "config.yaml").write_text((run / "config.yaml").read_text()[:200])
    assert "config.yaml is damaged" in refused("eval", run, "eval.n=2")


def test_a_damaged_evaluation_is_put_aside(run):
    (run / "eval").mkdir()
    (run / "eval" / "rows.json").write_text("{")
    assert quiet("eval", run, "--n", "2")[0] == 0
    assert {path.name for path in (run / "eval").iterdir()} == {"damaged-rows.json", "rows.json"}


# --- data and prompts


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no records"),
        ("\n\n", "holds no records"),
        (f"{LINE}\n{{oops\n{LINE}\n[1", "rows.jsonl:2: not JSON"),
        (f"{LINE}\n{{oops\n{LINE}\n[1", "2 of 4 records are broken"),
    ],
)
def test_bad_files_are_refused_and_leave_no_folder(tmp_path, content, says):
    (tmp_path / "rows.jsonl").write_text(content)
    start = [*FROM_FILE, f"data.path={tmp_path}/rows.jsonl", "--out", tmp_path / "run"]
    assert says in refused(*start)
    assert not (tmp_path / "run").exists()


def test_a_prompt_beyond_the_context_is_refused_wherever_it_comes_from(run, tmp_path):
    long = json.dumps({"question": "1 " * 300, "answer": "#### 3"})
    (tmp_path / "rows.jsonl").write_text("\n".join([LINE] * 20 + [long] * 20))
    start = [*FROM_FILE, f"data.path={tmp_path}/rows.jsonl", "--out", tmp_path / "new"]
    assert "tokens" in refused(*start, "data.too_long=refuse")
    assert "more than data.max_dropped_fraction" in refused(*start, "data.too_long=drop")
    assert "do not fit" in refused("eval", run, "eval.max_new_tokens=128")
    assert "the model's context is 128" in refused("generate", run, "--prompt", "a " * 200)
    assert "lower --max-new-tokens" in refused(
        "generate", run, "--prompt", "a " * 100, "--max-new-tokens", 64
    )
    assert "empty" in refused("generate", run, "--prompt", "")


def test_chat_names_unknown_words_goes_on_and_tells_by_its_exit_code(run):
    code, out, err = quiet("chat", run, stdin="\n? a 1 zebra\n" + "a " * 200 + "\n? a 1\n")
    assert code == 2 and out.count("passes") == 2
    assert "does not know: zebra" in err and "context is 128" in err


def test_wrong_figures_for_an_evaluation(run, tmp_path):
    assert "at least 1" in refused("eval", run, "eval.n=0")
    assert "has no effect on a trained run" in refused("eval", run, "train.steps=9")
    assert "at least 1" in refused("eval", run, "--n", "0")
    assert "is not there; checkpoints of" in refused("eval", run / "step-000400")
    (tmp_path / "bare").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "bare")
    assert "train it first" in refused("eval", tmp_path / "bare")
    assert "holds no run" in refused("report", (tmp_path / "empty").mkdir() or tmp_path / "empty")


def test_json_on_stdout_stands_alone_and_a_bad_file_is_named(run, tmp_path):
    code, out, _ = quiet("eval", run, "--n", "2", "--json", "-")
    assert code == 0 and json.loads(out)
    code, _, err = quiet("eval", run, "--n", "2", "--json", run / "config.yaml" / "rows.json")
    assert code == 2 and "cannot be written" in err


# --- model folders


@pytest.fixture
def model(tmp_path, trained):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=32)).save_pretrained(tmp_path / "model")
    return Path(shutil.copytree(trained / "tokenizer", tmp_path / "model", dirs_exist_ok=True))


def remote_code(model):
    config = json.loads((model / "config.json").read_text())
    config |= {
        "model_type": "weird",
        "auto_map": {"AutoConfig": "weird.C", "AutoModelForCausalLM": "weird.M"},
    }
    (model / "config.json").write_text(json.dumps(config))
    (model / "weird.py").write_text(f"open({str(model / 'it-ran')!r}, 'w')")


def remote_tokenizer(model):
    remote_code(model)
    (model / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["weird.T", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))


def pickled(model):
    import torch

    torch.save({}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def bad_tokenizer(model):
    (model / "tokenizer.json").write_text('{"a": 1}')


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (remote_code, "needs code from its own repository, which is never run"),
        (remote_tokenizer, "needs code from its own repository, which is never run"),
        (pickled, "pickled weights are never loaded"),
        (bad_tokenizer, "missing or damaged"),
    ],
)
def test_model_folders_that_cannot_be_used(model, tmp_path, spoil, says):
    spoil(model)
    (tmp_path / "rows.jsonl").write_text("\n".join([LINE] * 20))
    start = ["train", "cot/gsm8k", f"backbone.path={model}", f"data.path={tmp_path}/rows.jsonl"]
    assert says in refused(*start, "--no-doctor", "--out", tmp_path / "run")
    assert not (model / "it-ran").exists() and not list(tmp_path.glob("run/step-*"))


# --- real processes: signals and a full disk

SLOW = [*SMALL, "track.console_seconds=0", "train.log_every=1", "train.eval_every=2", "eval.n=8"]
SLOW += ["eval.batch_size=1", "eval.max_new_tokens=64", "train.save_every=100"]


def process(commands, arguments, at=None, number=None, limit_bytes=None):
    """Run in a process of its own, `number` sent at the first line that holds `at`; (exit code, output)."""
    ours, theirs = commands.Pipe(duplex=False)
    child = commands.Process(target=command, args=([str(a) for a in arguments], theirs, limit_bytes))
    child.start()
    theirs.close()
    lines = []
    for line in open(ours.fileno(), closefd=False):
        lines.append(line)
        if at is not None and at in line:
            os.kill(child.pid, number)
            at = None
    child.join()
    return child.exitcode, "".join(lines)


def losses(run):
    return [(row["step"], row["train/loss"]) for row in read_log(run / "log.jsonl") if "train/loss" in row]


def test_signals_leave_with_75_and_the_same_command_goes_on(commands, tmp_path):
    start = ["train", "cot/pointer", *SLOW, "--no-doctor", "--out"]
    assert quiet(*start, tmp_path / "through")[0] == 0
    run = tmp_path / "run"
    for at, number, says in (
        ("main step 1/4", signal.SIGTERM, "stopped at step"),
        ("main step 2/4", signal.SIGINT, "stopped while evaluating step 2"),
    ):
        code, out = process(commands, [*start, run], at, number)
        assert code == 75 and says in out and "Traceback" not in out, out
    code, out, _ = quiet(*start, run)
    assert code == 0 and "going on from step-000002" in out
    assert losses(run) == losses(tmp_path / "through") and len(losses(run)) == 4
    assert last(run) == last(tmp_path / "through")


def test_a_signal_while_data_is_prepared_leaves_nothing_to_mend(commands, tmp_path):
    start = [*TRAIN[:2], *SMALL, "data.train=4000", "--out", tmp_path / "run"]
    code, out = process(commands, start, "main: healthy", signal.SIGTERM)
    assert code == 75 and "the same command resumes" in out and "Traceback" not in out, out
    assert quiet(*start)[0] == 0


def test_a_signal_in_an_evaluation_keeps_the_earlier_one(commands, run):
    assert quiet("eval", run)[0] == 0
    rows = (run / "eval" / "rows.json").read_bytes()
    slow = ["eval", run, "eval.n=16", "eval.batch_size=1", "eval.max_new_tokens=64"]
    code, out = process(commands, slow, "evaluating", signal.SIGTERM)
    assert code == 75 and "the same command asks all again" in out
    assert (run / "eval" / "rows.json").read_bytes() == rows


def test_a_disk_that_refuses_a_save_loses_nothing(commands, tmp_path, trained):
    start = [*TRAIN, "train.keep=9", "--out", tmp_path / "run"]
    code, out = process(commands, start, limit_bytes=40_000)  # a weight file is larger
    assert code == 2 and "could not be written" in out and "Traceback" not in out
    assert quiet(*start)[0] == 0
    assert last(tmp_path / "run") == last(trained)
