"""A teacher's distributions on disk: what comes back, by which name, and what is refused."""

import json
import math
from functools import cache, partial

import numpy as np
import pytest
import torch

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.teacher_cache.header import CACHE, tokenizer_facts
from quietreasoning.data.teacher_cache.keys import Row, predicting, row_key, row_keys, uniforms
from quietreasoning.data.teacher_cache.reading import TeacherCache
from quietreasoning.data.teacher_cache.shards import writing
from quietreasoning.data.teacher_cache.targets import Keep, targets_of
from quietreasoning.data.teacher_cache.work import Work
from quietreasoning.data.tokenizers import train_words
from quietreasoning.train.signals import StopFlag

TEMPERATURES = (1.0, 2.0)
FIVE = Keep(5, temperatures=TEMPERATURES)


def words(last="w37"):
    """A tokenizer of about 40 words."""
    tokenizer = train_words([" ".join(f"w{i}" for i in range(37)) + f" {last}"])
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


TOKENIZER = words()
VOCABULARY = tokenizer_facts(TOKENIZER)["vocabulary"]


@cache
def rows():
    """Ten rows of 4 to 13 tokens; a few first tokens are the prompt."""
    made = []
    for i in range(10):
        ids = np.random.Generator(np.random.Philox(i)).integers(0, VOCABULARY, 4 + i).astype(np.int32)
        learned = np.arange(1, len(ids) + 1) > 1 + i % 3
        learned[-1] = False
        made.append(Row(row_key(ids, learned), ids, learned, ids))
    return made


def logits_of(row):
    """What this teacher says [P, V]: a function of the row alone."""
    seeded = torch.Generator().manual_seed(int.from_bytes(row.key[:4], "big"))
    return torch.randn(row.positions, VOCABULARY, generator=seeded) * 3


def teach(keep, batch, limit=math.inf, told=None):
    told = [] if told is None else told
    told += batch
    if len(told) > limit:
        raise InterruptedError
    return [
        targets_of(
            logits_of(row),
            torch.from_numpy(row.ids[1:][row.learned[:-1]]).long(),
            keep,
            keep.draws and uniforms(keep.seed, row, keep.draws),
        )
        for row in batch
    ]


def fill(folder, keep=FIVE, rank=0, ranks=1, limit=math.inf, size=3, stop=None):
    """The folder with all rows in it, or those before `limit`."""
    told = []
    with writing(folder, rank, ranks):
        data = {"rows": len(rows()), "positions": sum(row.positions for row in rows())}
        settings = {"teacher": {"sha256": "0"}, **tokenizer_facts(TOKENIZER), "keep": keep.told()}
        settings = CACHE.settle(
            folder, settings | {"data": data, "rows_per_shard": size}, {"teacher": {}}, rank, ranks
        )
        reader = partial(teach, keep, limit=limit, told=told)
        work = Work(folder, settings, reader, stop or StopFlag(), rank, ranks)
        work.through(rows(), batch_size=2)
    return folder


def read(folder, temperature=1.0, tokenizer=TOKENIZER, **options):
    return TeacherCache.open(folder, tokenizer=tokenizer, temperature=temperature, **options)


def contents(folder):
    """All files but locks, byte for byte."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".lock")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("cache") / "whole")


@pytest.fixture
def copy(whole, tmp_path):
    """A cache that may be broken."""
    for name, content in contents(whole).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def shards(folder):
    return sorted(folder.glob("shard-*.safetensors"))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [5, VOCABULARY])
def test_what_was_said_comes_back_to_the_accuracy_of_float16(tmp_path, k, temperature):
    """k = V: the distribution itself, at every temperature."""
    fill(tmp_path, Keep(k, temperatures=TEMPERATURES))
    asked = [rows()[i] for i in (7, 0, 4)]
    ids_NK, logps_NK, tail_N = read(tmp_path, temperature).rows([row.key for row in asked])
    logits_NV = torch.cat([logits_of(row) for row in asked])
    p_NV = (logits_NV / temperature).softmax(-1)
    assert torch.equal(ids_NK, logits_NV.topk(k).indices)
    torch.testing.assert_close(logps_NK, p_NV.log().gather(1, ids_NK), rtol=2**-10, atol=4e-3)
    torch.testing.assert_close(tail_N, 1 - p_NV.gather(1, ids_NK).sum(-1), rtol=4e-3, atol=1e-5)
    torch.testing.assert_close(logps_NK.exp().sum(-1) + tail_N, torch.ones(len(tail_N)))
    assert (tail_N == 0).all() if k == VOCABULARY else (tail_N > 0).all()


def test_coverage_keeps_as_few_as_hold_it(tmp_path):
    fill(tmp_path, Keep(8, coverage=0.8))
    cached = read(tmp_path)
    taught = cached.rows([row.key for row in rows()])
    p_NK = torch.cat([logits_of(row) for row in rows()]).softmax(-1).sort(-1, descending=True).values[:, :8]
    kept_N = (taught.ids_NK >= 0).sum(-1)
    before_N = (p_NK.cumsum(-1) < 0.8).sum(-1)  # so many do not hold it
    assert torch.equal(kept_N, (before_N + 1).clamp(max=8)) and kept_N.unique().numel() > 3
    assert torch.equal(taught.logps_NK == -torch.inf, taught.ids_NK < 0)
    mass_N = p_NK.cumsum(-1).gather(1, kept_N[:, None] - 1)[:, 0]
    torch.testing.assert_close(taught.tail_N, 1 - mass_N, rtol=4e-3, atol=1e-5)
    alone = cached.rows([rows()[9].key])
    width, here = alone.ids_NK.shape[1], slice(-rows()[9].positions, None)
    assert torch.equal(alone.ids_NK, taught.ids_NK[here, :width])
    assert torch.equal(alone.tail_N, taught.tail_N[here])


def test_draws_belong_to_seed_and_row_and_follow_the_probabilities(tmp_path):
    keep = Keep(draws=256, seed=3, temperatures=(2.0,))
    fill(tmp_path / "a", keep, size=10)
    fill(tmp_path / "b", Keep(draws=256, seed=4, temperatures=(2.0,)))
    keys = [row.key for row in rows()]
    ids_NK, logps_NK, tail_N = read(tmp_path / "a", 2.0).rows(keys)
    assert ids_NK.shape[1] == 256 and (logps_NK == -math.log(256)).all() and (tail_N == 0).all()
    p_NV = (torch.cat([logits_of(row) for row in rows()]) / 2).softmax(-1)
    share_NV = torch.zeros_like(p_NV).scatter_add(1, ids_NK, torch.full(ids_NK.shape, 1 / 256))
    off_NV = (share_NV - p_NV) / (p_NV * (1 - p_NV) / 256).sqrt()  # in standard errors
    assert off_NV.abs().max() < 6 and 0.9 < off_NV.square().mean() < 1.1
    assert not torch.equal(read(tmp_path / "b", 2.0).rows(keys).ids_NK, ids_NK)
    again = teach(keep, [rows()[5]])[0]
    first = sum(row.positions for row in rows()[:5])
    assert again.ids.tolist() == [
        v for ids in ids_NK[first : first + len(again.counts)] for v in ids.unique()
    ]


def test_a_key_belongs_to_its_tokens_and_positions_alone():
    ids, learned = [5, 6, 7, 8], [0, 1, 1, 0]
    others = [
        ([5, 6, 7, 9], learned),
        (ids, [1, 1, 1, 0]),
        ([*ids, 0], [*learned, 0]),
        ([5, 7, 6, 8], learned),
    ]
    assert len({row_key(*each) for each in [(ids, learned), *others]}) == 5
    ids_BT = torch.tensor([[IGNORE, 5, 6, 7, 8], [5, 6, 7, 8, IGNORE]])
    labelled_BT = (ids_BT == 7) | (ids_BT == 8)
    assert row_keys(ids_BT, predicting(labelled_BT)) == [row_key(ids, learned)] * 2
    for wrong in ((ids, [0, 0, 1, 1]), (ids, [0] * 4), (ids, [1, 0]), ([5, IGNORE, 7], [0, 1, 0])):
        with pytest.raises(ValueError):
            row_key(*wrong)
    with pytest.raises(ValueError, match="last position predicts no token"):  # labels, one place off
        row_keys(ids_BT[1:, :4], labelled_BT[1:, :4])


def test_a_row_that_was_not_read_is_refused(whole):
    cached, row = read(whole), rows()[2]
    assert len(cached) == 10 and row.key in cached
    ids = row.ids.copy()
    ids[0] += 1
    for other in (row_key(ids, row.learned), row_key(row.ids, np.roll(row.learned, -1) & row.learned)):
        assert other not in cached
        with pytest.raises(UserError, match=rf"row {other.hex()} is not among the 10 .* capture anew"):
            cached.rows([other])


def changed(path, old, new):
    content = path.read_bytes()
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new, 1))


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def flip_key(path):
    flip(path, path.read_bytes().index(rows()[0].key))


TAMPERED = {
    "a target": (lambda f: flip(shards(f)[0], -1), "shard .*shard-00000-.* is damaged"),
    "a key": (lambda f: flip_key(shards(f)[0]), "shard .*shard-00000-.* is damaged"),
    "a shard's head": (lambda f: flip(shards(f)[0], 3), "shard .*shard-00000-.* is damaged"),
    "cut off": (
        lambda f: shards(f)[2].write_bytes(shards(f)[2].read_bytes()[:-7]),
        "shard-00002-.* is damaged",
    ),
    "gone": (lambda f: shards(f)[3].unlink(), "1 of its 4 shards are missing, the first is shard 3"),
    "a line": (lambda f: flip(f / "index-r0of1.jsonl", 20), "index-r0of1.jsonl is damaged"),
    "temperatures": (
        lambda f: changed(f / "teacher.json", b"2.0", b"1.5"),
        "made with other settings than the",
    ),
    "format": (
        lambda f: changed(f / "teacher.json", b'"format": 1', b'"format": 7'),
        "format is 7, and this version reads 1; capture anew",
    ),
    "half a header": (lambda f: (f / "teacher.json").write_text('{"format": 1'), "teacher.json is damaged"),
    "no header": (lambda f: (f / "teacher.json").unlink(), "is no teacher cache: it has no teacher.json"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_is_not_what_was_written_is_named_and_refused(copy, what):
    tamper, message = TAMPERED[what]
    tamper(copy)
    with pytest.raises(UserError, match=message):
        read(copy).rows([rows()[0].key])


def test_only_files_that_are_read_are_checked_and_mapped(copy):
    flip(shards(copy)[1], -1)
    cached = read(copy)
    assert len(cached.rows([rows()[0].key]).ids_NK) == rows()[0].positions
    with pytest.raises(UserError, match="shard-00001"):
        cached.rows([rows()[3].key])


def other_template():
    tokenizer = words()
    tokenizer.chat_template = "{{ messages }} "
    return tokenizer


OTHERS = {
    "tokenizer": (
        {"tokenizer": words("x37")},
        "tokenizer_sha256 is [0-9a-f]{12} in its header and [0-9a-f]{12}",
    ),
    "template": ({"tokenizer": other_template()}, "template_sha256 is .* chat template it was captured with"),
    "vocabulary": (
        {"tokenizer": words("w37 w38")},
        f"vocabulary is {VOCABULARY} in its header and {VOCABULARY + 1}",
    ),
    "table": ({"table": VOCABULARY - 1}, f"vocabulary is {VOCABULARY} .* rows for {VOCABULARY - 1}"),
    "temperature": ({"temperature": 4.0}, "temperature is 1, 2 in its header and 4 .* --temperature 4"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_reader_is_refused_with_both_values_and_the_cure(whole, what):
    options, message = OTHERS[what]
    with pytest.raises(UserError, match=message) as caught:
        read(whole, **options)
    assert "\n" not in str(caught.value) and ("capture anew" in str(caught.value))
    read(whole, table=VOCABULARY + 24)  # a table may have rows to a round number


def test_a_tokenizer_is_the_same_after_it_has_padded(whole):
    tokenizer = words()
    tokenizer(["w1", "w1 w2"], padding=True, truncation=True, max_length=2)
    read(whole, tokenizer=tokenizer)


@pytest.mark.parametrize("limit", [1, 3, 7, 9])
def test_an_interrupted_capture_goes_on_to_the_same_bytes(whole, tmp_path, limit):
    with pytest.raises(InterruptedError):
        fill(tmp_path, limit=limit)
    assert len(shards(tmp_path)) == limit // 3
    with pytest.raises(UserError, match=f"the first is shard {limit // 3}. Run the same"):
        read(tmp_path)
    fill(tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_a_stop_ends_before_the_next_batch_and_keeps_what_is_closed(tmp_path):
    class Asked(StopFlag):
        def check(self):
            self.requested = len(shards(tmp_path)) == 2
            super().check()

    with pytest.raises(SystemExit) as stopped:
        fill(tmp_path, stop=Asked())
    assert stopped.value.code == 75 and len(shards(tmp_path)) == 2


@pytest.mark.parametrize(
    "left", ["a temporary file", "half a line", "a shard without its line", "half a shard"]
)
def test_what_a_kill_leaves_behind_does_no_harm(whole, tmp_path, left):
    """A process may die between any two system calls."""
    with pytest.raises(InterruptedError):
        fill(tmp_path, limit=7)
    index, made = tmp_path / "index-r0of1.jsonl", shards(tmp_path)[1]
    if left == "a temporary file":
        (tmp_path / ".tmp-r0of1-teacher.json").write_text("{")
        (tmp_path / ".tmp-r0of1-shard").mkdir()
        (tmp_path / ".tmp-r0of1-shard" / ".tmpx").write_bytes(made.read_bytes()[:100])
    elif left == "half a line":
        index.write_bytes(index.read_bytes()[:-30])
    elif left == "a shard without its line":
        index.write_bytes(index.read_bytes().split(b"\n")[0] + b"\n")
    else:  # a disk that lost what it had promised
        made.write_bytes(made.read_bytes()[:-9])
        index.write_bytes(index.read_bytes().split(b"\n")[0] + b"\n")
    fill(tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_a_damaged_shard_is_made_again_once_it_is_deleted(copy, whole):
    shards(copy)[1].unlink()
    fill(copy)
    assert {p.name: p.read_bytes() for p in shards(copy)} == {p.name: p.read_bytes() for p in shards(whole)}
    assert len(read(copy)) == 10


def test_two_ranks_make_what_one_makes(whole, tmp_path):
    fill(tmp_path, rank=1, ranks=2)
    fill(tmp_path, rank=0, ranks=2)
    assert {p.name: p.read_bytes() for p in shards(tmp_path)} == {
        p.name: p.read_bytes() for p in shards(whole)
    }
    lines = [json.loads(line) for p in tmp_path.glob("index-*") for line in p.read_text().splitlines()]
    assert sorted(line["shard"] for line in lines) == [0, 1, 2, 3]
    assert torch.equal(read(tmp_path).rows([rows()[8].key]).ids_NK, read(whole).rows([rows()[8].key]).ids_NK)


def test_other_settings_are_refused_with_what_differs_and_two_do_not_write_at_once(copy):
    before = contents(copy)
    with pytest.raises(UserError, match=r"keep\.k: 5 -> 6.*give another --out, or --no-auto-resume"):
        fill(copy, Keep(6, temperatures=TEMPERATURES))
    with writing(copy, 0, 1), pytest.raises(UserError, match="writes here as rank 0 of 1"):
        fill(copy)
    assert contents(copy) == before
    (copy / "teacher.json").unlink()
    with pytest.raises(UserError, match="holds shards without"):
        fill(copy)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"k": 0}, "--k 0: must be at least 1"),
        ({"coverage": 1.0}, "--coverage 1: must lie between 0 and 1"),
        ({"draws": 300}, "--draws 300: must be 1 to 256"),
        ({"draws": 12, "coverage": 0.9}, "--coverage has no effect"),
        ({"draws": 12, "temperatures": (1.0, 2.0)}, "--temperature 1, 2: what is drawn at one"),
        ({"temperatures": (0.0,)}, "--temperature 0: must be positive"),
        ({"temperatures": (1.0, 1.0)}, "--temperature 1, 1: name each once"),
    ],
)
def test_wishes_that_cannot_be_kept(wishes, message):
    with pytest.raises(UserError, match=message):
        Keep(**wishes)
