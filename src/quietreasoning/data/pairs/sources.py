"""Who thinks aloud, and where in its tokens the prompt ends, the chain stands and the answer begins.

A `Source` writes prompts and cuts turns by token ids. `RunSource` is a model of this toolkit that writes a
chain: the chain opens where the prompt ends, the answer prefix closes it. `ChatSource` is any causal model
whose chat template knows thinking: `<think>` and `</think>`, or markers of other names and several tokens.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

from transformers import PreTrainedTokenizerFast

from quietreasoning.backbone import Backbone
from quietreasoning.config import UserError
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example

INSTRUCTIONS = {
    "code": "Give the whole program in one Python code block.",
    "": 'End with "#### " and the answer alone.',
}
MARK = "####"
CURE = (
    "Give a model whose template thinks, name other markers with --open and --close, or give a run folder of "
    "method cot."
)
CLOCK = re.compile(r"""strftime_now\(\s*(["'])([^"']*)\1\s*\)""")
PROBES = ("0", "x")  # what two prompts share before these, all share


@dataclass(frozen=True)
class Prompt:
    ids: tuple[int, ...]
    turn: int  # where the model's own turn begins: its header may hold the opening marker
    shared: int  # how many first tokens every problem's prompt has in common


@dataclass(frozen=True)
class Places:
    """Positions among all tokens: [open, chain) opens, [chain, close) is the chain, [close, after) closes."""

    open: int
    chain: int
    close: int
    after: int


@dataclass(frozen=True)
class Markers:
    """Token ids that open and close a chain; `opened` is empty where the turn itself opens it."""

    opened: tuple[int, ...]
    closed: tuple[int, ...]
    eos: int

    def locate(self, ids: Sequence[int], turn: int) -> Places | None:
        """The places of the only chain in ids[turn:]; None where there is none, or markers are nested."""
        closes = find_all(ids, self.closed, turn)
        if not self.opened:
            return Places(turn, turn, closes[0], closes[0] + len(self.closed)) if closes else None
        opens = find_all(ids, self.opened, turn)
        if len(opens) != 1 or len(closes) != 1 or closes[0] < opens[0] + len(self.opened):
            return None
        return Places(opens[0], opens[0] + len(self.opened), closes[0], closes[0] + len(self.closed))


class Source(Protocol):
    backbone: Backbone
    markers: Markers

    def prompt(self, example: Example, scorer: str) -> Prompt:
        """The ids that the model is asked with."""

    def steps(self, chain: Sequence[int]) -> tuple[str, ...]:
        """The chain as written steps."""

    def answer(self, written: Sequence[int]) -> tuple[str, int]:
        """The answer in the tokens after the closing marker, and at which of them it begins."""

    def settings(self) -> dict[str, Any]:
        """All that changes a prompt or a cut."""


class RunSource:
    """The model of a run whose method writes its chain."""

    def __init__(self, backbone: Backbone, encoder: Encoder):
        markers = encoder.markers()
        self.backbone, self.encoder = backbone, encoder
        self.markers = Markers((), markers.answer_prefix, markers.eos)
        self._probes = [ids.tolist() for ids in encoder.prompt_ids(PROBES)]

    def prompt(self, example: Example, scorer: str) -> Prompt:
        (ids,) = self.encoder.prompt_ids([example.prompt])
        self.encoder.check_prompt(example.id, len(ids))
        shared = common(*self._probes, ids.tolist()) if self.encoder.format.chat else 0
        return Prompt(tuple(ids.tolist()), len(ids), shared)

    def steps(self, chain: Sequence[int]) -> tuple[str, ...]:
        text = self.encoder.tokenizer.decode(list(chain), skip_special_tokens=True)
        return _lines(text, self.encoder.format.step_suffix)

    def answer(self, written: Sequence[int]) -> tuple[str, int]:
        return self.encoder.text(written), 0

    def settings(self) -> dict[str, Any]:
        return {
            "source": "run",
            "format": self.encoder.format.model_dump(mode="json", exclude={"rationale"}),
            "tokenizer_sha256": tokenizer_hash(self.encoder.tokenizer),
        }


class ChatSource:
    """A model folder or hub id with a chat template that thinks.

    What the template would read from the world is pinned: the date it prints, whether thinking is on, the
    system message. UserError where it does not think.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        *,
        today: date,
        system: str | None = None,
        instruction: str | None = None,
        opened: str = "<think>",
        closed: str = "</think>",
    ):
        self.backbone, self.tokenizer, self.name = backbone, tokenizer, name
        self.today, self.system, self.instruction = today, system, instruction
        self.opened, self.closed = opened, closed
        self._refuse_without_template()
        self.template = pinned(tokenizer.chat_template, today, name)
        self._refuse_without_thinking()
        ids = [tuple(self._ids(text)) for text in (opened, closed)]
        self.markers = Markers(*ids, tokenizer.eos_token_id)
        self._probes = [self._ids(self._render(text)) for text in PROBES]

    def _refuse_without_template(self) -> None:
        template = self.tokenizer.chat_template
        if not isinstance(template, str) or not template:
            raise UserError(f"model {self.name} has no chat template, so nobody can ask it to think. {CURE}")
        if self.closed not in template:
            raise UserError(
                f"model {self.name}: its chat template says nothing of {self.closed!r}; it does not think "
                f"aloud. {CURE}"
            )

    def _refuse_without_thinking(self) -> None:
        for marker in (self.opened, self.closed):
            ids = self._ids(marker)
            if not ids or self.tokenizer.unk_token_id in ids:
                raise UserError(f"model {self.name}: its tokenizer has no tokens for {marker!r}. {CURE}")
        if self.closed in self._header("1 + 1"):
            raise UserError(
                f"model {self.name}: its chat template closes the thinking itself, before the model's turn. "
                f"{CURE}"
            )

    def prompt(self, example: Example, scorer: str) -> Prompt:
        asked = self._asked(example.prompt, scorer)
        ids, header = self._ids(self._render(asked)), self._ids(self._header(asked))
        turn = len(ids) - len(header) if header and ids[-len(header) :] == header else len(ids)
        return Prompt(tuple(ids), turn, min(common(*self._probes, ids), turn))

    def steps(self, chain: Sequence[int]) -> tuple[str, ...]:
        return _lines(self.tokenizer.decode(list(chain), skip_special_tokens=True), "\n")

    def answer(self, written: Sequence[int]) -> tuple[str, int]:
        """After the last mark `####`; without one, all that was written."""
        text = self._decode(written)
        at = text.rfind(MARK) + len(MARK) if MARK in text else 0
        at += len(text[at:]) - len(text[at:].lstrip())
        first = bisect_right(range(len(written)), at, key=lambda n: len(self._decode(written[: n + 1])))
        return text[at:].strip(), first

    def settings(self) -> dict[str, Any]:
        return {
            "source": "chat",
            "template_sha256": hashlib.sha256(self.tokenizer.chat_template.encode()).hexdigest(),
            "tokenizer_sha256": tokenizer_hash(self.tokenizer),
            "date": self.today.isoformat(),
            "thinking": True,
            "system": self.system,
            "instruction": self.instruction,
            "markers": [self.opened, self.closed],
        }

    def _asked(self, question: str, scorer: str) -> str:
        given = self.instruction
        instruction = INSTRUCTIONS.get(scorer, INSTRUCTIONS[""]) if given is None else given
        return f"{question}\n\n{instruction}" if instruction else question

    def _render(self, content: str, turn: bool = True) -> str:
        messages = [{"role": "user", "content": content}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=turn,
            enable_thinking=True,
            chat_template=self.template,
            date_string=self.today.strftime("%d %b %Y"),
        )

    def _header(self, content: str) -> str:
        """What the template writes to begin the model's turn."""
        before, whole = self._render(content, turn=False), self._render(content)
        return whole[len(before) :] if whole.startswith(before) else ""

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


def common(*rows: Sequence[int]) -> int:
    """How many first tokens all rows share."""
    columns = enumerate(zip(*rows, strict=False))
    return next((i for i, column in columns if len(set(column)) > 1), min(map(len, rows)))


def pinned(template: str, today: date, name: str) -> str:
    """The template with the day in place of each question to the clock; UserError where one hides."""
    fixed = CLOCK.sub(lambda call: repr(today.strftime(call[2])), template)
    if "strftime_now(" in fixed or "strftime_now (" in fixed:
        raise UserError(
            f"model {name}: its chat template asks the clock in a way that cannot be pinned, so tomorrow's "
            "prompts would be others. Write the format out in its chat_template.jinja."
        )
    return fixed


def find_all(ids: Sequence[int], marker: Sequence[int], start: int = 0) -> list[int]:
    """Where `marker` begins in ids[start:]; occurrences do not overlap."""
    found, at, marker = [], start, tuple(marker)
    while at + len(marker) <= len(ids):
        if tuple(ids[at : at + len(marker)]) == marker:
            found.append(at)
            at += len(marker)
        else:
            at += 1
    return found


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def _lines(text: str, suffix: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.split(suffix) if line.strip())
