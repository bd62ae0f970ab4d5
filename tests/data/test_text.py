"""Running text: where documents begin and go, every token in one window, batches without answers."""

import gzip
import json
from itertools import pairwise

import numpy as np
import pytest

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.batches import Batches, count_tokens
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.load import load_split
from quietreasoning.data.tasks.text import divide, documents
from quietreasoning.data.tokenizers import build_tokenizer, train_words
from quietreasoning.data.windows import cuts, spread, windows
from quietreasoning.validation import validate

WIKI = """ \n = Lobster = \n \n A lobster is red . \n \n = = Life = = \n \n It lives .
 = 1 <unk> / s = \n It is long . \n \n = Two : M @-@ 82 = \n \n A road . \n"""


def words(n, seed=0):
    generator = np.random.Generator(np.random.Philox(seed))
    return [f"w{i}" for i in generator.integers(0, 40, n)]


def folder(tmp_path, lengths, seed=0):
    """One file of documents of so many words, separated by blank lines."""
    texts = [" ".join(words(n, seed + i)) for i, n in enumerate(lengths)]
    path = tmp_path / "all.txt"
    path.write_text("\n\n".join(texts))
    return path, texts


def config(path, train="words", **options):
    return DataConfig(task="text", path=str(path), options=options, tokenizer={"train": train})


def encoder_of(data, **limits):
    return Encoder(build_tokenizer(data, build_task(data)), data.format, **{"context": 64, **limits})


@pytest.mark.parametrize(
    ("kind", "first_lines"),
    [
        ("wikitext", [" = Lobster = ", " = Two : M @-@ 82 = "]),
        (
            "blank_lines",
            [" = Lobster = ", " A lobster", " = = Life", " It lives .", " = Two : M", " A road . "],
        ),
        ("file", [" = Lobster = "]),
    ],
)
def test_where_documents_begin(kind, first_lines):
    found = list(documents(WIKI.split("\n"), kind))
    assert len(found) == len(first_lines)
    assert all(text.startswith(first) for text, first in zip(found, first_lines, strict=True))
    # nothing but blank lines is lost, and what lies within stays as written
    kept = [line for text in found for line in text.split("\n") if line.strip()]
    assert kept == [line for line in WIKI.split("\n") if line.strip()]
    assert all(text in WIKI for text in found)


def test_wikitext_holds_its_sixty_articles(real):
    """The published number of articles of each file; two lines of a formula look like titles."""
    for name in ("valid", "test"):
        path = str(real(f"wikitext2/{name}.txt"))
        data = DataConfig(task="text", path=path, options={"documents": "wikitext", "shares": [100, 0, 0]})
        found = build_task(data).split("train")
        assert len(found) == 60
        assert all(document.prompt.startswith(" = ") for document in found)


def test_one_file_is_divided_by_whole_documents_near_the_shares(tmp_path):
    path, texts = folder(tmp_path, [20 + 7 * i for i in range(40)])
    path = path.rename(tmp_path / "corpus_valid.txt")
    task = build_task(config(path, shares=[70, 20, 10]))
    parts = {name: [d.prompt for d in task.split(name)] for name in ("train", "valid", "test")}
    assert sorted(text for part in parts.values() for text in part) == sorted(texts)
    whole = sum(map(len, texts))
    for name, share in (("train", 0.7), ("valid", 0.2), ("test", 0.1)):
        assert abs(sum(map(len, parts[name])) / whole - share) < 0.06
    assert parts == {name: [d.prompt for d in task.split(name)] for name in parts}
    assert [d.id for d in task.split("valid")] == [f"text-{texts.index(t)}" for t in parts["valid"]]


def test_equal_documents_go_to_one_split():
    where = divide({"a": 30, "b": 10, "c": 10, "d": 50}, {"train": 50, "valid": 50, "test": 0})
    assert set(where) == set("abcd") and "test" not in where.values()
    assert divide({"a": 1}, {"train": 100}) == {"a": "train"}


@pytest.mark.parametrize(
    ("name", "options", "split", "message"),
    [
        ("x_valid.txt", {}, "train", r"holds no train split, only valid.*shares=\[90,10,0\]"),
        ("x.txt", {"shares": [80, 10, 10], "test_path": "HERE"}, "test", "shares gives 10 % to test"),
        ("x.txt", {"test_path": "nowhere.txt"}, "test", "test_path: .*nowhere.txt does not exist"),
        ("x.txt", {"shares": [100, 0, 0]}, "valid", "the valid split .* is empty"),
    ],
)
def test_refusals_of_files(tmp_path, name, options, split, message):
    path = tmp_path / name
    path.write_text("some words here\n\nand more\n")
    if options.get("test_path") == "HERE":
        options = options | {"test_path": str(path)}
    with pytest.raises(UserError, match=message) as caught:
        build_task(config(path, **options)).split(split)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": {"shares": [80, 10, 5]}}, "sum to 100"),
        ({"options": {"shares": [0, 50, 50]}}, "train above 0"),
        ({"options": {"window": 4}}, "window"),
        ({"options": {"documents": "lines"}}, "blank_lines"),
        ({"too_long": "drop"}, "too_long has no effect: task text"),
        ({"path": None}, "give data.path"),
    ],
)
def test_mistakes_are_one_clear_line(given, message):
    with pytest.raises(UserError, match=message) as caught:
        validate(DataConfig, {"task": "text", "path": "x"} | given)
    assert "\n" not in str(caught.value)


def test_blank_and_broken_files(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text(" \n\n")
    with pytest.raises(UserError, match="holds no text"):
        build_task(config(path)).split("train")
    path.write_bytes(b"good words\n" + b"\xff\xfe\n" + b"more\n" * 3)
    with pytest.raises(UserError, match=r"x\.txt:2: not UTF-8 \(1 of 5 lines are broken"):
        build_task(config(path, shares=[100, 0, 0])).split("train")
    task = build_task(config(path, shares=[100, 0, 0], max_bad_fraction=0.5))
    assert task.split("train")[0].prompt.startswith("good words\nmore") and len(task.faults) == 1


def test_records_are_documents_and_files_may_be_zipped(tmp_path):
    texts = [f"{i} first\n\nsecond" for i in range(30)]
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"body": each}) + "\n" for each in texts)
    task = build_task(config(tmp_path, field="body", shares=[100, 0, 0]))
    assert [d.prompt for d in task.split("train")] == texts
    with pytest.raises(UserError, match="no field 'text' among body"):
        build_task(config(tmp_path)).split("train")


LENGTHS = [1, 7, 8, 9, 16, 17, 40, 3, 33, 25]  # words; an end of sequence follows


@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("size", [8, 9, 13, 64, None])
def test_every_token_stands_in_exactly_one_window(tmp_path, size, join):
    path, texts = folder(tmp_path, LENGTHS)
    data = config(path, shares=[100, 0, 0], join=join, window=size)
    encoder = encoder_of(data)
    rows, dropped = load_split(build_task(data), "train", data, encoder)
    ids = encoder.tokenizer.get_vocab()
    eos = encoder.markers().eos
    naive = [[*(ids[word] for word in text.split()), eos] for text in texts]
    assert dropped == 0
    assert [i for row in rows for i in row.ids] == [i for document in naive for i in document]
    limit = 64 if size is None else size
    assert all(2 <= len(row.ids) <= limit for row in rows)
    assert len({row.id for row in rows}) == len(rows)
    if join:
        assert all(len(row.ids) >= limit - 1 for row in rows[:-1])
    else:
        ends = [eos in list(row.ids) for row in rows]
        assert sum(ends) == len(texts) and all(list(row.ids).count(eos) <= 1 for row in rows)
        for document, number in zip(naive, range(len(naive)), strict=True):
            own = [row.ids for row in rows if row.meta["document"] == f"text-{number}"]
            assert [i for ids in own for i in ids] == document


@pytest.mark.parametrize("length", range(2, 60))
def test_cuts_leave_no_single_token(length):
    found = cuts(length, 8)
    assert found[0][0] == 0 and found[-1][1] == length
    assert all(a[1] == b[0] for a, b in pairwise(found))
    sizes = [last - first for first, last in found]
    assert min(sizes) >= 2 and max(sizes) <= 8
    assert sizes[:-2] == [8] * len(sizes[:-2])


def test_fewer_rows_are_taken_evenly(tmp_path):
    path, _ = folder(tmp_path, [50] * 10)
    data = config(path, shares=[100, 0, 0], window=8)
    encoder = encoder_of(data)
    rows, _ = load_split(build_task(data), "train", data, encoder, n=20)
    assert len(rows) == 20 and len({row.meta["document"] for row in rows}) == 10
    every, _ = load_split(build_task(data), "train", data, encoder)
    assert [row.id for row in spread(every, 1000)] == [row.id for row in every]
    some = data.model_copy(update={"train": 7})
    assert len(load_split(build_task(some), "train", some, encoder)[0]) == 7


def test_window_follows_the_limits(tmp_path):
    path, _ = folder(tmp_path, [100])
    data = config(path, shares=[100, 0, 0])
    task = build_task(data)
    for limits, longest in (({"context": 30}, 30), ({"max_prompt_tokens": 20}, 20)):
        rows, _ = load_split(task, "train", data, encoder_of(data, **limits))
        assert max(len(row.ids) for row in rows) == longest
    for limits in ({"context": 30}, {"max_prompt_tokens": 20}):
        with pytest.raises(UserError, match=r"data\.options\.window=40: .* is [23]0"):
            windows(task.split("train"), encoder_of(data, **limits), 40)
    with pytest.raises(UserError, match=r"has 30 tokens, the model's context is 20; .*window=null"):
        encoder_of(data, context=20).encode(Example("x", "", (), (), "", ids=list(range(30))))


def test_batches_hold_prompts_alone_and_are_equal_at_any_cut(tmp_path):
    path, _ = folder(tmp_path, LENGTHS)
    data = config(path, shares=[100, 0, 0], window=8)
    encoder = encoder_of(data)
    rows, _ = load_split(build_task(data), "train", data, encoder)
    batches = Batches(rows, encoder, 8, 3)
    batches.prepare()
    whole = batches.batch_at(1)
    assert whole.answer_BA.shape == (8, 0) and whole.steps_BKS.shape == (8, 0, 0)
    assert whole.rare_B.tolist() == [IGNORE] * 8
    wanted = [list(rows[i].ids) for i in batches.rows_at(1)]
    assert [[i for i in row if i != IGNORE] for row in whole.prompt_BP.tolist()] == wanted
    assert count_tokens(whole) == sum(map(len, wanted))
    for lanes, world in ((2, 1), (4, 2), (8, 1), (1, 8)):
        found, keys = [], []
        for lane in range(lanes):
            for rank in range(world):
                part = batches.batch_at(1, lane, lanes, rank, world)
                found += [[i for i in row if i != IGNORE] for row in part.prompt_BP.tolist()]
                keys += part.keys_B.tolist()
        assert found == wanted and keys == whole.keys_B.tolist()
    again = Batches(load_split(build_task(data), "train", data, encoder)[0], encoder, 8, 3)
    assert again.fingerprint() == batches.fingerprint()


def test_bpe_is_trained_on_the_documents_and_loses_nothing(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("Die Katze schläft, 12 Mäuse\n\ttanzen <eos> hier. <pad>\n \n" * 30)
    data = config(path, "bpe", shares=[100, 0, 0], documents="file", window=16)
    encoder = encoder_of(data)
    task = build_task(data)
    rows, _ = load_split(task, "train", data, encoder)
    ids = [int(i) for row in rows for i in row.ids]
    assert ids.count(encoder.markers().eos) == 1 and ids[-1] == encoder.markers().eos
    assert encoder.tokenizer.decode(ids[:-1]) == task.split("train")[0].prompt
    assert len(ids) < len(task.split("train")[0].prompt) / 2  # merges were learnt on this text


def test_a_word_that_is_the_end_of_sequence_is_refused():
    encoder = Encoder(train_words(["a b <unk> <eos> ####"]), context=20)
    unknown = encoder.document_ids([Example("d", "a <unk> zzz", (), (), "")])[0].tolist()
    assert unknown[1] == unknown[2] == encoder.tokenizer.unk_token_id
    assert len(encoder.tokenizer) == max(encoder.tokenizer.get_vocab().values()) + 1
    with pytest.raises(UserError, match="document d holds '<eos>'"):
        encoder.document_ids([Example("d", "a <eos> b", (), (), "")])
