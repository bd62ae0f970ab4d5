"""The sandbox outlives what a model may write."""

import os
import time
from pathlib import Path

import pytest

from quietreasoning.evaluate.sandbox import Limits, run

SHORT = Limits(seconds=1.5, memory_mb=512)


def test_pass_and_fail():
    assert run("def f(x):\n    return x + 1\nassert f(1) == 2").passed
    wrong = run("def f(x):\n    return x\nassert f(1) == 2")
    assert not wrong.passed
    assert wrong.why.startswith("AssertionError")
    assert run("def f(:").why.startswith("SyntaxError")
    standard = "import math, collections, typing, heapq, re, itertools, dataclasses, decimal, statistics"
    assert run(f"{standard}\nassert statistics.mean([1]) == 1").passed


@pytest.mark.parametrize(
    "leave", ["import sys; sys.exit(0)", "raise SystemExit", "import os; os._exit(0)", "exit()", "quit()"]
)
def test_leaving_early_is_no_pass(leave):
    assert not run(f"{leave}\nassert False").passed


def test_infinite_loop_is_stopped():
    started = time.monotonic()
    assert run("while True: pass", SHORT).why == "timeout"
    stubborn = "while True:\n  try:\n    while True: pass\n  except BaseException: pass"
    assert run(stubborn, SHORT).why == "timeout"
    assert time.monotonic() - started < 8


def test_memory_bomb_is_stopped():
    verdict = run("x = [0] * (10 ** 9)", SHORT)
    assert not verdict.passed
    assert verdict.why == "memory"
    assert not run("x = []\nwhile True: x.append(bytearray(10 ** 7))", SHORT).passed


@pytest.mark.parametrize(
    "bomb",
    [
        "import os\nwhile True: os.fork()",
        "import os\nif os.fork(): pass",
        "import subprocess; subprocess.run(['sleep', '60'])",
        "import os; os.system('sleep 60')",
        "import os; os.posix_spawn('/bin/sleep', ['sleep', '60'], {})",
        "import os; os.execv('/bin/sleep', ['sleep', '60'])",
        "import multiprocessing as m\np = m.Process()\np.start(); p.join(); assert not p.exitcode",
        "import _posixsubprocess as p, os\np.fork_exec([b'/bin/true'], [b'/bin/true'], True, (), None, None,"
        " -1, -1, -1, -1, -1, -1, *os.pipe(), False, False, -1, None, None, None, -1, None, False)",
    ],
)
def test_no_new_processes(bomb):
    before = time.monotonic()
    assert not run(bomb, SHORT).passed
    assert time.monotonic() - before < 5


def test_threads_are_bounded():
    """The system's own limit on processes counts threads; the audit hook does not see them."""
    threads = (
        "import threading, time\nfor _ in range(500): threading.Thread(target=time.sleep, args=(9,)).start()"
    )
    assert "can't start new thread" in run(threads, SHORT).why


def test_files_stay_inside(tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("secret")
    tmp_path.chmod(0o777)
    assert run("open('note.txt', 'w').write('x'); assert open('note.txt').read() == 'x'").passed
    for code in (
        f"open({str(outside)!r}, 'w')",
        f"open({str(outside)!r}, 'a')",
        f"open({str(outside)!r})",
        f"import os; os.remove({str(outside)!r})",
        f"import os; os.rename({str(outside)!r}, 'x')",
        f"import os; os.open({str(tmp_path / 'new')!r}, os.O_CREAT | os.O_WRONLY)",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import os; os.symlink({str(outside)!r}, 'link'); open('link').read()",
        f"import pathlib; pathlib.Path({str(tmp_path / 'deep')!r}).mkdir()",
    ):
        verdict = run(code)
        assert "sandbox refuses" in verdict.why, (code, verdict)
    assert outside.read_text() == "secret"
    assert [path.name for path in tmp_path.iterdir()] == ["outside.txt"]


def test_big_and_many_files_are_stopped():
    small = Limits(file_mb=1, files=16)
    assert not run("open('big', 'w').write('x' * (2 << 20))", small).passed
    assert not run("for i in range(100): open(str(i), 'w').close()", small).passed
    flood = run("while True: print('x' * 10000)", Limits(file_mb=1, seconds=3))
    assert not flood.passed
    assert len(flood.stdout) <= 1 << 20


def test_no_network():
    for code in (
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.socket()",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
    ):
        assert "sandbox refuses" in run(code).why


def test_crash_and_deep_recursion():
    assert not run("def f(): return f()\nf()").passed
    assert not run("import ctypes; ctypes.string_at(0)").passed


def test_programs_read_and_print():
    echo = "n = int(input())\nprint(sum(int(input()) for _ in range(n)))"
    verdict = run(echo, stdin="2\n3\n4\n", program=True)
    assert verdict.passed
    assert verdict.stdout == "7\n"
    assert run("import sys\nprint(sys.stdin.read()); sys.exit(0)", stdin="äß", program=True).stdout == "äß\n"
    assert not run("import sys; sys.exit(3)", program=True).passed
    assert run("if __name__ == '__main__':\n    print('main')", program=True).stdout == "main\n"


def test_nothing_is_left_behind():
    run("open('x', 'w').write('1')")
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("quiet-sandbox-*"))
