"""`--nproc`: ranks get their numbers, and their exit codes come back."""

import json
import sys

from quietreasoning.cli.launch import launch

REPORT = (
    "import json, os, sys\n"
    "rank = os.environ['RANK']\n"
    "keys = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'OMP_NUM_THREADS')\n"
    "json.dump([sys.argv[1:], {k: os.environ[k] for k in keys}], open(f'{sys.argv[1]}/{rank}.json', 'w'))\n"
    "sys.exit(int(sys.argv[2]))\n"
)
PROGRAM = (sys.executable, "-c", REPORT)


def test_every_rank_runs_the_same_command(tmp_path):
    text = "a.b=c; echo $HOME 'x'"
    assert launch([str(tmp_path), "0", text], 2, PROGRAM) == 0
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert all(arguments == [str(tmp_path), "0", text] for arguments, _ in reports)
    assert [env["RANK"] for _, env in reports] == ["0", "1"]
    assert all(env["WORLD_SIZE"] == "2" and env["MASTER_PORT"].isdecimal() for _, env in reports)


def test_the_exit_code_of_a_rank_comes_back(tmp_path):
    assert launch([str(tmp_path), "75"], 2, PROGRAM) == 75
    assert launch([str(tmp_path), "2"], 1, PROGRAM) == 2


def test_a_killed_rank_is_named(tmp_path, capsys):
    program = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert launch([], 1, program) == 1
    assert "rank 0 was killed by SIGKILL" in capsys.readouterr().err
