"""Old scripts and Make targets: what they are in our words, and that they run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import quietreasoning
from quietreasoning.config import UserError
from quietreasoning.recipe import RECIPES, load_recipe
from quietreasoning.training._shim import ENVIRONMENT, check_environment, command, run

ROOT = Path(__file__).parents[2]
PACKAGE = Path(quietreasoning.__file__).parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def words(line):
    return " ".join(command("distill/kd-tiny", "", line.split()))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("", "train distill/kd-tiny"),
        ("--config a.yaml b.yaml", "train distill/kd-tiny --config=a.yaml --config=b.yaml"),
        ("--config a.yaml --config b.yaml", "train distill/kd-tiny --config=a.yaml --config=b.yaml"),
        (
            "--checkpoint runs/kd --steps 9 --save-every 3 --log-every 1 --output-dir out --resume",
            "train distill/kd-tiny init=runs/kd train.steps=9 train.save_every=3 train.log_every=1 --out=out "
            "--resume",
        ),
        ("--data rows.jsonl", "train distill/kd-tiny data.task=teacher-rows data.path=rows.jsonl"),
        ("--data 1e3 --recipe distill/kd", 'train distill/kd data.task=teacher-rows data.path="1e3"'),
        ("--config a.yaml seed=3", "train distill/kd-tiny seed=3 --config=a.yaml"),
    ],
)
def test_flags_become_a_command(flags, says):
    assert words(flags) == says


def test_a_script_has_settings_of_its_own_and_the_users_win():
    more = {"settings": ("method.weights.kd=0",), "with_data": ("data.tokenizer.train=bpe",)}
    found = command("distill/answer-tiny", "", ["method.weights.kd=1", "--data", "a.jsonl"], **more)
    assert found[2:] == [
        *("method.weights.kd=0", "data.task=teacher-rows", "data.path=a.jsonl", "data.tokenizer.train=bpe"),
        "method.weights.kd=1",
    ]
    assert "data.tokenizer.train=bpe" not in command(
        "distill/answer-tiny", "", ["--recipe", "distill/answer", "--data", "a.jsonl"], **more
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--checkpoint models/latest.pt", "give the folder that quiet train wrote"),
        ("--local-rank=0", "--nproc"),
        ("--resume --force-resume-with-changed-dataset", "another run"),
    ],
)
def test_flags_without_a_counterpart_are_refused(flags, says):
    with pytest.raises(UserError, match=says):
        words(flags)


def test_old_variables_are_refused_and_none_is_read():
    check_environment({"HOME": "/", "MAX_LOOPS": ""})
    for name in ENVIRONMENT:
        with pytest.raises(UserError, match=f"{name}='1' is set and not read here: .*unset it"):
            check_environment({name: "1"})


def test_every_shipped_old_file_is_read_whole(tmp_path):
    (tmp_path / "r.yaml").write_text("method: {name: distill}\ntrain: {steps: 1}", encoding="utf-8")
    found = load_recipe(str(tmp_path / "r.yaml"), configs=CONFIGS)
    assert len(CONFIGS) == 4 and found.values["method"]["weights"]["kd"] == pytest.approx(0.35)
    assert found.values["train"]["quant"]["start"] == 0.8 and found.values["optim"]["lr"] == 2e-4


def test_a_script_prints_its_command_and_becomes_it(tmp_path, monkeypatch, capsys):
    """Up to the first fault in its file, which `quiet train` names; training is proved elsewhere."""
    monkeypatch.setattr(sys, "argv", ["distill_kd"])
    (tmp_path / "a.yaml").write_text("optim: {lrr: 0.5}", encoding="utf-8")
    for flags, says in (
        (
            ["--recipe", "cot/pointer", "--config", f"{tmp_path}/a.yaml"],
            r"optim\.lr'\?.*from config .*a\.yaml",
        ),
        (["--local-rank=1"], "--local-rank is not here"),
        (["--steps=many"], r"argument --steps: invalid int value: 'many'; --help lists"),
        (["--sleps=3"], r"unrecognized arguments: --sleps=3; --help lists"),
    ):
        with pytest.raises(SystemExit) as ended:
            run("distill/kd-tiny", "", flags)
        assert (
            ended.value.code == 2 and re.search(says, err := capsys.readouterr().err) and "usage" not in err
        )
        assert err.startswith("$ quiet train cot/pointer --config=") == (len(flags) > 1)


def test_every_script_stands_for_a_recipe():
    scripts = [path.read_text() for path in (PACKAGE / "training").glob("distill_*.py")]
    named = [name for text in scripts for name in re.findall(r'^    run\("([^"]+)"', text, re.MULTILINE)]
    assert len(scripts) == 4 and len(named) == 3 and set(named) <= set(RECIPES)


def test_the_deprecated_script_points_to_what_took_its_place():
    script = [sys.executable, "-m", "quietreasoning.training.distill_intermediate"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT / "src")
    assert (
        done.returncode == 2 and "intermediate_layer_weight" in done.stderr and done.stderr.count("\n") == 1
    )


@pytest.mark.parametrize(
    ("target", "recipe"),
    [
        ("worker", "worker-tiny --config a.yaml"),
        ("kd", "kd-tiny --config a.yaml"),
        ("proc", "process-tiny --config a.yaml"),
        ("answer", "answer-tiny --config a.yaml"),
        ("qat", "qat-tiny --config a.yaml"),
    ],
)
def test_make_targets_pass_files_and_settings_on(target, recipe):
    make = ["make", "-n", "--no-print-directory", target, "CONFIG=a.yaml", "ARGS=train.steps=1"]
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(make, capture_output=True, text=True, cwd=ROOT, env=outside)
    line = done.stdout.strip().splitlines()[-1]
    assert " ".join(line.split()) == f".venv/bin/quiet train distill/{recipe} train.steps=1"
