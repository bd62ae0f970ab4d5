"""From problems to rollouts: sample in batches, cut by markers, judge, read states, lose nothing.

Tokens are sampled in batches; states are read afterwards, one row at a time without padding, from the saved
ids. So what is written down of a rollout is a function of its ids, bit for bit, whatever batch it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quietreasoning.backbone import last_hidden, role_of
from quietreasoning.backbone.sampling import sample
from quietreasoning.backbone.states import Layer, read_states
from quietreasoning.contract import Role
from quietreasoning.data.example import Example
from quietreasoning.data.padding import pad_left
from quietreasoning.data.pairs.folder import CORRECT, MALFORMED, OOM, TRUNCATED, UNSCORED, WHOLE, WRONG, Row
from quietreasoning.data.pairs.keys import Item, uniforms
from quietreasoning.data.pairs.shards import DTYPES, Rollout
from quietreasoning.data.pairs.sources import Places, Prompt, Source
from quietreasoning.data.results import find_result
from quietreasoning.data.tasks.jsonl import result_of

Judge = Callable[[str, Example, str], bool]  # (answer, example, scorer): is it right?
Sampler = Callable[..., list[list[int]]]  # as backbone.sampling.sample
IN_META = ("tests", "cases", "code_prefix", "entry_point", "answers")  # what scorers read


@dataclass(frozen=True)
class RollSettings:
    """What every rollout of a folder has in common."""

    seed: int = 0
    temperature: float = 0.0
    max_new_tokens: int = 512
    layers: tuple[Layer, ...] = ("last",)
    dtype: str = "float32"  # of the stored states
    target: str = "close"  # where hidden_post stands: close or pre_answer
    keep: str = "correct"  # or all
    stop_at_close: bool = False  # write the chain alone
    keep_system_prefix: bool = False  # hidden_pre from the first token on


class Roller:
    """Makes rollouts of a source. `judge` decides what is right, `sampler` draws tokens."""

    def __init__(self, source: Source, settings: RollSettings, judge: Judge, sampler: Sampler = sample):
        self.source, self.settings, self.judge, self._sampler = source, settings, judge, sampler

    def __call__(self, items: Sequence[Item]) -> list[Rollout]:
        """One rollout an item. A batch that does not fit in memory is halved and asked again; an item that
        does not fit alone is written down as such."""
        prompts = [self.source.prompt(item.problem.example, item.problem.scorer) for item in items]
        return self._halving(list(zip(items, prompts, strict=True)))

    def _halving(self, batch: list[tuple[Item, Prompt]]) -> list[Rollout]:
        try:
            return self._roll(batch)
        except (torch.OutOfMemoryError, MemoryError):
            pass  # outside of the handler, so that the failed batch's tensors are free
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        if len(batch) == 1:
            item, prompt = batch[0]
            return [Rollout(self._row(item, prompt, [], OOM), {})]
        half = len(batch) // 2
        return self._halving(batch[:half]) + self._halving(batch[half:])

    def _roll(self, batch: list[tuple[Item, Prompt]]) -> list[Rollout]:
        fits = [entry for entry in batch if self.fits(entry[1])]
        written = iter(self._sample(fits) if fits else ())
        return [
            self._finish(item, prompt, next(written) if self.fits(prompt) else []) for item, prompt in batch
        ]

    def fits(self, prompt: Prompt) -> bool:
        """Whether the model's context has room for all that may be written; else the rollout is truncated."""
        return len(prompt.ids) + self.settings.max_new_tokens <= self.source.backbone.context

    @torch.no_grad()
    def _sample(self, batch: list[tuple[Item, Prompt]]) -> list[list[int]]:
        s, backbone, markers = self.settings, self.source.backbone, self.source.markers
        device = next(backbone.parameters()).device
        prompt_BP = pad_left([prompt.ids for _, prompt in batch]).to(device)
        states = backbone(prompt_BP, role_of(prompt_BP, Role.PROMPT), keep=True)
        numbers = [torch.from_numpy(uniforms(s.seed, item, s.max_new_tokens)) for item, _ in batch]
        return self._sampler(
            backbone,
            states.past,
            last_hidden(states),
            max_new_tokens=s.max_new_tokens,
            eos=markers.eos,
            temperature=s.temperature,
            uniforms_BN=torch.stack(numbers).to(device) if s.temperature > 0 else None,
            stop=markers.closed if s.stop_at_close else (),
        )

    def _finish(self, item: Item, prompt: Prompt, written: list[int]) -> Rollout:
        """Cut, judged, and read where it is kept."""
        ids, markers = [*prompt.ids, *written], self.source.markers
        places = markers.locate(ids, prompt.turn)
        stopped = places is not None and self.settings.stop_at_close
        if not stopped and (not written or written[-1] != markers.eos):
            return Rollout(self._row(item, prompt, written, TRUNCATED), {})
        if places is None:
            return Rollout(self._row(item, prompt, written, MALFORMED), {})
        said = [id for id in ids[places.after :] if id != markers.eos]
        answer, first = self.source.answer(said)
        if stopped:
            outcome = UNSCORED
        else:
            right = self.judge(answer, item.problem.example, item.problem.scorer)
            outcome = CORRECT if right else WRONG
        row = self._row(item, prompt, written, outcome)
        start = 0 if self.settings.keep_system_prefix else prompt.shared
        row |= {
            "kept": outcome == CORRECT or (self.settings.keep == "all" and outcome in WHOLE),
            "answer": answer,
            "places": [start, places.open, places.chain, places.close, places.after, places.after + first],
            "seq_length": places.open - start,
            "num_thinking_tokens": places.close - places.chain,
            **self._chain(item.problem.example, ids[places.chain : places.close]),
        }
        return Rollout(row, self._states(ids, start, places, first) if row["kept"] else {})

    def _chain(self, example: Example, chain: Sequence[int]) -> Row:
        """The chain as steps, with their results: the gold one where the step is the gold step."""
        steps = self.source.steps(chain)
        gold = dict(zip(example.steps, example.results, strict=True))
        results = [gold.get(step) or result_of(step) for step in steps]
        known = [r if find_result(step, r) >= 0 else "" for step, r in zip(steps, results, strict=True)]
        return {"steps": list(steps), "results": known}

    def _row(self, item: Item, prompt: Prompt, written: list[int], outcome: str) -> Row:
        example = item.problem.example
        return {
            "key": item.key,
            "id": item.problem.id,
            "sample": item.sample,
            "dataset": item.problem.dataset,
            "split": item.problem.split,
            "outcome": outcome,
            "kept": False,
            "problem": example.prompt,
            "gold": example.answer,
            "scorer": item.problem.scorer,
            "meta": {name: example.meta[name] for name in IN_META if name in example.meta},
            "prompt_length": len(prompt.ids),
            "written": len(written),
            "ids": [*prompt.ids, *written],
        }

    def _states(self, ids: list[int], start: int, places: Places, first: int) -> dict[str, Tensor]:
        """One teacher-forced forward over the ids up to the last state that is wanted."""
        end = places.after if self.settings.target == "close" else places.after + first
        device = next(self.source.backbone.parameters()).device
        ids_1T = torch.tensor([ids[:end]], device=device)
        found = read_states(
            self.source.backbone, ids_1T, torch.full_like(ids_1T, int(Role.PROMPT)), self.settings.layers
        )
        kept: dict[str, Tensor] = {}
        for layer, states_1TD in found.items():
            states_TD = states_1TD[0].to("cpu", DTYPES[self.settings.dtype])
            kept[f"pre/{layer}"] = states_TD[start : places.open].clone()
            kept[f"post/{layer}"] = states_TD[end - 1].clone()
        return kept
