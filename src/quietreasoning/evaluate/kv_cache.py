"""`eval.kv_cache`, `eval.kv_caches`: answers through compressed key/value caches, beside the model's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

from quietreasoning.config import UserError
from quietreasoning.contract import Method
from quietreasoning.evaluate.asking import answering, device_of
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import Arm
from quietreasoning.evaluate.meter import Meter
from quietreasoning.memory.kv_cache.attach import caches
from quietreasoning.memory.kv_cache.cache import plain_cache
from quietreasoning.memory.kv_cache.settings import KVCacheSettings


@contextmanager
def through(method: Method, settings: KVCacheSettings | None, key: str = "eval.kv_cache") -> Iterator[Meter]:
    """Inside, the method reads every prompt into a cache of its own of this kind, None being the plain one;
    the meter knows them.

    key: the setting that a refusal names. UserError where the model or the method cannot use such a cache: it
    answers a prompt of one token to say so.
    """
    meter, model = Meter(device_of(method)), method.backbone.model
    with ExitStack() as stack:
        try:
            stack.enter_context(method.backbone.caching(meter.make))
            if settings is None:
                meter.maker = lambda: plain_cache(model)
            else:
                meter.maker = stack.enter_context(caches(model, settings))
                _try(method, meter)
        except UserError as error:
            raise UserError(
                f"{key}: method {method.config.name} cannot answer through a compressed cache: {error}. "
                f"Set {key} to null, or leave that run out"
            ) from None
        yield meter


def _try(method: Method, meter: Meter) -> None:
    prompt_11 = torch.tensor([[method.markers.eos]], device=device_of(method))
    with answering(method):
        method.generate(prompt_11, max_new_tokens=1)
    if not meter.made:
        raise UserError("it reads no prompt into a cache")
    meter.made.clear()


def metered(arm: Arm, arms: Sequence[Arm], config: EvalConfig) -> AbstractContextManager[Meter | None]:
    """`through` for an arm; without a meter where neither it nor an arm to hold it against is compressed."""
    key, settings = cache_of(arm, config)
    if settings is None and not any(other.cache for other in arms if other.method is arm.method):
        return nullcontext()
    return through(arm.method, settings, key)


def cache_of(arm: Arm, config: EvalConfig) -> tuple[str, KVCacheSettings | None]:
    """The setting's name, and what it says about this arm."""
    if arm.cache is None:
        return "eval.kv_cache", config.kv_cache
    return f"eval.kv_caches.{arm.cache}", config.kv_caches[arm.cache]


def check_caches(arms: Sequence[Arm], config: EvalConfig) -> None:
    """UserError for what would fail after the arms before it have answered everything."""
    for arm in arms:
        if arm.control is None and arm.effort is None and cache_of(arm, config)[1] is not None:
            with metered(arm, arms, config):
                pass
