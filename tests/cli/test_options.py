"""The set of commands and options is frozen: settings belong in recipes, not in new flags."""

import subprocess
import sys

import pytest
import typer

from quietreasoning.cli.main import app

OPTIONS = {
    "demo": ["--seeds", "--out", "--json"],
    "train": [
        *("recipe", "settings", "--config", "--resume", "--dry-run", "--no-doctor", "--nproc", "--out"),
        "--json",
    ],
    "eval": ["run", "settings", "--task", "--n", "--controls", "--gate", "--rules", "--json"],
    "report": ["runs"],
    "doctor": ["recipe", "settings", "--config", "--json"],
    "plan": ["recipe", "settings", "--config", "--json"],
    "show": ["recipe", "settings", "--config", "--schema", "--json"],
    "list": [],
    "generate": ["run", "settings", "--prompt", "--effort", "--max-new-tokens"],
    "chat": ["run", "settings", "--effort", "--max-new-tokens"],
    "export": ["run", "folder", "--dtype", "--int8", "--torchao", "--json"],
    "migrate": [
        *("folder", "out", "--tokenizer", "--trim", "--add", "--add-special", "--rows"),
        *("--pad-to-multiple", "--json"),
    ],
    "push": [
        *("run", "repo", "--dry-run", "--private", "--revision", "--out", "--license", "--base"),
        *("--with-base", "--json"),
    ],
    "score": ["file", "--rules", "--evidence", "--field", "--json"],
}


DATA = {
    "data pairs": [
        *("model", "settings", "--dataset", "--path", "--split", "--allow-test", "--out", "--num-samples"),
        *("--samples-per-problem", "--batch-size", "--max-new-tokens", "--checkpoint-every"),
        *("--no-auto-resume", "--temperature", "--seed", "--keep", "--layers", "--dtype", "--target"),
        *("--stop-at-close", "--keep-system-prefix", "--revision", "--system", "--instruction", "--date"),
        *("--open", "--close", "--nproc", "--json"),
    ],
    "data teacher": [
        *("model", "settings", "--recipe", "--stage", "--dataset", "--split", "--no-steps", "--out", "--k"),
        *("--coverage", "--draws", "--seed", "--temperature", "--dtype", "--revision", "--batch-size"),
        *("--rows-per-shard", "--no-auto-resume", "--nproc", "--json"),
    ],
    "data texts": [
        *(
            "model",
            "settings",
            "--recipe",
            "--stage",
            "--split",
            "--n",
            "--out",
            "--temperature",
            "--samples",
        ),
        *("--seed", "--max-new-tokens", "--no-steps", "--keep", "--rules", "--dtype", "--revision"),
        *("--batch-size", "--json"),
    ],
    "data export-pairs": ["folder", "file", "--layer", "--split"],
    "data import-pairs": ["file", "--out", "--model", "--layer"],
}


INDEX = {
    "index keys": [
        *("model", "settings", "--recipe", "--dataset", "--split", "--no-steps", "--out", "--batch-size"),
        *("--rows-per-shard", "--dtype", "--revision", "--json"),
    ],
    "index pkm": ["--path", "--slots", "--value-dim", "--run", "--json"],
    "index knn": ["--keys", "--values", "--output", "--dim", "--factory", "--nprobe", "--json"],
    "index episodic": [
        *("--input", "--run", "--text", "--surprise", "--cooldown", "--output", "--encoder", "--vectors"),
        *("--backend", "--ttl-days", "--json"),
    ],
    "index verify-knn": ["--index", "--queries", "--k", "--keys", "--candidates", "--json"],
    "index consolidate": [
        *("run", "--store", "--min-hits", "--questions", "--held-out", "--tolerance", "--rollback", "--json"),
    ],
}
INNER = DATA | INDEX


def all_commands():
    """By name; `data` and `index` have their own inside, as `data pairs`."""
    commands = dict(typer.main.get_command(app).commands)
    for room in ("data", "index"):
        inner = commands.pop(room).commands
        commands |= {f"{room} {name}": command for name, command in inner.items()}
    return commands


def test_commands_and_options_are_frozen():
    commands = all_commands()
    found = {
        name: [
            next((option for option in parameter.opts if option.startswith("--")), parameter.name)
            for parameter in command.params
        ]
        for name, command in commands.items()
    }
    assert found == OPTIONS | INNER


@pytest.mark.parametrize("name", OPTIONS | INNER)
def test_every_command_and_option_has_help(name):
    command = all_commands()[name]
    assert command.help and all(getattr(parameter, "help", "") for parameter in command.params)


def test_help_imports_nothing_slow():
    script = (
        "import sys; from quietreasoning.cli.main import main; sys.argv = ['quiet', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "slow = {'torch', 'transformers', 'matplotlib', 'pydantic', 'numpy', 'faiss'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
