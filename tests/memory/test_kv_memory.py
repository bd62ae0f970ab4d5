"""What is alive while a prompt is read: a layer's keys and values are let go before the next layer's come."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from quietreasoning.memory.kv_cache import snapkv
from quietreasoning.memory.kv_cache.attach import attach
from quietreasoning.memory.kv_cache.cache import held_bytes
from quietreasoning.memory.kv_cache.settings import KVCacheSettings

ROWS, TOKENS, HEADS, WIDTH = 4, 160, 4, 8
SMALL = {"window": 64, "sinks": 2, "group": 8}
KINDS = {
    "plain": None,
    "full": KVCacheSettings(keep_frac=1, bits="full", **SMALL),
    "int8": KVCacheSettings(keep_frac=1, bits=8, **SMALL),
    "snapkv": KVCacheSettings(keep_frac=0.3, bits=8, **SMALL),
    "int4": KVCacheSettings(keep_frac=1, bits=4, fallback_error=9, **SMALL),
    "mixed": KVCacheSettings(keep_frac=1, bits="mixed", fallback_error=None, **SMALL),
}


class Alive(TorchDispatchMode):
    """Bytes of the storages that operations made and nobody let go yet, at their most."""

    def __init__(self):
        super().__init__()
        self.sizes, self.most = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and function is not torch.ops.aten.t.default:  # of weights
                storage = tensor.untyped_storage()
                self.sizes[StorageWeakRef(storage)] = storage.nbytes()
        self.sizes = {ref: size for ref, size in self.sizes.items() if not ref.expired()}
        self.most = max(self.most, sum(self.sizes.values()))
        return result


def read(kind, layers=2):
    """The last layer's keys, the most that was alive meanwhile, what the cache holds, errors measured."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=WIDTH,
        initializer_range=0.3,
    )
    model, settings = LlamaForCausalLM(shape).eval(), KINDS[kind]
    ids = torch.randint(3, 31, (ROWS, TOKENS))
    mask = (torch.arange(TOKENS) >= torch.tensor([0, 7, 50, 0])[:, None]).long()
    with attach(model, settings or KVCacheSettings()) as cache, Alive() as alive, torch.no_grad():
        cache = cache if settings else DynamicCache(config=model.config)
        model(ids, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
    if settings is None:
        return cache.layers[-1].keys, alive.most, held_bytes(cache), ()
    return cache.layers[-1].store.read()[0], alive.most, held_bytes(cache), cache.stats().errors


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_layer_that_was_read_only_what_is_stored_stays(kind):
    (_, two, held_by_two, _), (_, six, held_by_six, _) = read(kind), read(kind, 6)
    assert six - two == pytest.approx(held_by_six - held_by_two, rel=0.01)


@pytest.mark.parametrize("kind", ["snapkv", "int4", "mixed"])
def test_choosing_takes_one_head_of_one_row_at_a_time(kind, monkeypatch):
    """It keeps the same and measures the same errors as with many, in no more memory than reading takes."""
    keys, at_once, _, errors = read(kind)
    monkeypatch.setattr(snapkv, "SCORES", 1)
    found, piecewise, _, found_errors = read(kind)
    assert torch.equal(found, keys) and found_errors == pytest.approx(errors, rel=1e-5)
    scores = 4 * HEADS // 2 * SMALL["window"] * TOKENS  # of one row and head
    assert piecewise <= max(1.02 * read("int8")[1], at_once - 2 * scores)
