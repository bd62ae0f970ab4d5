"""`eval.constrained`: where an answer calls a tool, it is written under the grammar of the declared tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from quietreasoning.config import UserError
from quietreasoning.contract import Method
from quietreasoning.data.example import Example
from quietreasoning.data.spans.allowed import CallPermit
from quietreasoning.data.spans.call_grammar import CallGrammar
from quietreasoning.data.spans.vocabulary import Vocabulary
from quietreasoning.evaluate.asking import answering, device_of


def refusal(method: Method) -> str | None:
    """Why a method cannot write under a permit; None where it can. It writes one token to say so."""
    prompt_11 = torch.tensor([[method.markers.eos]], device=device_of(method))
    try:
        with answering(method):
            method.generate(prompt_11, max_new_tokens=1, permit=lambda row, tokens, logits_V: None)
    except ValueError as error:
        return str(error)
    return None


class Constraint:
    """The grammars of a task's examples (`meta["tools"]`, mode auto), and permits for batches of them.

    dialect: json or hermes. An example without tools is answered freely. UserError where none has some.
    """

    def __init__(self, tokenizer: Any, task: str, examples: Sequence[Example], dialect: str = "json"):
        self._tokenizer = tokenizer
        self._vocabularies: dict[int, Vocabulary] = {}  # by the number of tokens of a model
        declared = [example.meta.get("tools") for example in examples]
        if not any(declared):
            raise UserError(
                f"eval.constrained=true, but task {task} declares no tools; set eval.constrained=false, or "
                "data.task=tools"
            )
        self._grammars = [CallGrammar.start(tools, dialect=dialect) if tools else None for tools in declared]

    def permit(self, method: Method, examples: Sequence[int]) -> CallPermit:
        """For one call of `method.generate` on these examples, by their numbers."""
        size = method.backbone.vocab_size
        if size not in self._vocabularies:
            self._vocabularies[size] = Vocabulary.of(self._tokenizer, size)
        grammars = [self._grammars[i] for i in examples]
        return CallPermit(grammars, self._vocabularies[size], method.markers.eos)

    def check(self, method: Method) -> None:
        """UserError where the method cannot be held to a grammar."""
        if (why := refusal(method)) is not None:
            raise UserError(
                f"eval.constrained=true: {why}; set it to false, or leave {method.config.name} out"
            )

    @property
    def loose(self) -> dict[str, str]:
        """Tool -> the first thing in its schema that the grammar does not hold it to."""
        return {name: why for each in self._grammars if each for name, why in each.loose.items()}
