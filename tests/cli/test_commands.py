"""The commands as users call them: exit codes, one clear line, JSON that parses."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from quietreasoning.cli.main import app

TINY = [
    "backbone.scratch={layers: 1, width: 32, heads: 2, context: 128}",
    "train.steps=4",
    "train.batch_size=4",
]
TINY += ["eval.n=4", "data.train=64", "data.valid=16", "data.test=16", "train.save_every=2"]


def quiet(*arguments, stdin=None):
    """Run in this process; (exit code, stdout, stderr)."""
    done = CliRunner().invoke(app, list(arguments), input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cot"
    code, _, err = quiet("train", "cot/pointer", *TINY, "--no-doctor", "--out", str(folder))
    assert code == 0, err
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "cot/pointr"], "Did you mean 'cot/pointer'?"),
        (
            ["train", "cot/pointer", "train.stpes=4"],
            "train.stpes=4: no such setting. Did you mean 'train.steps'?",
        ),
        (
            ["train", "cot/pointer", "train.steps=no"],
            "train.steps='no': must be a whole number (from command line)",
        ),
        (
            ["train", "cot/pointer", "method.name=cott"],
            "method.name=cott: names no method. Did you mean 'cot'?",
        ),
        (["train", "cot/pointer", "data.task=pointr"], "Did you mean 'pointer'?"),
        (["train", "cot/pointer", "steps"], "Write key=value"),
        (["train", "cot/pointer", "backbone.path=./nowhere"], "nowhere"),
        (["train", "cot/gsm8k"], "set data.path=FILE"),
        (["train", "workspace/3b"], "stages.latent_distill.data.path=FILE"),
        (["train", "cot/gsm8k", "data.path=./nowhere.jsonl"], "nowhere.jsonl"),
        (["train", "./nowhere.yaml"], "no recipe file"),
        (["show"], "name a recipe"),
        (["eval", "./nowhere"], "nowhere"),
        (["report", "./nowhere"], "nowhere"),
        (["chat", "./nowhere"], "nowhere"),
        (["generate", "./nowhere", "--prompt", "x"], "nowhere"),
        (["demo", "--seeds", "a,b"], "--seeds a,b: must be whole numbers"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = quiet(*arguments)
    assert code == 2 and says in err
    assert err.count("\n") == 1 and "Traceback" not in out + err


def test_list_names_recipes_tasks_and_methods():
    code, out, _ = quiet("list")
    assert code == 0 and all(word in out for word in ("slots/lotus", "gsm8k", "continuous"))


def test_show_prints_every_value_and_its_source():
    code, out, _ = quiet("show", "slots/pointer", "optim.lr=3e-4", "--json", "-")
    rows = {row["key"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["stages.chain.optim.lr"] == {
        "key": "stages.chain.optim.lr",
        "value": 3e-4,
        "source": "command line",
    }
    assert rows["seed"]["source"] == "default"
    assert rows["stages.steps.method.loops"]["source"] == "recipe slots/pointer, stage steps"


def test_the_schema_knows_every_method():
    code, out, _ = quiet("show", "--schema")
    text = json.dumps(json.loads(out))
    assert code == 0 and all(word in text for word in ("loops", "fillers", "latents", "hops", "save_every"))


def test_plan_prints_figures():
    code, out, _ = quiet("plan", "cot/pointer", *TINY, "--json", "-")
    assert code == 0 and json.loads(out)


def test_plan_tells_which_files_are_to_be_named():
    code, out, _ = quiet("plan", "cot/gsm8k-tiny")
    (line,) = [line for line in out.splitlines() if line.startswith("to be set before training")]
    assert code == 0 and line.split()[-1] == "data.path" and "memory per device" in out


def test_doctor_passes_a_tiny_recipe_and_describes_the_machine():
    assert quiet("doctor", "cot/pointer", *TINY)[0] == 0
    code, out, _ = quiet("doctor", "--json", "-")
    assert code == 0 and "torch" in json.loads(out)["machine"]


def test_dry_run_leaves_nothing(tmp_path):
    code, _, err = quiet("train", "cot/pointer", *TINY, "--dry-run", "--out", str(tmp_path / "run"))
    assert code == 0, err
    assert not list(tmp_path.glob("run/step-*"))


def test_a_second_run_into_the_same_folder_is_refused(trained):
    code, _, err = quiet("train", "cot/pointer", *TINY, "train.steps=5", "--no-doctor", "--out", str(trained))
    assert code == 2 and str(trained) in err


def test_eval_writes_rows(trained, tmp_path):
    file = tmp_path / "rows.json"
    code, _, err = quiet("eval", str(trained), "--n", "4", "--controls", "none", "--json", str(file))
    assert code == 0, err
    rows = json.loads(file.read_text())
    needed = {"task", "method", "control", "seed", "n", "correct", "accuracy", "low", "high"}
    assert rows and all(needed | {"visible_tokens", "passes", "ms", "ms_batched"} <= set(row) for row in rows)


def test_eval_refuses_a_control_that_does_not_exist(trained):
    code, _, err = quiet("eval", str(trained), "--controls", "zro")
    assert code == 2 and "zro" in err and "zero" in err


def test_generate_and_chat_answer_and_name_the_cost(trained):
    prompt = "a > b , b > c ? a 1"
    code, out, err = quiet("generate", str(trained), "--prompt", prompt, "--max-new-tokens", "8")
    assert code == 0 and "passes" in out, err
    code, out, err = quiet("chat", str(trained), "--max-new-tokens", "8", stdin=f"{prompt}\n\n{prompt}\n")
    assert code == 0 and out.count("passes") == 2, err


def test_a_compressed_cache_is_a_setting_of_every_command_that_answers(trained):
    asked = [str(trained), "eval.kv_cache.bits=4", "eval.kv_cache.keep_frac=1"]
    code, out, err = quiet("generate", *asked, "--prompt", "a > b ? a 1", "--max-new-tokens", "4")
    assert code == 0 and "kB of keys and values" in out, err
    code, out, err = quiet("chat", *asked, "--max-new-tokens", "4", stdin="a > b ? a 1\n")
    assert code == 0 and "kB of keys and values" in out, err
    code, _, err = quiet("generate", str(trained), "eval.n=3", "--prompt", "a")
    assert code == 2 and "eval.n=3: has no effect on one answer" in err
    code, out, err = quiet(
        "eval", str(trained), "eval.kv_caches.int4={keep_frac: 1, bits: 4}", "eval.timing=0"
    )
    assert code == 0 and "(int4)" in out and "key/value caches" in out, err
    code, _, err = quiet("eval", str(trained), "--gate", "theater", "eval.kv_cache.bits=4")
    assert code == 2 and "drop eval.kv_cache" in err


def test_generate_refuses_an_effort_without_a_dial(trained):
    code, _, err = quiet("generate", str(trained), "--prompt", "a > b ? a 1", "--effort", "3")
    assert code == 2 and "effort" in err


def test_report_names_the_page(trained):
    code, out, err = quiet("report", str(trained))
    assert code == 0 and out.strip().endswith(".html"), err


def test_two_ranks_train_by_the_same_command(tmp_path):
    arguments = [sys.executable, "-m", "quietreasoning.cli.main", "train", "cot/pointer", *TINY]
    arguments += ["--no-doctor", "--nproc", "2", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("run/step-000004/rank-*")} == {
        "rank-0.safetensors",
        "rank-1.safetensors",
    }
