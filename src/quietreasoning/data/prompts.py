"""Prompts to ids: with the format's suffix, or in the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quietreasoning.config import UserError
from quietreasoning.data.config import Format
from quietreasoning.data.padding import Ids


class Prompts:
    """How one tokenizer writes prompts. UserError where a chat template is asked for and it has none."""

    def __init__(self, tokenizer: Any, format: Format):
        self.tokenizer, self.format = tokenizer, format
        self.cut = 0  # prompts that lost their middle so far
        start = tokenizer("", add_special_tokens=True).input_ids[:1]
        self.start = start if start == [tokenizer.bos_token_id] else []
        if format.chat and not tokenizer.chat_template:
            raise UserError("format.chat=true, but the tokenizer has no chat template; set format.chat=false")

    def ids(
        self, prompts: Sequence[str], instruction: str | None = None, limit: int | None = None
    ) -> list[Ids]:
        """Of each prompt, behind the instruction if there is one: in a chat that is the system message.

        limit: of more tokens the first and the last half of the limit are left, as LongBench (arXiv
        2308.14508) cuts them; but with the chat template, so that it stays whole and counts.
        """
        texts, start = [self._text(prompt, instruction) for prompt in prompts], self.start
        if self.format.chat:
            start = []  # the template writes its own
        found = self.tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        return [self._middle(np.array(start + ids, dtype=np.int32), limit) for ids in found]

    def _middle(self, ids: Ids, limit: int | None) -> Ids:
        if limit is None or len(ids) <= limit:
            return ids
        self.cut += 1
        return np.concatenate([ids[: limit - limit // 2], ids[len(ids) - limit // 2 :]])

    def _text(self, prompt: str, instruction: str | None) -> str:
        if not self.format.chat:
            return (instruction or "") + prompt + self.format.prompt_suffix
        messages = [{"role": "user", "content": prompt}]
        system = self.format.system if instruction is None else instruction
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
