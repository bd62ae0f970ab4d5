"""Old flags of a distillation script -> the words of `quiet train`."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from quietreasoning.config import UserError
from quietreasoning.yaml_text import parse_yaml

SETTING = re.compile(r"[A-Za-z_][\w.-]*=")
LAUNCHED = "processes are started by `quiet train RECIPE --nproc N`"
REFUSED = {  # old flags that nothing here stands for
    "--local-rank": LAUNCHED,
    "--local_rank": LAUNCHED,
    "--force-resume-with-changed-dataset": (
        "a run on changed data is another run: give another --output-dir, and --checkpoint with the old one"
    ),
}
ENVIRONMENT = {  # old variables -> what to do instead
    "TRAIN_CODE_MODE": "learn from rows that hold programs",
    "TRAIN_LATENT": "train a recipe of continuous",
    "LATENT_MODE": "train a recipe of continuous",
    "MAX_LOOPS": "set method.latents of continuous, or give `quiet generate` an --effort",
    "EVAL_LATENT": "give `quiet generate` an --effort, or set eval.efforts",
    "HALT_HEAD": "set method.halt of continuous",
}


def run(
    recipe: str,
    about: str,
    argv: Sequence[str] | None = None,
    *,
    settings: Sequence[str] = (),
    with_data: Sequence[str] = (),
) -> None:
    """Print the command that these flags are, and become it; ends in SystemExit with its code.

    settings: what the script stands for besides its recipe. with_data: what that recipe needs for rows of a
    file.
    """
    from quietreasoning.cli.main import main

    try:
        check_environment(os.environ)
        given = sys.argv[1:] if argv is None else argv
        words = command(recipe, about, given, settings=settings, with_data=with_data)
    except UserError as error:
        refuse(error)
    print(f"$ quiet {shlex.join(words)}", file=sys.stderr, flush=True)
    sys.argv = ["quiet", *words]
    main()


def refuse(error: UserError) -> NoReturn:
    """One line, and the exit code of bad input."""
    from quietreasoning.cli.guard import EXIT_BAD_INPUT, complain

    complain(" ".join(str(error).split()))
    raise SystemExit(EXIT_BAD_INPUT) from None


class Parser(argparse.ArgumentParser):
    """Flags that it does not take are bad input like any other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists what this script takes")


def command(
    recipe: str,
    about: str,
    argv: Sequence[str],
    *,
    settings: Sequence[str] = (),
    with_data: Sequence[str] = (),
) -> list[str]:
    """The words after `quiet`; a user's own settings come last. UserError for a flag or a value that nothing
    stands for."""
    for flag, cure in REFUSED.items():
        if any(word == flag or word.startswith(f"{flag}=") for word in argv):
            raise UserError(f"{flag} is not here: {cure}")
    own = [word for word in argv if SETTING.match(word)]
    given = parser(recipe, about).parse_args([word for word in argv if word not in own])
    if given.checkpoint is not None and given.checkpoint.endswith((".pt", ".pth", ".bin")):
        raise UserError(
            f"--checkpoint={given.checkpoint}: no file of weights is read; give the folder that quiet train "
            "wrote"
        )
    said = [*settings]
    if given.checkpoint is not None:
        said.append(f"init={_quoted(given.checkpoint)}")
    if given.data is not None:
        said += ["data.task=teacher-rows", f"data.path={_quoted(given.data)}"]
        said += with_data if given.recipe == recipe else ()
    for name in ("steps", "save_every", "log_every"):
        if getattr(given, name) is not None:
            said.append(f"train.{name}={getattr(given, name)}")
    words = ["train", given.recipe, *said, *own]
    words += [f"--config={file}" for files in given.config for file in files]
    words += [f"--out={given.output_dir}"] * (given.output_dir is not None)
    return words + ["--resume"] * given.resume


def parser(recipe: str, about: str) -> argparse.ArgumentParser:
    """What a script takes."""
    more = "Settings A.B=C may stand anywhere, as quiet train has them."
    made = Parser(description=about, epilog=more, allow_abbrev=False)
    made.add_argument(
        "--config", nargs="+", action="append", default=[], metavar="FILE", help="YAML files, laid in order"
    )
    made.add_argument("--recipe", default=recipe, help=f"recipe to train; default: {recipe}")
    made.add_argument("--checkpoint", metavar="RUN", help="run folder to start from")
    made.add_argument("--data", metavar="FILE", help="JSONL of rows, or a folder")
    made.add_argument("--output-dir", metavar="DIR", help="run folder")
    made.add_argument("--resume", action="store_true", help="refuse to start anew")
    for name in ("steps", "save-every", "log-every"):
        made.add_argument(f"--{name}", type=int, metavar="N", help=f"train.{name.replace('-', '_')}")
    return made


def check_environment(environment: Mapping[str, str]) -> None:
    """UserError where an old variable is set: none is read here, and none is passed over."""
    for name, cure in ENVIRONMENT.items():
        if environment.get(name):
            raise UserError(
                f"{name}={environment[name]!r:.40} is set and not read here: {cure}, and unset it"
            )


def _quoted(text: str) -> str:
    return text if parse_yaml(text, text) == text else f'"{text}"'
