"""One example to token ids and back: prompt, steps, the result inside each step, answer.

The parts are encoded one by one, so a method may write, drop or replace any of them:
`prompt + prompt_suffix`, then each `step + step_suffix`, then `answer_prefix`, then ` answer` and
end of sequence. A window of running text is a prompt without suffix, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch, Markers
from quietreasoning.data.config import Format
from quietreasoning.data.example import Example
from quietreasoning.data.halt_targets import halt_field
from quietreasoning.data.padding import Ids, pad_known, pad_left, pad_right, pad_steps
from quietreasoning.data.prompts import Prompts
from quietreasoning.data.results import result_tokens
from quietreasoning.data.spans.answer import AnswerReader, AnswerTokens, padded
from quietreasoning.data.tasks.base import digest
from quietreasoning.data.taught import Taught, TaughtReader, taught_fields
from quietreasoning.data.thinking import plain_ids, thinking_ids

_ANSWER = "\0"  # in place of a result: the text is an answer
_CACHE = 200_000  # step and answer texts recur; beyond this many the cache starts anew


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one example. Steps and results are concatenated, with one length a step."""

    prompt: Ids
    steps: Ids
    step_lengths: Ids
    results: Ids
    result_lengths: Ids
    answer: Ids  # ends with the end of sequence
    rare: int = IGNORE  # 1: the answer is a long-tail fact, 0: a popular one
    instructed: Ids | None = None  # the prompt under `format.instruction`, where there is one
    tokens: AnswerTokens | None = None  # what the answer's are, under `format.spans`
    taught: Taught | None = None  # what a teacher with another tokenizer reads, under `format.taught`
    rejected: Ids | None = None  # another answer, which is not wanted, with the end of sequence
    rejected_classes: Ids | None = None  # Kind of its tokens, under `format.spans`
    halt: tuple[int, int] | None = None  # where thinking should stop, under `format.halt`


class Encoder:
    """Turns examples into ids. Lengths beyond the limits are refused; with cut_middle a prompt is cut.

    max_prompt_tokens: longest prompt; context: longest prompt, chain, prefix and answer together.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        format: Format | None = None,
        *,
        max_prompt_tokens: int | None = None,
        context: int | None = None,
        cut_middle: bool = False,
    ):
        self.tokenizer = tokenizer
        self.format = format or Format()
        self.max_prompt_tokens, self.context = max_prompt_tokens, context
        self._limit = max_prompt_tokens if cut_middle else None
        self._parts: dict[tuple[str, str], tuple[Ids, Ids]] = {}
        self._reader = AnswerReader(tokenizer, self.format.spans) if self.format.spans else None
        self.taught = TaughtReader(tokenizer, self.format) if self.format.taught else None
        self.prompting = Prompts(tokenizer, self.format)
        self._eos, self._unknown = tokenizer.eos_token_id, tokenizer.unk_token_id
        self._prefix = tuple(self._ids([self.format.answer_prefix])[0])
        self._thinking = thinking_ids(tokenizer)
        self._check_format()

    def _check_format(self) -> None:
        if self._eos is None:
            raise UserError("the tokenizer has no end-of-sequence token; set eos_token in its settings")
        if not self._prefix:
            raise UserError(f"format.answer_prefix={self.format.answer_prefix!r} is no token; use a word")
        if self._unknown in self._prefix:
            raise UserError(
                f"format.answer_prefix={self.format.answer_prefix!r} is unknown to this tokenizer; "
                "use a word that it knows"
            )
        if self.format.tags and not self._thinking:
            raise UserError(
                "format.tags=true writes steps between <think> and </think>, which this tokenizer lacks; set "
                "data.tokenizer.thinking=true"
            )
        with_suffix, without = self._ids(["a" + self.format.step_suffix, "a"])
        if len(with_suffix) == len(without):
            raise UserError(
                f"format.step_suffix={self.format.step_suffix!r} vanishes in this tokenizer; "
                "a chain could not tell its steps apart: use format.step_suffix=' ;'"
            )

    def markers(self) -> Markers:
        openers = () if self._reader is None else self._reader.openers
        return Markers(self._prefix, self._eos, self._rationale(), self._thinking, openers)

    def _rationale(self) -> tuple[int, ...]:
        """Words of `format.rationale` that are one known token, bare or after a space."""
        words = [space + word for word in self.format.rationale for space in ("", " ")]
        alone = {ids[0] for ids in self._ids(words) if len(ids) == 1} if words else set()
        return tuple(sorted(alone - {self._unknown, self._eos, *self._prefix}))

    def encode(self, example: Example) -> Encoded:
        return self.encode_many([example])[0]

    def encode_many(self, examples: Sequence[Example]) -> list[Encoded]:
        """UserError where a prompt or a whole example is too long, or an answer holds unknown words."""
        if any(example.ids is not None for example in examples):
            return [self._window(example) for example in examples]
        self._learn(examples)
        pairs = self._both_ids(examples)
        taught = [None] * len(examples) if self.taught is None else self.taught.rows(examples)
        return [
            self._assemble(example, *ids, said)
            for example, ids, said in zip(examples, pairs, taught, strict=True)
        ]

    def batch(self, examples: Sequence[Example]) -> Batch:
        """The examples as one batch, outside of training."""
        return self.collate(self.encode_many(examples), [digest(example.id) for example in examples])

    def document_ids(self, documents: Sequence[Example]) -> list[Ids]:
        """Ids of whole texts, each with one end of sequence; no limit is checked."""
        texts = [document.prompt for document in documents]
        # what looks like a special token is written out: in a text it means nothing
        found = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
        for document, ids in zip(documents, found, strict=True):
            if self._eos in ids:
                raise UserError(
                    f"document {document.id} holds {self.tokenizer.eos_token!r}, this tokenizer's end of "
                    "sequence, as a word; remove it, or use data.tokenizer.train=bpe"
                )
        return [np.array([*self.prompting.start, *ids, self._eos], dtype=np.int32) for ids in found]

    def prompt_ids(self, prompts: Sequence[str], instruction: str | None = None) -> list[Ids]:
        """Ids of each prompt with its suffix, or in the chat template; no limit is checked.

        instruction: stands before the prompt, in a chat as the system message.
        """
        return self.prompting.ids(prompts, instruction)

    def _both_ids(self, examples: Sequence[Example]) -> list[tuple[Ids, Ids | None]]:
        """Ids of each prompt, and of the prompt under the instruction where the format has one."""
        texts, instruction = [example.prompt for example in examples], self.format.instruction
        ids, limit = self.prompting.ids, self._limit
        taught = [None] * len(texts) if instruction is None else ids(texts, instruction, limit)
        return list(zip(ids(texts, limit=limit), taught, strict=True))

    def prompts(self, examples: Sequence[Example]) -> Tensor:
        """prompt_BP for `Method.generate`, padded on the left; UserError where one is too long."""
        ids = self.prompting.ids([example.prompt for example in examples], limit=self._limit)
        for example, prompt in zip(examples, ids, strict=True):
            self.check_prompt(example.id, len(prompt))
        return pad_left(ids)

    def check_prompt(self, id: str, length: int) -> None:
        """UserError where a prompt is empty, longer than max_prompt_tokens, or fills the context."""
        if length == 0:
            raise UserError(f"example {id}: its prompt is empty; a prompt needs at least one token")
        if self.max_prompt_tokens is not None and length > self.max_prompt_tokens:
            raise UserError(
                f"example {id}: its prompt has {length} tokens, more than "
                f"data.max_prompt_tokens={self.max_prompt_tokens}; raise it, or drop long prompts with "
                "data.too_long=drop"
            )
        if self.context is not None and length >= self.context:
            raise UserError(
                f"example {id}: its prompt has {length} tokens, the model's context is {self.context}; "
                "use a longer context, or drop long prompts with data.too_long=drop"
            )

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that the tokenizer has no token for."""
        words = list(dict.fromkeys(prompt.split()))
        if self._unknown is None or not words:
            return []
        return [word for word, ids in zip(words, self._ids(words), strict=True) if self._unknown in ids]

    def text(self, ids: Sequence[int], *, tags: bool = False) -> str:
        """The text of generated ids without special tokens, the one space before an answer, or a tail.

        tags: thinking tokens stay, for whoever judges a thought.
        """
        ids = plain_ids(self.tokenizer, ids) if tags else list(ids)
        return self.tokenizer.decode(ids, skip_special_tokens=not tags).rstrip().removeprefix(" ")

    def fit(self, examples: Sequence[Example]) -> list[bool]:
        """Whether each example keeps within both limits."""
        self._learn(examples)
        pairs = self._both_ids(examples)
        return [
            self._fits(len(ids[0]), self._length(e, *ids)) for e, ids in zip(examples, pairs, strict=True)
        ]

    def _length(self, example: Example, prompt: Ids, instructed: Ids | None) -> int:
        """Tokens of the prompt, the longer one, with steps, answer prefix, answer and end of sequence."""
        steps = sum(len(self._parts[part][0]) for part in zip(example.steps, example.results, strict=True))
        answer = max(len(self._parts[text, _ANSWER][0]) for text in example.answers)
        longest = max(len(prompt), 0 if instructed is None else len(instructed))
        tags = 2 if self.format.tags and example.steps else 0
        return longest + tags + steps + answer + len(self._prefix) + 1

    def _fits(self, prompt_length: int, length: int) -> bool:
        if self.max_prompt_tokens is not None and prompt_length > self.max_prompt_tokens:
            return False
        return self.context is None or length <= self.context

    def collate(self, rows: Sequence[Encoded], keys: Sequence[int]) -> Batch:
        """Rows to one batch; keys are the example keys that seed whatever a method samples."""
        num_steps = max(len(row.step_lengths) for row in rows)
        return Batch(
            keys_B=torch.tensor(keys, dtype=torch.int64),
            prompt_BP=pad_left([row.prompt for row in rows]),
            steps_BKS=pad_steps([row.steps for row in rows], [row.step_lengths for row in rows], num_steps),
            results_BKR=pad_steps(
                [row.results for row in rows], [row.result_lengths for row in rows], num_steps
            ),
            answer_BA=pad_right([row.answer for row in rows]),
            rare_B=torch.tensor([row.rare for row in rows], dtype=torch.int64),
            instructed_BP=None if rows[0].instructed is None else pad_left([row.instructed for row in rows]),
            rejected_BA=pad_known([row.rejected for row in rows]),
            halt_B2=None if rows[0].halt is None else torch.tensor([row.halt for row in rows]),
            rejected_classes_BA=pad_known([row.rejected_classes for row in rows]),
            **padded([row.tokens for row in rows]),
            **taught_fields([row.taught for row in rows]),
        )

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False).input_ids

    def _learn(self, examples: Sequence[Example]) -> None:
        """Encode the steps and answers not met before, all in one call."""
        if len(self._parts) > _CACHE:
            self._parts.clear()
        new: dict[tuple[str, str], str] = {}
        for example in examples:
            for part in zip(example.steps, example.results, strict=True):
                if part not in self._parts:
                    new[part] = part[0] + self.format.step_suffix
            for text in example.answers:
                if (text, _ANSWER) not in self._parts:
                    new[text, _ANSWER] = " " + text
        if not new:
            return
        batch = self.tokenizer(list(new.values()), add_special_tokens=False, return_offsets_mapping=True)
        for (text, result), ids, offsets in zip(new, batch.input_ids, batch.offset_mapping, strict=True):
            inside = result_tokens(text, result, offsets) if result != _ANSWER else []
            whole = np.array(ids, dtype=np.int32)
            self._parts[text, result] = (whole, whole[inside] if inside else whole[:0])

    def _assemble(
        self, example: Example, prompt: Ids, instructed: Ids | None, taught: Taught | None
    ) -> Encoded:
        parts = [self._parts[part] for part in zip(example.steps, example.results, strict=True)]
        answers = [self._answer(example, text) for text in example.answers]
        reads = self._reader is not None and example.rejected is not None
        steps, empty = [ids for ids, _ in parts], prompt[:0]
        if self.format.tags and steps:
            steps[0] = np.insert(steps[0], 0, self._thinking[0])
            steps[-1] = np.append(steps[-1], np.int32(self._thinking[1]))
        encoded = Encoded(
            prompt=prompt,
            steps=np.concatenate(steps) if steps else empty,
            step_lengths=np.array([len(ids) for ids in steps], dtype=np.int32),
            results=np.concatenate([ids for _, ids in parts]) if parts else empty,
            result_lengths=np.array([len(ids) for _, ids in parts], dtype=np.int32),
            answer=answers[0],
            rare=int(example.meta.get("rare", IGNORE)),
            instructed=instructed,
            taught=taught,
            tokens=None if self._reader is None else self._reader.read(example),
            halt=None if self.format.halt is None else halt_field(example, self.format.halt),
            rejected=None if example.rejected is None else answers[1],
            rejected_classes=self._reader.read_rejected(example) if reads else None,
        )
        length = self._length(example, prompt, instructed)
        if len(prompt) == 0 or not self._fits(len(prompt), length):
            self.check_prompt(example.id, len(prompt))
            under = "" if instructed is None else " under format.instruction"
            raise UserError(
                f"example {example.id}: prompt{under}, steps and answer have {length} tokens, the "
                f"model's context is {self.context}; use a longer context, or drop such rows with "
                "data.too_long=drop"
            )
        return encoded

    def _window(self, example: Example) -> Encoded:
        """A window of running text: a prompt alone."""
        ids = np.asarray(example.ids, dtype=np.int32)
        if self.context is not None and len(ids) > self.context:
            raise UserError(
                f"window {example.id} has {len(ids)} tokens, the model's context is {self.context}; "
                "set data.options.window=null"
            )
        none = ids[:0]
        return Encoded(ids, none, none, none, none, none)

    def _answer(self, example: Example, text: str) -> Ids:
        """Ids of one of its answers, with the end of sequence."""
        answer = self._parts[text, _ANSWER][0]
        if len(answer) == 0:
            raise UserError(f"example {example.id} has an empty answer; check the fields of its file")
        if self._unknown is not None and self._unknown in answer:
            raise UserError(
                f"example {example.id}: its answer '{text}' holds words that the tokenizer does "
                "not know; train it on this task, or use tokenizer.train=bpe"
            )
        return np.append(answer, np.int32(self._eos))
