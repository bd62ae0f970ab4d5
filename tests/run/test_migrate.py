"""A model folder with another vocabulary: rows go by what tokens stand for, and old logits stay."""

import json
from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from quietreasoning.cli.main import app
from quietreasoning.config import UserError
from quietreasoning.data.token_text import id_map, token_keys
from quietreasoning.data.tokenizers import load_tokenizer, save_tokenizer, train_bpe, train_words
from quietreasoning.migrate import Wishes, migrate

PADDED = 7  # rows of the table that no token has
KINDS = ("tied", "bias", "half")
END = "Ġcat"  # of two tokens that end a sequence, that which gets another number


@cache
def tokenizer():
    return train_bpe(["the cat sat on the mat and the dog sat on the log"] * 3, 290)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """kind -> a model folder, made once."""

    @cache
    def made(kind: str):
        torch.manual_seed(0)
        shape = {
            "vocab_size": len(tokenizer()) + PADDED, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
            "tie_word_embeddings": kind == "tied", "initializer_range": 0.3,
            "bos_token_id": None, "eos_token_id": [1, tokenizer().get_vocab()[END]], "pad_token_id": 0,
        }  # fmt: skip
        model = (
            PhiForCausalLM(PhiConfig(**shape)) if kind == "bias" else LlamaForCausalLM(LlamaConfig(**shape))
        )
        if kind == "bias":
            torch.nn.init.normal_(model.lm_head.bias)
        path = tmp_path_factory.mktemp("models") / kind
        model.to(torch.bfloat16 if kind == "half" else torch.float32).save_pretrained(path)
        save_tokenizer(tokenizer(), path)
        return path

    return made


def opened(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval(), load_tokenizer(str(path))


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float()


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_get_rows_and_nothing_else_changes(tmp_path, folder, kind):
    wishes = Wishes(add=("quux", "the"), special=("<call>",), multiple=8)
    said = migrate(str(folder(kind)), str(tmp_path / "out"), wishes)
    before, after = opened(folder(kind))[0], opened(tmp_path / "out")
    size = len(tokenizer())
    new = [size, size + 1] if "the" in tokenizer().get_vocab() else [size, size + 1, size + 2]
    assert said.kept == size and said.made == len(new) and said.dropped == 0
    assert after[0].config.vocab_size == said.rows == -(-len(after[1]) // 8) * 8
    assert said.padding == said.rows - len(after[1]) and said.tied == (kind == "tied")
    assert (after[0].lm_head.weight is after[0].get_input_embeddings().weight) == (kind == "tied")
    assert after[0].dtype == before.dtype and said.distance <= said.near
    ids = tokenizer()("the cat sat on a mat").input_ids
    assert ids == after[1]("the cat sat on a mat").input_ids
    old_TV = logits(before, ids)[:, :size]
    torch.testing.assert_close(logits(after[0], ids)[:, :size], old_TV, atol=said.near, rtol=0)
    for name in [name for name in before.state_dict() if "embed_tokens" in name or "lm_head" in name]:
        assert torch.equal(after[0].state_dict()[name][:size], before.state_dict()[name][:size])
    assert after[1]("quux<call>").input_ids[-1] == after[1].convert_tokens_to_ids("<call>")
    assert after[1].decode(after[1]("a<call>b").input_ids, skip_special_tokens=True) == "ab"
    assert after[0].generation_config.eos_token_id == before.generation_config.eos_token_id


def test_running_it_again_makes_nothing_anew(tmp_path, folder):
    wishes = Wishes(special=("<call>",), rows="normal", multiple=16)
    first = migrate(str(folder("untied")), str(tmp_path / "one"), wishes)
    again = migrate(str(tmp_path / "one"), str(tmp_path / "two"), wishes)
    assert (first.made, again.made, again.dropped, again.rows) == (1, 0, 0, first.rows)
    assert again.distance == 0 and again.notes == ["<call> is a token already; its row stays"]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())


def test_a_trimmed_model_says_the_same_of_the_tokens_that_a_corpus_uses(tmp_path, folder):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"a": ["the cat", {"b": " sat on 鱼"}]}\n\n"the"\n')
    said = migrate(str(folder("tied")), str(tmp_path / "out"), Wishes(trim=str(corpus)))
    (before, old), (after, new) = opened(folder("tied")), opened(tmp_path / "out")
    assert said.kept == said.rows == len(new) < len(old) and said.dropped == len(old) - len(new)
    assert {"dog", "Ġdog", "Ġlog"} & old.get_vocab().keys() and "Ġdog" not in new.get_vocab()
    back = id_map(new, old)
    for text in ("the cat", " sat on 鱼", "the", "Ünknown dogs\n stay 🙂 readable"):
        ids = new(text).input_ids
        assert new.decode(ids) == text
        torch.testing.assert_close(
            logits(after, ids), logits(before, back[ids].tolist())[:, back], atol=1e-4, rtol=0
        )
    assert back[new("the cat").input_ids].tolist() == old("the cat").input_ids
    ends = [new.eos_token_id, new.get_vocab()[END]]
    assert after.config.eos_token_id == after.generation_config.eos_token_id == ends
    assert ends[1] != old.get_vocab()[END] and after.config.pad_token_id == new.pad_token_id


def test_another_tokenizer_takes_the_rows_of_what_its_tokens_stand_for(tmp_path, folder):
    made = train_bpe(["the cat sat and the catalogue listed dogs and a mat"] * 3, 300).backend_tokenizer
    renamed = Tokenizer.from_str(made.to_str().replace("<eos>", "<stop>"))  # the same role
    other = PreTrainedTokenizerFast(tokenizer_object=renamed, eos_token="<stop>", pad_token="<pad>")
    save_tokenizer(other, tmp_path / "other")
    said = migrate(
        str(folder("untied")), str(tmp_path / "out"), Wishes(tokenizer=str(tmp_path / "other"), rows="pieces")
    )
    (before, old), (after, new) = opened(folder("untied")), opened(tmp_path / "out")
    keys = token_keys(old), token_keys(new)
    table = before.get_input_embeddings().weight, after.get_input_embeddings().weight
    same = {key: id for id, key in enumerate(keys[0])}
    made = 0
    for id, key in enumerate(keys[1]):
        if key in same:
            assert torch.equal(table[1][id], table[0][same[key]])
        elif key == "<stop>":
            assert torch.equal(table[1][id], table[0][old.eos_token_id])
        else:
            pieces = old(key.decode()).input_ids
            torch.testing.assert_close(table[1][id], table[0][pieces].mean(0))
            made += 1
    assert said.made == made > 0 and said.dropped == len(set(keys[0]) - set(keys[1])) - 1 > 0
    assert said.kept + said.made == len(new) == after.config.vocab_size
    assert after.config.eos_token_id[0] == new.eos_token_id


def test_the_command_tells_counts_and_refuses_what_cannot_be(tmp_path, folder, monkeypatch):
    out, source = str(tmp_path / "out"), str(folder("tied"))

    def run(*words):
        return CliRunner().invoke(app, ["migrate", *words])

    done = run(source, out, "--add", "quux", "--add", "quuux", "--json", str(tmp_path / "said.json"))
    assert done.exit_code == 0 and f"wrote {out}; logits of the" in done.output, done.output
    said = json.loads((tmp_path / "said.json").read_text())
    assert (said["made"], said["kept"], said["dropped"]) == (2, len(tokenizer()), 0)
    save_tokenizer(train_words(["zz"]), tmp_path / "words")
    bare = tmp_path / "bare"
    bare.mkdir()
    new = str(tmp_path / "new")
    for words, message in (
        ([source, out, "--add", "x"], "is there already; name a new folder"),
        ([source, new], "nothing to do: give --add, "),
        ([str(bare), new, "--add", "x"], "has no tokenizer"),
        ([str(tmp_path / "none"), new, "--add", "x"], "no such folder"),
        (
            [source, new, "--add", "x", "--rows", "means"],
            "--rows means: no such way to make rows. Did you mean 'mean'",
        ),
        ([source, new, "--pad-to-multiple", "0"], "give 1 or more"),
        ([source, new, "--tokenizer", str(tmp_path / "words")], "shares no token with"),
        ([source, new, "--trim", str(tmp_path / "no.txt")], "cannot be read"),
    ):
        done = run(*words)
        assert done.exit_code == 2 and message in done.output, done.output
    monkeypatch.setattr("quietreasoning.migrate.NEAR", {torch.float32: -1.0})
    done = run(source, new, "--add", "x")
    assert done.exit_code == 1 and f"{new} is not written" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "out", "said.json", "words"]


def test_a_model_that_says_something_else_is_told_apart(folder):
    from quietreasoning.migrate import answers, apart

    model, _ = opened(folder("untied"))
    ids_N = torch.arange(20)
    first = answers(model, ids_N)
    assert apart(answers(model, ids_N), first) == 0
    with torch.no_grad():
        model.lm_head.weight[3] += 1
    assert apart(answers(model, ids_N), first) > 0.1
    with pytest.raises(UserError, match="nothing to do"):
        migrate(str(folder("untied")), "nowhere", Wishes(rows="zeros"))
