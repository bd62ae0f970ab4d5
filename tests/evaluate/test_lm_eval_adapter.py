"""What lm-eval asks: against a naive reading, and its own model for transformers where that is there."""

import importlib.util
import json
import math

import pytest
import torch

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone
from quietreasoning.config import UserError
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.tokenizers import train_bpe
from quietreasoning.evaluate.lm_eval_adapter import LMEval, adapted, windows
from quietreasoning.methods import METHODS
from quietreasoning.tools.lm_eval import register

CONTEXTS = ("Tom has 3 pens. How many?", "Ann saw the sea and", "Why")
CONTINUATIONS = (" 3 pens", " the sea.", " no")
TOKENIZER = train_bpe([*CONTEXTS, *CONTINUATIONS, "#### \n"] * 3, 300)
LONG = "Ann saw the sea and Tom has 3 pens. " * 18


def made(name="plain", **settings):
    torch.manual_seed(0)
    shape = ScratchConfig(layers=2, width=32, heads=2, mlp=32, context=96, init_std=0.3)
    backbone = load_backbone(BackboneConfig(scratch=shape), len(TOKENIZER))
    method = METHODS[name](backbone, METHODS[name].Config(**settings), Encoder(TOKENIZER).markers())
    return LMEval(method.eval(), Encoder(TOKENIZER, context=96), max_new_tokens=8, batch_size=2)


def test_likelihoods_are_those_of_one_plain_reading():
    quiet = made()
    model, found = (
        quiet.method.backbone.model,
        quiet.loglikelihood(list(zip(CONTEXTS, CONTINUATIONS, strict=True))),
    )
    for context, continuation, (total, greedy) in zip(CONTEXTS, CONTINUATIONS, found, strict=True):
        first, last = (TOKENIZER(text).input_ids for text in (f"{context}\n####", continuation))
        with torch.no_grad():
            logits_TV = model(torch.tensor([[*first, *last]])).logits[0, len(first) - 1 : -1]
        log_p_A = logits_TV.log_softmax(-1)[range(len(last)), last]
        assert total == pytest.approx(float(log_p_A.sum()), abs=1e-4)
        assert greedy == (logits_TV.argmax(-1).tolist() == last)
    (rolling,) = quiet.loglikelihood_rolling([LONG])
    ids, total = [TOKENIZER.eos_token_id, *TOKENIZER(LONG).input_ids], 0.0
    assert len(ids) > 2 * 96
    for at in range(1, len(ids)):  # each token once, in windows of 96 of which the last is a full one
        start = (at - 1) // 96 * 96 if at <= (len(ids) - 1) // 96 * 96 else len(ids) - 1 - 96
        with torch.no_grad():
            logits_V = model(torch.tensor([ids[start:at]])).logits[0, -1]
        total += float(logits_V.log_softmax(-1)[ids[at]])
    assert rolling == pytest.approx(total, rel=1e-4)
    assert [len(given) for given, _ in windows(range(10), 4)] == [4, 4, 4]


def test_what_is_written_ends_at_a_stop_text_and_whoever_cannot_be_asked_is_told_why():
    quiet = made()
    (free,) = quiet.generate_until([(CONTEXTS[0], {"until": [], "max_gen_toks": 12})])
    stop = free[3:5]
    both = quiet.generate_until(
        [(CONTEXTS[0], {"until": [stop], "max_gen_toks": 12}), (CONTEXTS[1], {"until": []})]
    )
    assert both[0] == free[: free.index(stop)].rstrip()
    quiet.whole = True
    assert quiet.generate_until([(CONTEXTS[0], {"max_gen_toks": 12})]) == [f"#### {free}"]
    with pytest.raises(UserError, match="do_sample=True: methods write greedily"):
        quiet.generate_until([("a", {"do_sample": True, "temperature": 0.7})])
    with pytest.raises(UserError, match="max_gen_toks=96 leaves no room"):
        quiet.generate_until([("a", {"max_gen_toks": 96})])
    with pytest.raises(UserError, match="method pause thinks between a question and its answer"):
        made("pause").loglikelihood_rolling(["a"])
    chain = made("cot")  # an untrained one never comes to its answer
    assert chain.loglikelihood([(CONTEXTS[0], " 3")]) == [(-math.inf, False)]
    if importlib.util.find_spec("lm_eval") is None:
        with pytest.raises(UserError, match=r"pip install quietreasoning\[eval\]"):
            register()


def test_a_direct_answer_scores_and_writes_as_the_harnesss_own_model(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-eval is absent; pip install quietreasoning[eval]")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.models.huggingface import HFLM

    quiet = made()
    ours = adapted(LM, lambda: quiet)()
    theirs = HFLM(
        quiet.method.backbone.model, tokenizer=TOKENIZER, backend="causal", batch_size=2, device="cpu"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"q": q, "choices": list(CONTINUATIONS), "gold": i, "text": LONG}) + "\n"
            for i, q in enumerate(CONTEXTS)
        )
    )

    def tasks(prefix):
        data = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "test_split": "test",
        }
        asks = {**data, "doc_to_text": "{{q}}" + prefix, "num_fewshot": 0}
        until = {"until": [" the"], "max_gen_toks": 8, "do_sample": False}
        return [
            {
                **asks,
                "task": "choose",
                "output_type": "multiple_choice",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "gold",
                "target_delimiter": "",
                "metric_list": [{"metric": "acc"}],
            },
            {
                **asks,
                "task": "write",
                "output_type": "generate_until",
                "doc_to_target": "{{choices[0]}}",
                "generation_kwargs": until,
                "metric_list": [{"metric": "exact_match"}],
            },
            {
                **data,
                "task": "read",
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{text}}",
                "metric_list": [{"metric": "word_perplexity"}],
            },
        ]

    def asked(model, prefix):
        found = simple_evaluate(model, tasks=tasks(prefix), bootstrap_iters=0, log_samples=True)
        return {name: [sample["resps"] for sample in samples] for name, samples in found["samples"].items()}

    mine, other = asked(ours, ""), asked(theirs, "\n####")
    for one, two in zip(mine["choose"], other["choose"], strict=True):
        for (a,), (b,) in zip(one, two, strict=True):
            assert a[0] == pytest.approx(b[0], abs=1e-3) and a[1] == b[1]
    for one, two in zip(mine["write"], other["write"], strict=True):
        assert one[0][0].strip() == two[0][0].strip()
    for one, two in zip(mine["read"], other["read"], strict=True):
        assert one[0][0] == pytest.approx(two[0][0], rel=1e-4)
