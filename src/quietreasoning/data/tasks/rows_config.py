"""Settings of the task `teacher-rows`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from quietreasoning.config import Settings
from quietreasoning.data.tasks.files import FileConfig


class RowTokenizer(Settings):
    path: str | None = None
    """Folder or hub id of the tokenizer that made the rows' `*_ids` fields; `chat` writes its template."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""


class TeacherRowsConfig(FileConfig):
    reasoning: Literal["refuse", "skip", "strip"] = "refuse"
    """What a non-empty teacher_reasoning_content does: refuse the file, skip the row, or strip the field."""
    dialect: Literal["json", "hermes", "qwen", "qwen-coder", "pythonic"] = "json"
    """How calls that a row gives as data are written; calls within a text stay as they are."""
    spaced: bool = False
    """White space between all marks of calls and tools, for a tokenizer of whole words."""
    chat: bool = False
    """Write prompts in the chat template of `tokenizer.path`, for models that know it."""
    tokenizer: RowTokenizer = RowTokenizer()
    """The tokenizer that the file was made with."""

    @model_validator(mode="after")
    def _chat_needs_a_template(self) -> TeacherRowsConfig:
        if self.chat and self.tokenizer.path is None:
            raise ValueError("chat needs a template: set tokenizer.path to the folder of a chat model")
        if self.tokenizer.revision is not None and self.tokenizer.path is None:
            raise ValueError("tokenizer.revision has no effect without tokenizer.path")
        return self
