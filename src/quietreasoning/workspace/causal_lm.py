"""WorkspaceForCausalLM: the model with its head, as transformers users know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from quietreasoning.losses.language import chunked_next_token
from quietreasoning.workspace.cache import WorkspaceCache
from quietreasoning.workspace.config import WorkspaceConfig
from quietreasoning.workspace.features import WorkspacePreTrained
from quietreasoning.workspace.model import WorkspaceModel
from quietreasoning.workspace.trace import Trace


@dataclass
class WorkspaceLMOutput(CausalLMOutputWithPast):
    """loss, logits [B, T, V], past_key_values, hidden_states; `trace` if asked for."""

    trace: Trace | None = None


class WorkspaceForCausalLM(WorkspacePreTrained, GenerationMixin):
    """A workspace model that writes. `generate` works as with any model; the end of a prompt ends a chunk."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: WorkspaceConfig):
        super().__init__(config)
        self.model = WorkspaceModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _head(self) -> nn.Module | None:
        return self.lm_head

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool = True,
        **inputs: Any,
    ) -> WorkspaceLMOutput:
        """Next-token logits [B, T, V].

        labels [B, T]: the input ids with -100 where nothing is to be learned; shifted here, once. With labels
        the loss is computed in pieces and no logits are returned. Other inputs: see WorkspaceModel.
        """
        out = self.model(input_ids, attention_mask, return_dict=return_dict, **inputs)
        hidden_BTD = out.last_hidden_state
        logits = loss = None
        if labels is not None:
            next_BT = labels[:, 1:]
            counted = next_BT != -100
            loss, *_ = chunked_next_token(hidden_BTD[:, :-1][counted], self.lm_head.weight, next_BT[counted])
            loss = loss / (counted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        else:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_BTD[:, keep])
        return WorkspaceLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            trace=out.trace,
        )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # a WorkspaceCache carries more than keys and values

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: WorkspaceCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        use_cache: bool | None = True,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """One call of forward: the prompt first, then token by token; the first new token opens a chunk."""
        if use_cache is False:
            raise ValueError("use_cache=False is not supported in generate: the workspace lives in the cache")
        inputs: dict[str, Any] = {"attention_mask": attention_mask, "use_cache": True}
        past_key_values = inputs["past_key_values"] = WorkspaceCache.given(past_key_values)
        if is_first_iteration or past_key_values.state is None:
            inputs |= (
                {"inputs_embeds": inputs_embeds} if inputs_embeds is not None else {"input_ids": input_ids}
            )
            past_key_values.prompt_ended = True
            new = (inputs_embeds if inputs_embeds is not None else input_ids).shape[1]
            if past_key_values.state is not None and next_sequence_length is not None:
                inputs["input_ids"] = input_ids[:, -next_sequence_length:]
                new = next_sequence_length
        else:
            inputs["input_ids"] = input_ids[:, -1:]
            new = 1
            if past_key_values.prompt_ended:
                inputs["starts"] = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
                past_key_values.prompt_ended = False
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask[:, -new:]
        if kwargs.get("logits_to_keep") is not None:
            inputs["logits_to_keep"] = kwargs["logits_to_keep"]
        return inputs
