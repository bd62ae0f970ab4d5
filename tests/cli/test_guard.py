"""Errors become one line and an exit code."""

import errno
import os

import pytest
import typer

from quietreasoning.cli.guard import guarded
from quietreasoning.config import UserError


class OutOfMemoryError(RuntimeError):
    pass


def outcome(error_or_code):
    def command():
        if isinstance(error_or_code, BaseException):
            raise error_or_code
        return error_or_code

    with pytest.raises((typer.Exit, SystemExit)) as caught:
        guarded(command)()
    stop = caught.value
    return stop.exit_code if isinstance(stop, typer.Exit) else stop.code


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (UserError("train.steps=x:\n  must be a number"), 2, "quiet: train.steps=x: must be a number\n"),
        (KeyboardInterrupt(), 130, "quiet: interrupted\n"),
        (SystemExit(75), 75, "quiet: 75\n"),
        (OSError(errno.ENOSPC, "No space", "/x/y"), 1, "disk is full at /x/y"),
        (OutOfMemoryError("CUDA"), 1, "Halve train.batch_size"),
        (RuntimeError("broken\nthing"), 1, "unexpected RuntimeError: broken thing (details: "),
    ],
)
def test_one_line_and_a_code(error, code, says, capsys):
    assert outcome(error) == code
    lines = capsys.readouterr().err
    assert says in lines and lines.count("\n") == (1 if says else 0) and "Traceback" not in lines


def test_the_log_holds_the_traceback_and_the_versions(capsys):
    outcome(RuntimeError("deep inside"))
    path = capsys.readouterr().err.partition("details: ")[2].partition(";")[0]
    text = open(path, encoding="utf-8").read()
    os.remove(path)
    assert "deep inside" in text and "Traceback" in text and "torch " in text


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("QUIET_DEBUG", "1")
    with pytest.raises(RuntimeError):
        guarded(lambda: (_ for _ in ()).throw(RuntimeError("x")))()


def test_a_rank_says_which_it_is(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert outcome(UserError("x")) == 2
    assert capsys.readouterr().err == "quiet: rank 1: x\n"
