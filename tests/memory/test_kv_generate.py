"""The compressed cache inside transformers' own generation, on tiny models of three families."""

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from quietreasoning.config import UserError
from quietreasoning.memory.kv_cache import snapkv
from quietreasoning.memory.kv_cache.attach import attach
from quietreasoning.memory.kv_cache.cache import CompressedCache
from quietreasoning.memory.kv_cache.settings import KVCacheSettings, PQSettings

VOCAB, LENGTHS, PROMPT = 61, (40, 17, 31), 40
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 2,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 12}),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config, {"no_rope_layers": [1, 0]}),
}
SMALL = {"window": 6, "sinks": 2, "streaming_window": None, "group": 8, "fallback_error": None}
KINDS = ["full", 8, 4, "mixed"]


def small(**changes):
    return KVCacheSettings(**{**SMALL, "bits": "full", **changes})


def made(family="llama", attention="sdpa", **changes):
    kind, config, own = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config(**{**SHAPE, **own, **changes})).double().eval()
    model.set_attn_implementation(attention)
    return model


def batch(lengths=LENGTHS, total=PROMPT):
    ids = torch.randint(3, VOCAB, (len(lengths), total), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(total) >= total - torch.tensor(lengths)[:, None]).long()
    return ids.masked_fill(mask == 0, 2), mask


def written(model, cache, ids, mask, tokens=12, **options):
    """Tokens and the logits they were chosen by."""
    torch.manual_seed(3)
    options = {"do_sample": False, "max_new_tokens": tokens, **options}
    out = model.generate(
        ids,
        attention_mask=mask,
        past_key_values=cache,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return out.sequences, torch.stack(out.logits, 1)


@torch.no_grad()
def read(model, cache, ids, mask):
    """Logits of the last token."""
    position = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return model(ids, attention_mask=mask, position_ids=position, past_key_values=cache).logits[:, -1]


@pytest.mark.parametrize(
    ("family", "attention"), [*((f, "sdpa") for f in FAMILIES), ("llama", "eager"), ("qwen3", "eager")]
)
def test_with_nothing_dropped_generation_is_that_of_a_plain_cache_to_the_bit(family, attention):
    model, (ids, mask) = made(family, attention).float(), batch()
    for options in ({}, {"do_sample": True, "num_return_sequences": 2}):
        wanted = written(model, DynamicCache(config=model.config), ids, mask, **options)
        with attach(model, small(keep_frac=1)) as cache:
            found = written(model, cache, ids, mask, **options)
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kept_keys_are_those_that_the_models_own_attention_votes_for(family):
    model, (ids, mask) = made(family, "eager").float(), batch()
    plain, settings = DynamicCache(config=model.config), small(keep_frac=0.3)
    with torch.no_grad():
        position = (mask.cumsum(1) - 1).clamp(min=0)
        attentions = model(
            ids, attention_mask=mask, position_ids=position, past_key_values=plain, output_attentions=True
        ).attentions
    valid = mask.bool()
    with attach(model, settings) as cache:
        read(model, cache, ids, mask)
        for layer, plain_layer, weights in zip(cache.layers, plain.layers, attentions, strict=True):
            mass = (weights[:, :, -6:] * valid[:, None, -6:, None]).mean(2)
            count = snapkv.counts(valid, 0.3, 6, 2)
            index, real = snapkv.choose(snapkv.pool(mass, 6, 5, 2), valid, count, 2)
            keys = layer.store.read()[0]
            assert real.sum(1).tolist() == [18, 11, 15] and torch.equal(layer.store.valid(), real)
            wanted = snapkv.gather(plain_layer.keys, index)
            for row, length in enumerate(real.sum(1)):
                torch.testing.assert_close(keys[row, :, :length], wanted[row, :, :length])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("stream", [None, 8])
def test_a_long_decode_is_the_full_model_with_what_left_masked_out(stream, attention):
    """One layer, so that a mask for each head tells all: true positions; sinks, window, prefix to the end."""
    model, (ids, mask) = made(attention=attention, num_hidden_layers=1), batch()
    new = torch.randint(3, VOCAB, (len(ids), 30), generator=torch.Generator().manual_seed(2))
    every = torch.cat([ids, new], 1)
    position = torch.cat([mask, torch.ones_like(new)], 1).cumsum(1).sub(1).clamp(min=0)
    with attach(model, small(keep_frac=0.3, streaming_window=stream)) as cache, torch.no_grad():
        read(model, cache, ids, mask)
        plain = DynamicCache(config=model.config)
        model(ids, attention_mask=mask, position_ids=position[:, :PROMPT], past_key_values=plain)
        stored, real = cache.layers[0].store.read()[0].clone(), cache.layers[0].store.valid()
        # a key of the prompt is kept where it equals one in the store: [B, G, S]
        same = (plain.layers[0].keys[:, :, :, None] == stored[:, :, None]).all(-1)
        kept = (same & real[:, None, None]).any(-1).repeat_interleave(2, 1)
        for step in range(30):
            now = PROMPT + step + 1
            own_mask = torch.cat([mask, torch.ones_like(new[:, : step + 1])], 1)
            found = model(
                every[:, now - 1 : now],
                attention_mask=own_mask,
                position_ids=position[:, now - 1 : now],
                past_key_values=cache,
            ).logits[:, -1]
            left = 0
            while stream is not None and step + 1 - left > stream + 7:  # whole groups leave
                left += 8
            decoded = (torch.arange(step + 1) >= left).expand(*kept.shape[:2], -1)
            seen = torch.cat([kept, decoded], -1)[:, :, None]
            allowed = torch.ones(now, now, dtype=torch.bool).tril().repeat(len(ids), 4, 1, 1)
            allowed &= own_mask[:, None, None].bool() | torch.eye(now, dtype=torch.bool)
            allowed[:, :, -1:] = seen
            if attention == "eager":
                allowed = torch.zeros(allowed.shape).double().masked_fill(~allowed, -1e300)
            wanted = model(every[:, :now], attention_mask=allowed, position_ids=position[:, :now]).logits[
                :, -1
            ]
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert cache.get_seq_length() == PROMPT + 30


@pytest.mark.parametrize("bits", KINDS)
def test_a_row_is_the_same_alone_and_in_a_padded_batch_and_rows_can_be_reordered(bits):
    model, (ids, mask) = made("qwen3"), batch()
    settings = small(keep_frac=0.3, bits=bits, group=4, streaming_window=4)
    with attach(model, settings) as cache:
        together = written(model, cache, ids, mask, 11)
    for row, length in enumerate(LENGTHS):
        with attach(model, settings) as cache:
            alone = written(model, cache, ids[row : row + 1, -length:], mask[row : row + 1, -length:], 11)
        assert torch.equal(alone[0][0, length:], together[0][row, PROMPT:])
        torch.testing.assert_close(alone[1][0], together[1][row], atol=1e-5, rtol=1e-5)
    order = torch.tensor([2, 0, 0])
    with attach(model, settings) as cache, attach(model, settings) as other:
        for n in range(10):  # past a group and an eviction
            seen = torch.cat([mask, mask.new_ones(len(ids), n)], 1)
            new = ids if n == 0 else together[0][:, PROMPT + n - 1 : PROMPT + n]
            read(model, cache, new, seen)
            read(model, other, new[order], seen[order])
        cache.reorder_cache(order)
        last, seen = together[0][order, PROMPT + 9 : PROMPT + 10], mask.new_ones(3, PROMPT + 10)
        seen[:, :PROMPT] = mask[order]
        torch.testing.assert_close(read(model, cache, last, seen), read(model, other, last, seen))


def test_beam_search_is_that_of_a_plain_cache_and_runs_on_a_compressed_one():
    model, (ids, mask) = made(), batch()
    options = {"num_beams": 3, "tokens": 8}
    wanted = written(model, DynamicCache(config=model.config), ids, mask, **options)[0]
    with attach(model, small(keep_frac=1)) as cache:
        assert torch.equal(written(model, cache, ids, mask, **options)[0], wanted)
        cache.reset()
        assert cache.get_seq_length() == 0 and cache.stats().bytes == 0
        assert torch.equal(written(model, cache, ids, mask, **options)[0], wanted)
    with attach(model, small(keep_frac=0.3, bits=4)) as cache:
        assert written(model, cache, ids, mask, **options)[0].shape == wanted.shape


def tensors_in(thing, found, seen):
    """Everything reachable from the layers through their own attributes."""
    if id(thing) in seen:
        return found
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        found.append(thing)
    elif isinstance(thing, dict | list | tuple):
        for inner in thing.values() if isinstance(thing, dict) else thing:
            tensors_in(inner, found, seen)
    elif hasattr(thing, "__dict__") and type(thing).__module__.startswith("quietreasoning.memory"):
        tensors_in(vars(thing), found, seen)
    return found


@pytest.mark.parametrize("bits", KINDS)
def test_bytes_are_those_of_every_tensor_that_the_cache_reaches(bits):
    model, (ids, mask) = made(head_dim=16).float(), batch((100,), 100)
    settings = small(keep_frac=0.3, bits=bits, pq=PQSettings(top=4) if bits == 4 else None)
    with attach(model, settings) as cache:
        written(model, cache, ids, mask, 21)
        stats = cache.stats()
        reached = tensors_in(list(cache.layers), [], {id(cache.scratch)})
    assert stats.bytes == sum(t.untyped_storage().nbytes() for t in reached)
    assert stats.plain_bytes == 2 * 2 * 2 * 16 * 4 * 120 and stats.tokens == 120
    token = 2 * 16  # channels of a pair
    kept, tail = 30 + 6, 8 * token * 4 * 2 * 2  # of four heads and layers: a group's room in floating point
    exact = {
        "full": (kept + 20) * token * 4,  # and the spare room of a buffer
        8: (kept + 16) * (token + 2 * 4),
        4: (kept + 16) * (token // 2 + 16) + 7 * 16 * 8,  # values: two steps a token; keys: 5 + 2 groups
    }.get(bits)
    if bits in (8,):
        assert stats.bytes == 4 * exact + tail
    elif bits == "full":
        assert 4 * exact <= stats.bytes <= 4 * exact + 4 * 36 * token * 4
    elif bits == "mixed":
        assert stats.compression > 3
    assert stats.scratch_bytes == 0 or bits != "full"
    assert set(stats.ms) == {"select", "write", "read"} and min(stats.ms.values()) > 0


def test_a_layer_whose_attention_int4_would_move_falls_back_alone():
    model, (ids, mask) = made(num_hidden_layers=3, attention_bias=True), batch((120,) * 2, 120)
    attention = model.model.layers[1].self_attn

    def spikes(
        module, args, keys
    ):  # one token in eight, which nobody asks for, spoils the range of a channel
        at_TC = (torch.arange(keys.shape[1]) % 8 == 1)[:, None] & (torch.arange(keys.shape[2]) % 8 == 3)
        return keys - 40 * at_TC if keys.shape[1] > 1 else keys

    attention.q_proj.bias.data[3::8] = 20  # a channel that rotary positions hardly turn
    attention.k_proj.register_forward_hook(spikes)
    settings = small(keep_frac=0.5, bits=4, fallback_error=0.25)
    with attach(model, settings) as cache:
        found = written(model, cache, ids, mask)
        stats = cache.stats()
    assert stats.fallback_layers == (1,) and stats.fallback_rate == 1 / 3
    assert stats.errors[1] > 0.25 > max(stats.errors[0], stats.errors[2])
    assert [layer.store.codec.bits for layer in cache.layers] == [4, 8, 4]
    with attach(model, small(keep_frac=0.5, bits=4, int8_layers=(1,))) as cache:
        assert torch.equal(written(model, cache, ids, mask)[1], found[1]) and not cache.stats().errors


def test_a_second_text_is_read_whole_and_keeps_every_position():
    model, (ids, mask) = made("smollm3"), batch()
    more, more_mask = batch((5, 3, 4), 5)
    caches = []
    with attach(model, small(keep_frac=1)) as cache:
        for one in (cache, DynamicCache(config=model.config)):
            texts = [ids, ids[:, :1], more, ids[:, 1:2]]
            masks = [mask, mask.new_ones(3, 1), more_mask, mask.new_ones(3, 1)]
            seen, outs = mask[:, :0], []
            for text, own in zip(texts, masks, strict=True):
                seen = torch.cat([seen, own], 1)
                outs.append(read(model, one, text, seen))
            caches.append(torch.stack(outs))
    torch.testing.assert_close(*caches)


def test_sliding_layers_stay_transformers_own():
    own = {
        "use_sliding_window": True,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    model, (ids, mask) = made("qwen3", **own), batch()
    wanted = written(model, DynamicCache(config=model.config), ids, mask)
    with attach(model, small(keep_frac=1)) as cache:
        found = written(model, cache, ids, mask)
        assert cache.numbers == [1]
    torch.testing.assert_close(found, wanted)
    with attach(model, small(keep_frac=0.3, bits=8)) as cache:
        assert written(model, cache, ids, mask)[0].shape == wanted[0].shape


def test_codes_that_propose_everything_change_nothing_and_fewer_stay_close_to_the_choice_of_a_row_alone():
    model, (ids, mask) = made(), batch()
    wanted = written(model, DynamicCache(config=model.config), ids, mask)
    with attach(model, small(keep_frac=1, pq=PQSettings(parts=2, centroids=8, top=99))) as cache:
        torch.testing.assert_close(written(model, cache, ids, mask), wanted, atol=1e-6, rtol=1e-6)
    few = small(keep_frac=1, pq=PQSettings(parts=4, centroids=8, top=4))
    with attach(model, few) as cache:
        together = written(model, cache, ids, mask)[1]
    with attach(model, few) as cache:
        alone = written(model, cache, ids[1:2, -17:], mask[1:2, -17:])[1]
    torch.testing.assert_close(alone[0], together[1], atol=1e-6, rtol=1e-6)
    assert (together - wanted[1])[:, 1:].abs().max() > 0.1


def test_what_cannot_be_right_is_refused_by_name():
    model, (ids, mask) = made(), batch()
    with attach(model, small(keep_frac=0.3)) as cache:
        written(model, cache, ids, mask, 2)
        with pytest.raises(UserError, match=r"crop\(-1\)"):
            cache.crop(-1)
        assert not cache.is_croppable
        cache.reset()
        with pytest.raises(UserError, match="pad on the left"):
            read(model, cache, ids.flip(1), mask.flip(1))
        cache.reset()
        with pytest.raises(UserError, match=r"torch.no_grad"):
            model(ids, past_key_values=cache)
    with pytest.raises(UserError, match=r"inside `with attach"):
        read(model, CompressedCache(small(), model.config), ids, mask)
    with pytest.raises(UserError, match="int8_layers=5"), attach(model, small(bits=4, int8_layers=(5,))):
        pass
    cohere = {key: value for key, value in SHAPE.items() if key != "initializer_range"}
    turned = CohereForCausalLM(CohereConfig(**cohere)).eval()  # rotary positions over pairs of neighbours
    with (
        attach(turned, small()) as cache,
        pytest.raises(UserError, match="layer 0: its keys are not made by"),
    ):
        read(turned, cache, ids, mask)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="no attention like Llama's"), attach(gpt2, small()):
        pass
