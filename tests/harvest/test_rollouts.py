"""Rollouts of a run: exact states, the same whatever batch, rank, order or end made them."""

import contextlib
import random
from pathlib import Path

import pytest
import torch

from quietreasoning.backbone import role_of
from quietreasoning.backbone.sampling import sample
from quietreasoning.backbone.states import read_states, watch
from quietreasoning.build import open_run
from quietreasoning.contract import IGNORE, Role
from quietreasoning.data.padding import pad_left
from quietreasoning.data.pairs.folder import OUTCOMES, WHOLE, read_rows
from quietreasoning.data.pairs.shards import PairStates, Rollout, write_shard


@pytest.fixture(scope="module")
def backbone(run):
    return open_run(run).method.backbone


@pytest.fixture(scope="module")
def deep(roll):
    """States of every layer."""
    return roll(layers="0,1,pre_norm,last", samples_per_problem=2)


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


# What is written down


def test_every_item_has_an_outcome_and_the_counts_say_so(deep):
    rows, summary = read_rows(deep.folder), deep.summary
    assert summary["asked"] == summary["processed"] == len(rows) == 60
    assert {row["outcome"] for row in rows} >= {"wrong", "truncated", "malformed"}
    assert sum(summary[name] for name in OUTCOMES) == 60
    assert summary["finished"] == 60 - summary["truncated"] > 0
    assert summary["kept"] == sum(row["outcome"] in WHOLE for row in rows) == sum(row["kept"] for row in rows)
    lengths = [row["num_thinking_tokens"] for row in rows if row["kept"]]
    assert summary["datasets"]["pointer"]["thinking_tokens"]["most"] == max(lengths)


def test_chain_and_states_lie_between_prompt_and_answer_prefix(deep, backbone, run):
    states, encoder = PairStates(deep.folder), open_run(run).encoder
    prefix = list(encoder.markers().answer_prefix)
    for row in states.rows:
        start, opened, chain, end, after, answer = row["places"]
        ids = row["ids"]
        (prompt,) = encoder.prompt_ids([row["problem"]])
        assert start == 0 and opened == chain == len(prompt) == row["seq_length"]
        assert ids[:opened] == prompt.tolist() and ids[end:after] == prefix and answer == after
        assert row["num_thinking_tokens"] == end - chain and prefix[0] not in ids[chain:end]
        assert encoder.text(ids[after:-1]) == row["answer"]
        assert states.pre(row["key"], 1).shape == (opened, 32) and states.post(row["key"], 1).shape == (32,)


@torch.no_grad()
def test_states_are_those_of_a_token_by_token_run(deep, backbone):
    states = PairStates(deep.folder)
    for row in states.rows[:6]:
        past, columns = None, []
        with watch(backbone.model, states.layers) as seen:
            for id in row["ids"]:
                one = torch.tensor([[id]])
                past = backbone(one, role_of(one, Role.STEP), past, keep=True).past
                columns.append({layer: state[0, 0].clone() for layer, state in seen.items()})
        for layer in states.layers:
            run_TD = torch.stack([column[layer] for column in columns])
            close(states.pre(row["key"], layer), run_TD[: row["seq_length"]])
            close(states.post(row["key"], layer), run_TD[row["places"][4] - 1])


@pytest.mark.parametrize("left", [True, False])
def test_states_are_those_of_a_padded_batch(deep, backbone, left):
    states = PairStates(deep.folder)
    rows = [row["ids"] for row in states.rows]
    longest = max(map(len, rows))
    assert min(map(len, rows)) < longest
    if left:
        ids_BT = pad_left(rows)
    else:
        ids_BT = torch.tensor([row + [IGNORE] * (longest - len(row)) for row in rows])
    found = read_states(backbone, ids_BT, role_of(ids_BT, Role.PROMPT), ("last", 1))
    for index, row in enumerate(states.rows):
        first = longest - len(row["ids"]) if left else 0
        for layer, batch_BTD in found.items():
            close(states.post(row["key"], layer), batch_BTD[index, first + row["places"][4] - 1])
            close(states.pre(row["key"], layer), batch_BTD[index, first : first + row["seq_length"]])


def test_what_follows_the_close_marker_changes_no_state(deep, backbone):
    states = PairStates(deep.folder)
    row = states.rows[0]
    ids_1T = torch.tensor([row["ids"]])
    whole = read_states(backbone, ids_1T, torch.full_like(ids_1T, int(Role.PROMPT)), ("last",))["last"]
    close(states.post(row["key"], "last"), whole[0, row["places"][4] - 1])


# The same, however it was made


@pytest.mark.parametrize(
    "wishes", [{"batch_size": 1}, {"batch_size": 30, "checkpoint_every": 50}, {"batch_size": 5}]
)
def test_batches_and_shards_change_nothing_to_the_bit(whole, roll, contents, wishes):
    assert contents(roll(**wishes).folder) == contents(whole.folder)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_change_nothing_and_write_files_of_their_own(whole, roll, contents, tmp_path, ranks):
    for rank in reversed(range(ranks)):
        summary = roll(rank, ranks, out=tmp_path).summary
    assert contents(tmp_path) == contents(whole.folder) and summary == whole.summary
    rows = read_rows(tmp_path)
    assert len({row["key"] for row in rows}) == len(rows) == 30
    makers = {row["key"]: row["shard"].split("-")[1] for row in rows}
    assert {makers[row["key"]] for row in rows} == {f"r{rank}of{ranks}" for rank in range(ranks)}
    assert all(makers[row["key"]] == f"r{int(row['id'], 16) % ranks}of{ranks}" for row in rows)


def test_more_problems_and_samples_go_on_where_fewer_ended(roll, contents, tmp_path):
    roll(out=tmp_path, num_samples=8)
    before = sorted(path.name for path in tmp_path.glob("shard-*"))
    roll(out=tmp_path, num_samples=20)
    grown = roll(out=tmp_path, num_samples=20, samples_per_problem=2)
    assert set(before) < {path.name for path in tmp_path.glob("shard-*")}
    assert contents(tmp_path) == contents(roll(num_samples=20, samples_per_problem=2).folder)
    assert grown.summary["asked"] == 40


def test_a_greedy_run_needs_no_numbers_and_another_seed_draws_others(roll):
    def written(**wishes):
        return [row["ids"] for row in read_rows(roll(num_samples=4, **wishes).folder)]

    cold, warm, other = written(temperature=None), written(), written(seed=1)
    assert cold == written(temperature=0.0, seed=1, batch_size=2)
    assert all(a != b and b != c for a, b, c in zip(cold, warm, other, strict=True))


def test_no_problem_stands_in_two_splits_and_all_samples_share_theirs(deep):
    rows = read_rows(deep.folder)
    splits = {}
    for row in rows:
        splits.setdefault(row["id"], set()).add(row["split"])
    assert len(splits) == 30 and all(len(found) == 1 for found in splits.values())
    assert all(sum(row["id"] == id for row in rows) == 2 for id in splits)


# Memory


def test_a_batch_that_does_not_fit_is_halved_and_loses_nothing(whole, roll, contents):
    sizes = []

    def tight(backbone, past, hidden_BD, **options):
        sizes.append(len(hidden_BD))
        if len(hidden_BD) > 2:
            raise torch.OutOfMemoryError("too many rows")
        return sample(backbone, past, hidden_BD, **options)

    assert contents(roll(sampler=tight, batch_size=7).folder) == contents(whole.folder)
    assert max(sizes) == 7 and sizes.count(7) == 4 and 1 in sizes


def test_only_what_does_not_fit_alone_is_given_up_and_it_is_counted(whole, roll, tmp_path):
    rows = {row["key"]: row for row in read_rows(whole.folder)}
    longest = max(row["prompt_length"] for row in rows.values())
    large = {key for key, row in rows.items() if row["written"] == 24}

    def tight(backbone, past, hidden_BD, **options):
        written = sample(backbone, past, hidden_BD, **options)
        if any(len(row) == 24 for row in written):
            raise torch.OutOfMemoryError
        return written

    found = {row["key"]: row for row in read_rows(roll(sampler=tight, out=tmp_path).folder)}
    assert longest and found.keys() == rows.keys() and 0 < len(large) < len(rows)
    assert {key for key, row in found.items() if row["outcome"] == "oom"} == large
    assert all(found[key]["ids"] == rows[key]["ids"] for key in rows.keys() - large)
    again = roll(out=tmp_path)  # with memory enough: what was processed stays as it is
    assert again.summary["oom"] == len(large)


# Kills


class Killed(BaseException):
    """As a signal that nobody catches."""


def dying(calls: int, late: bool):
    """A `Path.replace` at whose so manieth call the process dies, before or after the renaming."""
    rename, left = Path.replace, calls

    def replace(path, target):
        nonlocal left
        left -= 1
        if left == 0 and not late:
            raise Killed
        done = rename(path, target)
        if left == 0:
            raise Killed
        return done

    return replace


def test_killed_at_twenty_points_the_rest_is_made_and_nothing_twice(
    whole, roll, contents, tmp_path, monkeypatch
):
    draw, half = random.Random(0), 0
    for _ in range(20):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying(draw.randint(1, 4), draw.random() < 0.5))
            with contextlib.suppress(Killed):
                roll(out=tmp_path, checkpoint_every=2, batch_size=draw.randint(1, 4))
        tensors, lists = (len(list(tmp_path.glob(f"shard-*.{kind}"))) for kind in ("safetensors", "json"))
        half += any(tmp_path.glob(".tmp-*")) or tensors > lists
    assert half > 3, "kills must have found files half-written"
    roll(out=tmp_path)
    keys = [row["key"] for row in read_rows(tmp_path)]
    assert len(keys) == len(set(keys)) and contents(tmp_path) == contents(whole.folder)
    assert not any(tmp_path.glob(".tmp-*"))


def test_killed_while_sampling_only_the_open_shard_is_made_again(whole, roll, contents, tmp_path):
    calls = 0

    def dies(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise Killed
        return sample(*arguments, **options)

    with pytest.raises(Killed):
        roll(out=tmp_path, sampler=dies)
    assert len(read_rows(tmp_path)) == 14
    calls = -1000
    roll(out=tmp_path, sampler=dies)
    assert calls == -1000 + 5 and contents(tmp_path) == contents(whole.folder)  # 16 left: 7 + 7 + 2


def test_two_that_made_the_same_are_merged(whole, roll, contents, tmp_path):
    """As where a number of ranks changed while an old rank still ran."""
    roll(out=tmp_path, num_samples=12)
    other = roll(num_samples=12, checkpoint_every=5)
    for path in other.folder.glob("shard-*"):
        (tmp_path / path.name.replace("r0of1", "r1of9")).write_bytes(path.read_bytes())
    roll(out=tmp_path)
    assert contents(tmp_path) == contents(whole.folder)


def test_a_shard_written_twice_is_one(whole, tmp_path):
    states = PairStates(whole.folder)
    row = states.rows[0]
    kept = {f"{kind}/last": getattr(states, kind)(row["key"], "last") for kind in ("pre", "post")}
    for _ in range(2):
        write_shard(tmp_path, [Rollout({k: v for k, v in row.items() if k != "shard"}, kept)], 0, 1)
    assert len(list(tmp_path.glob("shard-*.json"))) == 1 and len(read_rows(tmp_path)) == 1
