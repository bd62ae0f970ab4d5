"""What lm-evaluation-harness asks of a model, of any method: to write until a text, and how likely a text is.

- Writing: the method's own greedy answer to the context, after its own thoughts; of a visible chain only what
  follows the answer prefix, unless `whole`.
- Likelihood of a continuation: as the answer, after the thoughts that the method has about the context. It is
  made to write the continuation, and each token counts as likely as it was at its place. An answer that never
  comes, because a chain does not end, has likelihood 0.
- Likelihood of running text: that of the language model, where a method has no thoughts of its own; elsewhere
  such a number would be of another model, and is refused.

A context is encoded as a prompt in training is (suffix or chat template), the answer prefix follows. No part
of lm-eval is imported; `python -m quietreasoning.tools.lm_eval` brings the two together.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from quietreasoning.backbone import role_of
from quietreasoning.config import UserError
from quietreasoning.contract import Method, Role
from quietreasoning.data.encoder import Encoder
from quietreasoning.evaluate.answer_only import AnswerOnly
from quietreasoning.evaluate.asking import answering, cut, device_of, pad_left
from quietreasoning.methods.writing import Speaker

_GREEDY = {"do_sample": (False, None), "num_beams": (1, None)}


class LMEval:
    """max_new_tokens: where a task does not say, and for a chain before an answer that is scored."""

    def __init__(
        self, method: Method, encoder: Encoder, max_new_tokens: int, batch_size: int = 16, whole: bool = False
    ):
        self.method, self.encoder, self.whole = method, encoder, whole
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        if not method.answers:
            raise UserError(f"method {method.config.name} answers nothing; lm-eval has nothing to ask it")

    def generate_until(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """A text for each (context, settings of its task: `until`, `max_gen_toks`)."""
        groups: dict[tuple, list[int]] = {}
        for i, (_, settings) in enumerate(requests):
            groups.setdefault(self._settings(settings), []).append(i)
        texts = [""] * len(requests)
        for (limit, stop), chosen in groups.items():
            answer_only = AnswerOnly(self.encoder.tokenizer, stop=stop)
            prompts = self._prompts([requests[i][0] for i in chosen], [limit] * len(chosen))
            for batch in self._batches(prompts):
                permit = answer_only.permit(self.method) if stop else None
                with answering(self.method):
                    said = self.method.generate(
                        self._padded(prompts, batch), max_new_tokens=limit, permit=permit
                    )
                read = answer_only.text(self.encoder.text)
                for place, tokens, answer in zip(batch, said.tokens, said.answers, strict=True):
                    text = read(answer_only.cut(answer))
                    if self.whole:
                        text = f"{self.encoder.text(tokens[: len(tokens) - len(answer)])} {text}".strip()
                    texts[chosen[place]] = text
        return texts

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """log p of each (context, continuation), and whether greedy writing would have said it."""
        answers = [self._ids(continuation) for _, continuation in pairs]
        limits = [self.max_new_tokens + len(ids) for ids in answers]
        prompts = self._prompts([context for context, _ in pairs], limits)
        found: list[tuple[float, bool]] = [(-math.inf, False)] * len(pairs)
        for batch in self._batches(prompts):
            forced = Forced([answers[i] for i in batch])
            with answering(self.method):
                self.method.generate(
                    self._padded(prompts, batch), max_new_tokens=max(limits[i] for i in batch), permit=forced
                )
            for i, score in zip(batch, forced.scores(), strict=True):
                found[i] = score
        if mute := sum(math.isinf(total) for total, _ in found):
            print(f"{mute} of {len(pairs)} answers never came, and have likelihood 0", file=sys.stderr)
        return found

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """log p of each text behind a begin of sequence, or an end where the tokenizer has none; one longer
        than the context in windows: each token once, the last window a full one."""
        method = self.method
        if method.controls or not isinstance(method, Speaker):
            raise UserError(
                f"method {method.config.name} thinks between a question and its answer, and running text has "
                "neither: lm-eval's rolling likelihood does not apply. Ask for its language model alone: "
                "quiet export, then --model hf"
            )
        tokenizer = self.encoder.tokenizer
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        found = []
        for text in texts:
            ids, total = tokenizer(text, add_special_tokens=False)["input_ids"], 0.0
            for given, scored in windows([first, *ids], method.backbone.context):
                ids_1T = torch.tensor([given], device=device_of(method))
                with answering(method):
                    hidden_TD = method.backbone(ids_1T, role_of(ids_1T, Role.PROMPT)).hidden_BTD[0]
                    logits_NV = method.backbone.logits(hidden_TD[-len(scored) :]).float()
                scored_N1 = torch.tensor(scored, device=logits_NV.device)[:, None]
                total += float(logits_NV.log_softmax(-1).gather(1, scored_N1).double().sum())
            found.append(total)
        return found

    def _settings(self, given: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
        """(limit, stop texts); UserError for anything but greedy writing."""
        for name, allowed in _GREEDY.items():
            if given.get(name) not in allowed:
                raise UserError(f"{name}={given[name]}: methods write greedily; set it to {allowed[0]}")
        until = given.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(text for text in until if text)
        limit = int(given.get("max_gen_toks") or self.max_new_tokens)
        if limit >= self.method.backbone.context:
            raise UserError(
                f"max_gen_toks={limit} leaves no room for a prompt in a context of "
                f"{self.method.backbone.context}; lower it with --gen_kwargs max_gen_toks=N"
            )
        return limit, stop

    def _prompts(self, contexts: Sequence[str], reserved: Sequence[int]) -> list[list[int]]:
        """Ids of the contexts; one that leaves less room than is reserved loses its beginning."""
        context = self.method.backbone.context - len(self.method.markers.answer_prefix)
        prompts, shortened = [], 0
        for ids, room in zip(self.encoder.prompt_ids(list(contexts)), reserved, strict=True):
            kept = list(ids[-max(1, context - room) :]) or [self.method.markers.eos]
            shortened += len(kept) < len(ids)
            prompts.append(kept)
        if shortened:
            print(f"{shortened} of {len(prompts)} contexts lost their beginning", file=sys.stderr)
        return prompts

    def _ids(self, continuation: str) -> list[int]:
        ids = self.encoder.tokenizer(continuation, add_special_tokens=False)["input_ids"]
        if not ids:
            raise UserError(f"the continuation {continuation!r} has no token in this tokenizer")
        return ids

    def _batches(self, prompts: Sequence[list[int]]) -> Iterator[list[int]]:
        yield from cut(prompts, self.batch_size, keep_order=False)

    def _padded(self, prompts: Sequence[list[int]], batch: Sequence[int]) -> Tensor:
        return pad_left([prompts[i] for i in batch]).to(device_of(self.method))


class Forced:
    """A permit under which each row can write nothing but its answer; notes how likely each token was."""

    def __init__(self, answers: Sequence[Sequence[int]]):
        self.answers = answers
        self.log_p: list[list[float]] = [[] for _ in answers]
        self.greedy = [True] * len(answers)

    def __call__(self, row: int, tokens: Sequence[int], logits_V: Tensor) -> Tensor:
        allowed_V, written = torch.zeros(len(logits_V), dtype=torch.bool), len(tokens)
        if written < len(self.answers[row]):
            id = self.answers[row][written]
            allowed_V[id] = True
            self.log_p[row].append(float(logits_V.float().log_softmax(-1)[id]))
            self.greedy[row] &= int(logits_V.argmax()) == id
        return allowed_V

    def scores(self) -> list[tuple[float, bool]]:
        """(log p, greedy) of each answer; -inf of one that was not written to its end."""
        return [
            (math.fsum(log_p), greedy) if len(log_p) == len(answer) else (-math.inf, False)
            for log_p, greedy, answer in zip(self.log_p, self.greedy, self.answers, strict=True)
        ]


def windows(ids: Sequence[int], context: int) -> Iterator[tuple[list[int], list[int]]]:
    """(what is read, what its last states predict): each token but the first once."""
    for start in range(1, len(ids), context):
        end = min(start + context, len(ids))
        yield list(ids[max(0, end - 1 - context) : end - 1]), list(ids[start:end])


def adapted(base: type, make: Callable[..., LMEval]) -> type:
    """A model for lm-evaluation-harness, a subclass of `lm_eval.api.model.LM`; it answers by what `make`
    gives for its `--model_args`."""

    class Quiet(base):
        def __init__(self, **args: Any):
            super().__init__()
            for unused in ("device", "max_batch_size"):  # lm-eval hands them to every model
                args.pop(unused, None)
            self.inner = make(**args)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return self.inner.generate_until([request.args for request in requests])

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False):
            return self.inner.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            return self.inner.loglikelihood_rolling([request.args[0] for request in requests])

    return Quiet
