"""A conversation in the tokenizer's chat template, and where in it the assistant wrote.

A template with `{% generation %}` blocks says so itself. Without them, each turn is what the conversation up
to it adds to the conversation before it with the prompt to answer; both must be how the whole text begins.
Templates that rewrite earlier turns fail that check and are refused, never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.data.spans.conversation import Conversation
from quietreasoning.data.spans.dialects import dialect
from quietreasoning.data.spans.offsets import Offsets, widened
from quietreasoning.data.spans.render import Rendered, Written, check_plain_text, control_tokens

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Chat:
    """The tokenizer's own template; UserError where it has none."""

    def __init__(self, tokenizer: Any, *, dialect_name: str | None = None, allow: Sequence[str] = ()):
        """dialect_name: of the calls that the template writes; None takes whichever reads them back.

        allow: special tokens that a turn may hold as text.
        """
        if not tokenizer.chat_template:
            raise UserError(
                "the tokenizer has no chat template; use the plain format, or a chat model's tokenizer"
            )
        self.tokenizer = tokenizer
        self.dialect = dialect(dialect_name) if dialect_name else None
        self._controls = control_tokens(tokenizer, allow)

    def render(self, conversation: Conversation) -> Rendered:
        """The text with the turns to learn, each with the control token that ends it. UserError where a turn
        cannot be found, or one but the last has no such end."""
        check_plain_text(conversation, self._controls)
        text = self._text(conversation, len(conversation.turns), False)
        template = self.tokenizer.get_chat_template(tools=list(conversation.tools) or None)
        tokens = None
        if _GENERATION.search(template) and self.tokenizer.is_fast:
            tokens, turns = self._by_blocks(conversation, text)
        else:
            turns = [
                self._by_prefixes(conversation, index, text)
                for index, turn in enumerate(conversation.turns)
                if turn.role == "assistant" and turn.learn
            ]
        turns = [self._with_end(text, turn) for turn in turns]
        ended = [text[turn.start : turn.end].endswith(self._controls) for turn in turns]
        if not all(ended[:-1]):
            raise UserError(
                f"the chat template ends assistant turn {turns[ended.index(False)].index} with no control "
                "token; a model could not learn to stop there: learn the last turn alone, or mend it"
            )
        for turn in turns:
            self._check(conversation, turn, text)
        return Rendered(text, tuple(turns), ended[-1], tokens)

    def _text(self, conversation: Conversation, count: int, prompt: bool) -> str:
        """The first `count` turns; prompt: with the header of an answer to come."""
        if not count:
            raise UserError(
                "a chat template needs a turn before the assistant's; begin with one of the user's"
            )
        try:
            return self.tokenizer.apply_chat_template(
                conversation.messages()[:count],
                tools=list(conversation.tools) or None,
                add_generation_prompt=prompt,
                tokenize=False,
            )
        except Exception as error:  # a template is a program: it raises what it likes
            raise UserError(
                f"the chat template refuses the conversation ({' '.join(str(error).split())[:200]})"
            ) from error

    def _by_prefixes(self, conversation: Conversation, index: int, text: str) -> Written:
        before = self._text(conversation, index, True)
        after = self._text(conversation, index + 1, False)
        if not (text.startswith(before) and text.startswith(after) and len(before) < len(after)):
            raise UserError(
                f"assistant turn {index} cannot be found in the chat template's text: the template writes a "
                "turn otherwise once more follows. Set learn to false for that turn, or use a template with "
                "{% generation %} blocks"
            )
        return Written(index, len(before), len(after))

    def _by_blocks(
        self, conversation: Conversation, text: str
    ) -> tuple[tuple[list[int], Offsets], list[Written]]:
        """Tokens, and the turns as runs of the template's own mask."""
        found = self.tokenizer.apply_chat_template(
            conversation.messages(),
            tools=list(conversation.tools) or None,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        offsets, mask = widened(found["offset_mapping"], text), found["assistant_masks"]
        runs: list[tuple[int, int]] = []
        for token, (start, end) in enumerate(offsets):
            if mask[token] and token and mask[token - 1]:
                runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
            elif mask[token]:
                runs.append((start, end))
        spoken = [index for index, turn in enumerate(conversation.turns) if turn.role == "assistant"]
        if len(runs) != len(spoken):
            raise UserError(
                f"the chat template's generation blocks mark {len(runs)} stretches of {len(spoken)} "
                "assistant turns; mend the template, or remove its {% generation %} blocks"
            )
        turns = [Written(index, *run) for index, run in zip(spoken, runs, strict=True)]
        learned = [turn for turn in turns if conversation.turns[turn.index].learn]
        return (found["input_ids"], offsets), learned

    def _with_end(self, text: str, turn: Written) -> Written:
        """The turn to its control token: without white space after it, and with one that follows directly."""
        body = text[turn.start : turn.end]
        if body.rstrip().endswith(self._controls):
            return Written(turn.index, turn.start, turn.start + len(body.rstrip()))
        for token in self._controls:
            if text.startswith(token, turn.end):
                return Written(turn.index, turn.start, turn.end + len(token))
        return turn

    def _check(self, conversation: Conversation, turn: Written, text: str) -> None:
        content = conversation.turns[turn.index].content.strip()
        if content not in text[turn.start : turn.end]:
            raise UserError(
                f"the chat template's assistant turn {turn.index} does not hold its content as it is; use a "
                "template that leaves it alone"
            )
