"""Answers through compressed caches: the same where nothing is lost, and whatever stands beside them."""

from functools import cache

import numpy as np
import pytest
import torch

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone, role_of
from quietreasoning.backbone.config import WorkspaceSizes
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Markers, Role
from quietreasoning.data.example import Example
from quietreasoning.evaluate.asking import answer_all, answering, pad_left
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import Arm, arms_of
from quietreasoning.evaluate.harness import evaluate
from quietreasoning.evaluate.kv_cache import through
from quietreasoning.evaluate.kv_table import kv_table
from quietreasoning.evaluate.table import text
from quietreasoning.memory.kv_cache.attach import caches
from quietreasoning.memory.kv_cache.settings import KVCacheSettings
from quietreasoning.methods import METHODS
from quietreasoning.methods.sequence import read_prompt

VOCAB, LENGTHS, WRITTEN = 40, (33, 9, 21, 40, 14), 24
SMALL = {"window": 6, "sinks": 2, "group": 4, "streaming_window": 8, "fallback_error": None}
FULL = KVCacheSettings(keep_frac=1, bits="full", window=6)
KINDS = {
    "snapkv": KVCacheSettings(keep_frac=0.3, bits=8, **SMALL),
    "int4": KVCacheSettings(keep_frac=1, bits=4, **SMALL),
    "mixed": KVCacheSettings(keep_frac=0.5, bits="mixed", **SMALL),
    "pq": KVCacheSettings(keep_frac=1, bits=8, pq={"centroids": 4, "top": 6}, **SMALL),
}


@cache
def backbone():
    torch.manual_seed(0)
    shape = ScratchConfig(layers=2, width=32, heads=4, kv_heads=2, mlp=32, context=128, init_std=0.4)
    return load_backbone(BackboneConfig(scratch=shape), VOCAB).eval().double()


def method(name, eos=0, model=backbone, **settings):
    kind = METHODS[name]
    return kind(model(), kind.Config(**settings), Markers(answer_prefix=(1,), eos=eos)).double()


@cache
def prompts():
    draw = np.random.default_rng(1)
    return [draw.integers(3, VOCAB, length) for length in LENGTHS]


def written(asked, settings, size=99):
    """The tokens of each prompt, asked `size` at a time."""
    config = EvalConfig(batch_size=size, max_new_tokens=WRITTEN, timing=0)
    with answering(asked), through(asked, settings) as meter:
        said = answer_all(Arm(asked, "it"), prompts(), config, lambda: None, lambda *at: None, None, meter)
    return said.tokens, meter.figures()


@cache
def early_end():
    """A token that some row writes in the middle of its answer and another never: an end of sequence."""
    rows, _ = written(method("plain"), None)
    return next(
        t for row in rows for t in row[4:16] if t not in row[:4] and any(t not in other for other in rows)
    )


@pytest.mark.parametrize("name", ["plain", "cot", "pause"])
def test_with_nothing_dropped_every_token_is_that_of_the_plain_cache(name):
    asked = method(name, early_end())
    plain, held = written(asked, None)
    through_full, as_much = written(asked, FULL)
    assert through_full == plain
    assert len({len(row) for row in plain}) > 1, "no row ended before the others"
    assert as_much["bytes"] == pytest.approx(held["bytes"], rel=0.5) and held["compression"] == 1
    assert written(asked, KINDS["snapkv"])[1]["compression"] > 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_rows_that_are_over(kind):
    """They feed padding, which is neither read nor changes how the others' tokens are grouped and leave."""
    asked = method("plain", early_end())
    together, figures = written(asked, KINDS[kind])
    assert together == written(asked, KINDS[kind], size=1)[0]
    assert together != written(asked, None)[0] and figures["compression"] > 1


@torch.no_grad()
def test_padding_between_decoded_tokens_is_never_read():
    """A row that waits while another writes goes on as if it had not."""
    it, prompt_BP = backbone(), pad_left(prompts()[:2])
    with caches(it.model, FULL) as make, it.caching(make):

        def last(prompt_BP, *columns):
            states = read_prompt(it, prompt_BP)
            for column in columns:
                token_B1 = torch.tensor(column)[:, None]
                states = it(token_B1, role_of(token_B1, Role.STEP), states.past)
            return states.hidden_BTD[:, -1]

        waited = last(prompt_BP, (5, IGNORE), (6, IGNORE), (7, 8), (9, 4))
        torch.testing.assert_close(waited[1:], last(prompt_BP[1:], (8,), (4,)))
        torch.testing.assert_close(waited[:1], last(prompt_BP[:1], (5,), (6,), (7,), (9,)))


def test_hooks_and_caches_leave_with_the_context_and_batches_do_not_share_a_cache():
    asked, prompt_BP = method("plain"), pad_left(prompts())
    with answering(asked):
        wanted = asked.generate(prompt_BP, max_new_tokens=6).tokens
        with through(asked, KINDS["snapkv"]):
            first = asked.generate(prompt_BP, max_new_tokens=6).tokens
            assert asked.generate(prompt_BP, max_new_tokens=6).tokens == first != wanted
        assert asked.generate(prompt_BP, max_new_tokens=6).tokens == wanted
    assert not any(module._forward_pre_hooks for module in asked.modules())


def asked_together(arms, **settings):
    examples = [Example(f"e{i}", "", (), (), "3", {"num_steps": 0, "at": i}) for i in range(len(LENGTHS))]
    return evaluate(
        arms,
        examples,
        task="it",
        scorer="exact",
        encode_prompt=lambda example: prompts()[example.meta["at"]],
        decode=lambda ids: " ".join(map(str, ids[:1])),
        config=EvalConfig(**{"max_new_tokens": 4, "timing": 0, "samples": 0, **settings}),
    )


def test_caches_stand_side_by_side_in_one_table():
    asked = method("plain")
    settings = {"kv_caches": {"full": FULL, "int4": KINDS["int4"]}}
    report = asked_together(
        [Arm(method("cot"), "cot"), *arms_of(asked, "plain", caches=settings["kv_caches"])], **settings
    )
    assert "kv" not in report.row("cot")
    plain, full, int4 = (report.row(name) for name in ("plain", "plain (full)", "plain (int4)"))
    assert report.outcomes["plain (full)"] == report.outcomes["plain"]
    assert int4["cache"] == "int4" and int4["kv"]["bytes"] < 0.8 * plain["kv"]["bytes"]
    assert (
        plain["kv"]["tokens_s"] > 0
        and plain["kv"]["compression"] == 1
        and full["kv"]["fallback_rate"] is None
    )
    pairs = [(test["a"], test["b"]) for test in report.comparisons if test["about"] == "cache"]
    assert pairs == [("plain", "plain (full)"), ("plain", "plain (int4)")]
    assert not any(
        "int4" in test["a"] + test["b"] for test in report.comparisons if test["about"] == "methods"
    )
    assert "  (int4)" in text(report.rows) and kv_table(report.rows).row_count == 3
    # one cache for all, and no table of caches where nobody asks for one
    assert "kv" in asked_together([Arm(asked, "plain")], kv_cache=FULL).row("plain")
    assert kv_table(asked_together([Arm(asked, "plain")]).rows) is None


def test_what_cannot_use_a_compressed_cache_is_named_before_anything_is_asked():
    def model():
        return load_backbone(BackboneConfig(scratch=None, workspace=WorkspaceSizes()), VOCAB)

    slots = Arm(method("slots", blocks=1, loops=2), "slots")
    workspace = Arm(method("plain", model=model), "workspace")
    done = []
    for arm, says in ((slots, "method slots .* more than one way"), (workspace, "slots, in a cache of its")):
        with pytest.raises(UserError, match=f"eval.kv_cache: .*{says}.* Set eval.kv_cache to null"):
            evaluate(
                [Arm(method("plain"), "plain"), arm],
                [Example("e", "", (), (), "3", {"num_steps": 0})],
                task="it",
                scorer="exact",
                encode_prompt=lambda example: prompts()[0],
                decode=str,
                config=EvalConfig(kv_cache=FULL),
                progress=lambda *at: done.append(at),
            )
    assert not done
    with pytest.raises(UserError, match=r"eval\.kv_caches\.odd: .*layers are 0, 1"):
        asked_together(
            arms_of(method("plain"), "plain", caches=["odd"]),
            kv_caches={"odd": KVCacheSettings(bits=4, int8_layers=(7,))},
        )
