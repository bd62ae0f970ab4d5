"""A Llama that nobody trained, and prompts for it; torch and transformers alone, for any environment."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 512


def llama(context: int, **changes: object) -> LlamaForCausalLM:
    """4 layers, 8 heads over 4 key/value heads of 64, or what `changes` says."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 2 * context,
        "eos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**shape | changes)).eval()


def prompt_of(context: int, seed: int, rows: int = 1) -> Tensor:
    return torch.randint(3, VOCAB, (rows, context), generator=torch.Generator().manual_seed(seed))
