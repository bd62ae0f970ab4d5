"""A teacher's rows as examples: one for each turn of the assistant that is to be learned.

The file's forms are those of `data/spans/rows.py`. A prompt is all that stands before the turn, plain text
with headers (`tools :`, `system :`, `user :`, `assistant :`, `tool :`) and without the header of the turn to
come; one user's turn alone is that text itself, so that `format.chat` writes it as a chat has it. With
`options.chat` the prompt is the template's own text instead, its header of the answer included: then set
`format.chat=false format.prompt_suffix=''`. The answer is the turn's text, calls included.

`meta`: kind (call, answer after a result, text), needs_tool, tools ({"name", "parameters"}), calls ({"name",
"arguments"}), result (JSON values seen so far), spans (calls and the row's own fields, in characters of the
answer), quality, metadata (as it stands), conversation (what keeps a split whole); for a row's last turn also
answers and prefix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from quietreasoning.data.example import Example
from quietreasoning.data.tasks.base import split_of
from quietreasoning.data.tasks.files import SplitFiles
from quietreasoning.data.tasks.rows_config import TeacherRowsConfig


class TeacherRows(SplitFiles):
    Config = TeacherRowsConfig
    name = "teacher-rows"
    describe = "a teacher's rows: JSONL with prompt and teacher_text, messages, or input and target"
    scorer = "turn"
    config: TeacherRowsConfig

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that the file was made with; None where none is named."""
        from quietreasoning.data.tokenizer_files import load_tokenizer  # brings transformers

        named = self.config.tokenizer
        return None if named.path is None else load_tokenizer(named.path, named.revision)

    def group(self, example: Example) -> str:
        return example.meta["kind"]

    def part(self, examples: Sequence[Example], shares: Mapping[str, int], name: str) -> list[Example]:
        """Whole conversations, and all of one opening together."""
        return [example for example in examples if split_of(example.meta["conversation"], shares) == name]

    def fingerprint(self) -> dict[str, str]:
        """As above, with what the header of each file says of its rows."""
        from quietreasoning.data.tasks.rows_header import sums  # brings torch

        files = sorted(set(self.files().values()))
        said = {f"{file.name} {key}": value for file in files for key, value in sums(file).items()}
        return super().fingerprint() | said

    def read(self, path: Path) -> tuple[list[Example], list[str]]:
        """An example for each turn of a row that is to be learned."""
        from quietreasoning.data.tasks.rows_reading import read_examples  # brings torch

        return read_examples(path, self.config, self.tokenizer, self.name)
