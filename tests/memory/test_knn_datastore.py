"""Keys and the tokens that follow them: exactly paired, and the same bytes whatever ends the work."""

import hashlib

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    OPTConfig,
)

from quietreasoning.config import UserError
from quietreasoning.memory import datastore
from quietreasoning.memory.arrays import open_keys, open_values
from quietreasoning.memory.datastore import Size, Source, build_datastore, source_in
from quietreasoning.memory.ffn_input import read_ffn

VOCAB = 40
SHAPE = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE |= {"intermediate_size": 24, "max_position_embeddings": 64, "initializer_range": 0.3}
SOURCE = Source("a" * 64, "b" * 64, 16, VOCAB)
SMALL = Size(rows_per_shard=4, batch_size=2)


def made(kind):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(**SHAPE)).eval()


@pytest.fixture(scope="module")
def llama():
    return made(LlamaConfig)


def rows(count=11, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(0, VOCAB, draw.integers(1, 7)) for _ in range(count)]


def naive(model, row):
    """Keys of one row, by the block's own equations where it is a Llama."""
    with torch.no_grad():
        out = model(torch.tensor(row)[None], output_hidden_states=True)
        block, x = model.model.layers[-1], out.hidden_states[-2]
        position = torch.arange(len(row))[None]
        rotary = model.model.rotary_emb(x, position)
        attended = (
            x + block.self_attn(block.input_layernorm(x), position_embeddings=rotary, attention_mask=None)[0]
        )
        return block.post_attention_layernorm(attended)[0].numpy()


def test_a_key_is_what_the_last_feed_forward_layer_reads_and_its_value_the_token_after_it(llama, tmp_path):
    texts = rows()
    counts = build_datastore(llama, texts, tmp_path, SOURCE, size=SMALL)
    keys = open_keys(tmp_path, "--keys", 16)
    values = open_values(tmp_path, "--values", len(keys))
    want_keys = np.concatenate([naive(llama, row)[:-1] for row in texts if len(row) > 1])
    want_values = np.concatenate([row[1:] for row in texts])
    assert counts == {
        "rows": 11,
        "entries": len(want_values),
        "rows_without_entry": sum(len(row) == 1 for row in texts),
    }
    everything = np.arange(len(keys))
    np.testing.assert_allclose(keys.take(everything), want_keys, atol=1e-5)
    np.testing.assert_array_equal(values.take(everything), want_values)
    backwards = everything[::-1]
    np.testing.assert_array_equal(keys.take(backwards), keys.take(everything)[::-1])


@pytest.mark.parametrize("kind", [GPT2Config, GPTNeoXConfig])
def test_other_families_give_what_a_norm_gave(kind):
    model = made(kind)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    found = read_ffn(model, ids)
    assert found.shape == (1, 5, 16)
    block = model.get_decoder()
    block = (block.h if hasattr(block, "h") else block.layers)[-1]
    norm = block.ln_2 if hasattr(block, "ln_2") else block.post_attention_layernorm
    again = (found - norm.bias) / norm.weight  # before its scale and shift: of mean 0 and variance 1
    torch.testing.assert_close(again.var(-1, unbiased=False), torch.ones(1, 5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", [OPTConfig, Olmo2Config])
def test_a_family_without_such_states_is_refused_by_name(kind):
    with pytest.raises(UserError, match=kind.__name__.removesuffix("Config")):
        read_ffn(AutoModelForCausalLM.from_config(kind(**SHAPE)), torch.tensor([[1, 2]]))


def files(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != ".lock"}


class Killed(BaseException):
    pass


def test_whatever_moment_it_is_killed_at_the_bytes_are_the_same(llama, tmp_path, monkeypatch):
    texts, whole = rows(), tmp_path / "whole"
    build_datastore(llama, texts, whole, SOURCE, size=SMALL)
    wanted, real, steps = files(whole), datastore.replacing, len(list(whole.glob("*.npy")))
    assert steps == 6
    for moment in range(1 + steps):
        folder, left = tmp_path / f"killed-{moment}", [moment]

        def torn(path, left=left):
            left[0] -= 1
            if left[0] < 0:
                path.with_name(f".tmp-{path.name}").write_bytes(b"half of it")  # what SIGKILL leaves
                raise Killed
            return real(path)

        monkeypatch.setattr(datastore, "replacing", torn)
        with pytest.raises(Killed):
            build_datastore(llama, texts, folder, SOURCE, size=SMALL)
        monkeypatch.setattr(datastore, "replacing", real)
        with pytest.raises(UserError, match=r"not finished|no datastore"):
            source_in(folder)
        build_datastore(llama, texts, folder, SOURCE, size=SMALL)
        assert files(folder) == wanted
    (whole / "values-00001.npy.json").unlink()  # renamed, and killed before its sidecar
    build_datastore(llama, texts, whole, SOURCE, size=SMALL)
    assert files(whole) == wanted


def test_other_settings_and_foreign_ids_are_refused(llama, tmp_path):
    texts = rows()
    build_datastore(llama, texts, tmp_path, SOURCE, size=SMALL)
    other = Source("c" * 64, "b" * 64, 16, VOCAB)
    for changed in (
        lambda: build_datastore(llama, texts, tmp_path, other, size=SMALL),
        lambda: build_datastore(llama, texts[:-1], tmp_path, SOURCE, size=SMALL),
        lambda: build_datastore(llama, texts, tmp_path, SOURCE, size=Size(4, 3)),
    ):
        with pytest.raises(UserError, match="other settings"):
            changed()
    with pytest.raises(UserError, match="row 1 has ids"):
        build_datastore(llama, [np.array([1, 2]), np.array([3, VOCAB])], tmp_path / "ids", SOURCE)
    with pytest.raises(UserError, match="no row has two tokens"):
        build_datastore(llama, [np.array([1])], tmp_path / "short", SOURCE)
    path = tmp_path / "keys-00001.npy"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match=r"keys-00001[.]npy is damaged"):
        open_keys(tmp_path, "--keys")
