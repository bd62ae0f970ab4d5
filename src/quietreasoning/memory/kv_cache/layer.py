"""One attention layer's compressed cache: the prompt is chosen from and stored, decoding appends and reads.

Shapes: B rows, H query heads, G key/value heads, T new positions, W the last of them, N stored tokens,
C head width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from quietreasoning.config import UserError
from quietreasoning.memory.kv_cache import snapkv
from quietreasoning.memory.kv_cache.byte_stores import Bytes, Mixed
from quietreasoning.memory.kv_cache.codecs import Grouped, Int8
from quietreasoning.memory.kv_cache.pq import KeyIndex
from quietreasoning.memory.kv_cache.settings import KVCacheSettings
from quietreasoning.memory.kv_cache.stores import Pair, Plain, Scratch, Store

MATCH = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}


class Seen(NamedTuple):
    """What the attention module is about to do; the cache learns it just before."""

    valid_BT: Tensor  # which new tokens are real
    query_BHWC: Tensor | None = None  # of the last new positions; None where nobody asks
    key_BG1C: Tensor | None = None  # the last new key, worked out the same way as the queries
    scaling: float = 1.0


class Clock:
    """Milliseconds by kind of work, on the host's clock."""

    def __init__(self) -> None:
        self.ms = {"select": 0.0, "write": 0.0, "read": 0.0}

    @contextmanager
    def runs(self, kind: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.ms[kind] += 1e3 * (time.perf_counter() - began)


class CompressedLayer(CacheLayerMixin):
    """Everything after the first call is taken as it comes: a single token is decoded and may leave by the
    streaming window, a longer text stays whole. Positions are the tokens' own: keys come rotated."""

    is_sliding = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, settings: KVCacheSettings, number: int, scratch: Scratch, clock: Clock):
        super().__init__()
        self.settings, self.number, self.scratch, self.clock = settings, number, scratch, clock
        self._forget()

    def _forget(self) -> None:
        self.store: Store | None = None
        self.index: KeyIndex | None = None
        self.picked: Pair | None = None
        self.seen: Seen | None = None
        self.live_BN: Tensor | None = None  # of the decoded tokens, which are real; None: all
        self.total = self.plain_bytes_a_token = 0
        self.error: float | None = None
        self.fell_back = False

    # what transformers asks of a layer

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens read, whatever is kept of them: the next position follows from it."""
        return self.total

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if nothing had left; the mask of what is really there is put in its place before attention."""
        return self.total + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        """The name that older releases of transformers 5 ask for."""
        return -1

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> Pair:
        seen, self.seen = self.seen, None
        if seen is None:
            raise UserError(
                "a compressed cache works inside `with attach(model, settings) as cache`, on that model"
            )
        if key_states.requires_grad:
            raise UserError("a compressed cache is for inference; call the model under torch.no_grad()")
        self.lazy_initialization(key_states, value_states)
        rows, heads, new, width = key_states.shape
        self.total += new
        self.plain_bytes_a_token = 2 * rows * heads * width * key_states.element_size()
        if self.store is None:
            self._prompt(key_states, value_states, seen)
            return key_states, value_states
        if new > 1:
            return self._later_text(self.store, key_states, value_states, seen)
        with self.clock.runs("write"):
            self._mark(seen.valid_BT, self.store.decoded)
            self.store.append(key_states, value_states)
        with self.clock.runs("read"):
            return self._read(self.store)

    def reset(self) -> None:
        self._forget()
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise UserError(
                f"crop({tokens_to_remove}): a compressed cache cannot forget its last tokens: what the "
                "prompt lost with them in view is gone. Decode without an assistant, or use DynamicCache"
            )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._rows(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._rows(lambda t: t[indices.to(t.device)])

    def offload(self) -> None:
        raise UserError("a compressed cache is not offloaded; it stays where the model computes")

    def _rows(self, change: Callable[[Tensor], Tensor]) -> None:
        for part in (self.store, self.index):
            if part is not None:
                part.rows(change)
        if self.live_BN is not None:
            self.live_BN = change(self.live_BN)

    # what the attention module tells before it calls `update`

    @property
    def wants_query(self) -> bool:
        return self.store is None or self.index is not None

    def expect(self, seen: Seen) -> tuple[int, Tensor | None]:
        """How many stored tokens the next `update` returns before the new ones, and which are real [B, N]."""
        self.seen, self.picked = seen, None
        store, window = self.store, self.settings.streaming_window
        if store is None:
            return 0, None
        while window is not None and store.decoded >= window + self.settings.group - 1:
            store.evict(self.settings.group)
            if self.live_BN is not None:
                self.live_BN = self.live_BN[:, self.settings.group :].clone()
        if self.index is None or seen.valid_BT.shape[1] > 1 or seen.query_BHWC is None:
            return len(store), self._real(store.valid(), len(store))
        with self.clock.runs("read"):
            self.picked = self.index.pick(seen.query_BHWC[:, :, -1], store, seen.scaling)
        visible_BK, read = self.index.visible_BK(), self.index.read + store.decoded
        if visible_BK is not None:
            visible_BK = torch.nn.functional.pad(visible_BK, (0, store.decoded), value=True)
        return read, self._real(visible_BK, read)

    def _mark(self, valid_B1: Tensor, decoded: int) -> None:
        """A row that is over feeds padding beside rows that are not: stored like a token, and read by
        nobody, though it shapes the scales of its group."""
        if self.live_BN is None and not bool(valid_B1.all()):
            self.live_BN = valid_B1.new_ones(len(valid_B1), decoded)
        if self.live_BN is not None:
            self.live_BN = torch.cat([self.live_BN, valid_B1], 1)

    def _real(self, valid_BN: Tensor | None, count: int) -> Tensor | None:
        """The same with the padding among the decoded tokens, which stand last."""
        if self.live_BN is None:
            return valid_BN
        if valid_BN is None:
            valid_BN = self.live_BN.new_ones(len(self.live_BN), count)
        return torch.cat([valid_BN[:, : count - self.live_BN.shape[1]], self.live_BN], 1)

    def _read(self, store: Store) -> Pair:
        if self.picked is None:
            return store.read()
        pairs, self.picked = (self.picked, store.decoded_pair()), None
        keys, values = (torch.cat(pair, 2) for pair in zip(*pairs, strict=True))
        return keys, values

    def _later_text(self, store: Store, keys: Tensor, values: Tensor, seen: Seen) -> Pair:
        """Longer than a token: read after all that is stored, then closed whole."""
        if self.index is not None:
            raise UserError(
                "pq: a second text in the same cache is not indexed; start a new cache, or leave pq out"
            )
        old_keys, old_values = store.read()
        joined = torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)
        index, valid = snapkv.positions(seen.valid_BT[:, None].expand(-1, keys.shape[1], -1))
        if not bool(seen.valid_BT.all()):
            keys, values = snapkv.gather(keys, index), snapkv.gather(values, index)
        with self.clock.runs("write"):
            store.close(keys, values, valid)
        return joined

    # the end of the prompt

    def _prompt(self, keys_BGTC: Tensor, values_BGTC: Tensor, seen: Seen) -> None:
        query_BHWC = self._checked(seen, keys_BGTC)
        s, valid_BT, heads = self.settings, seen.valid_BT, keys_BGTC.shape[1]
        window = query_BHWC.shape[2]
        with self.clock.runs("select"):
            count_B = snapkv.counts(valid_BT, s.keep_frac, s.window, s.sinks)
            before_B = valid_BT[:, : valid_BT.shape[1] - window].sum(1)
            drops = s.keep_frac < 1 and bool((count_B < before_B).any())
            votes = salience = None
            if drops or s.bits == "mixed":
                votes = snapkv.votes(query_BHWC, keys_BGTC, valid_BT, seen.scaling)
            if votes is not None and drops:
                scores = snapkv.pool(votes, window, s.kernel, heads)
                index, valid = snapkv.choose(scores, valid_BT, count_B, s.sinks)
            else:
                index, valid = snapkv.positions(valid_BT[:, None].expand(-1, heads, -1))
            if votes is not None and s.bits == "mixed":
                salience = snapkv.salience(votes, valid_BT, window, heads).gather(2, index)
            if drops or s.bits != "full" or s.pq is not None:
                keys, values = snapkv.gather(keys_BGTC, index), snapkv.gather(values_BGTC, index)
            else:  # as it is, padding and all: then even rounding is that of a plain cache
                keys, values, valid = keys_BGTC, values_BGTC, None if bool(valid_BT.all()) else valid_BT
        with self.clock.runs("write"):
            self.store = self._stored(keys, values, valid, salience, query_BHWC, seen)
            if s.pq is not None:
                self.index = self._indexed(keys, valid)

    def _checked(self, seen: Seen, keys_BGTC: Tensor) -> Tensor:
        """The window's queries, once the key worked out beside them is the one that came."""
        key, last = seen.key_BG1C, keys_BGTC[:, :, -1:]
        if key is None or seen.query_BHWC is None:
            raise UserError(
                "a compressed cache works inside `with attach(model, settings) as cache`, on that model"
            )
        if key.shape != last.shape or (key - last).norm() > MATCH[last.dtype] * last.norm():
            raise UserError(
                f"layer {self.number}: its keys are not made by k_proj, k_norm and half-split rotary "
                "positions, so its queries cannot be told. Use a model like Llama, Qwen or SmolLM3"
            )
        return seen.query_BHWC

    def _stored(
        self,
        keys: Tensor,
        values: Tensor,
        valid: Tensor | None,
        salience: Tensor | None,
        query: Tensor,
        seen: Seen,
    ) -> Store:
        """The closed prompt; in 8 bits where fewer move the window's attention too far."""
        store = self._empty(keys.shape[-1])
        store.close(keys, values, valid, salience)
        limit = self.settings.fallback_error
        if isinstance(store, Bytes) and store.codec.bits < 8 and limit is not None:
            real_BW = seen.valid_BT[:, -query.shape[2] :]
            exact = snapkv.attended(query, keys, values, valid, seen.scaling)
            moved = snapkv.attended(query, *store.read(), store.valid(), seen.scaling) - exact
            norms = [(x * real_BW[:, None, :, None]).flatten(1).norm(dim=1) for x in (moved, exact)]
            self.error = float((norms[0] / norms[1].clamp(min=1e-12)).max())
            if self.error > limit:
                self.fell_back = True
                store = Bytes(Int8(), self.settings.group, self.scratch)
                store.close(keys, values, valid)
        return store

    def _empty(self, width: int) -> Store:
        s = self.settings
        if s.bits == "full":
            return Plain()
        if s.bits == 8 or self.number in s.int8_layers:
            return Bytes(Int8(), s.group, self.scratch)
        if s.bits == "mixed":
            return Mixed(width, s.group, s.salient_frac, self.scratch)
        return Bytes(Grouped(s.bits, s.group, width), s.group, self.scratch)

    def _indexed(self, keys: Tensor, valid: Tensor | None) -> KeyIndex:
        s, count = self.settings, keys.shape[2]
        if valid is None:
            valid = torch.ones(keys.shape[0], count, dtype=torch.bool, device=keys.device)
        place_N = torch.arange(count, device=keys.device)
        forced = valid & ((place_N < s.sinks) | (place_N >= valid.sum(1, keepdim=True) - s.window))
        return KeyIndex(s.pq, keys, valid, forced)

    # accounts

    def tensors(self) -> Iterator[Tensor]:
        for part in (self.store, self.index):
            if part is not None:
                yield from part.tensors()
        if self.live_BN is not None:
            yield self.live_BN
