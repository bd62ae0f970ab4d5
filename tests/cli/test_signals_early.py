"""A signal before the run listens: exit 75, one line, whatever a half-done import made of it."""

import os
import signal

import pytest
import typer

from quietreasoning.cli import train


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("error", [None, ImportError("half an import"), RuntimeError("wrapped")])
def test_an_early_signal_is_resumable(number, error, monkeypatch, capsys):
    def interrupted(*_):
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            if error is not None:
                raise error from None
            raise

    monkeypatch.setattr(train, "_train", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(typer.Exit) as caught:
        train.train("cot/pointer", [])
    assert caught.value.exit_code == 75 and "run the same command again" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_an_error_without_a_signal_is_an_error(monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no signal")

    monkeypatch.setattr(train, "_train", broken)
    with pytest.raises(typer.Exit) as caught:
        train.train("cot/pointer", [])
    assert caught.value.exit_code == 1 and "no signal" in capsys.readouterr().err
