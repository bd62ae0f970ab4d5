"""Small workspace models with every module on, and no module silent because it starts at zero."""

from __future__ import annotations

import torch
from torch import Tensor

from quietreasoning.workspace import WorkspaceConfig, WorkspaceForCausalLM
from quietreasoning.workspace.cache import WorkspaceCache

VOCAB, CHUNK = 48, 8
ALL = ("workspace", "pkm", "adapters", "ssm", "retrieval", "knn")
SIZES = {
    **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"initializer_range": 0.2, "chunk_size": CHUNK, "features": ALL, "read_block": 1, "router_width": 16},
    **{"slots": 4, "slot_width": 16, "slot_heads": 2, "mean_steps": 1.6},
    **{"ssm_blocks": (1, 3), "ssm_inner": 32, "ssm_state": 4, "ssm_head_dim": 16, "ssm_chunk": 4},
    **{
        "pkm_blocks": (3,),
        "pkm_slots": 64,
        "pkm_value_dim": 8,
        "pkm_heads": 2,
        "pkm_key_dim": 8,
        "pkm_topk": 4,
    },
    **{"adapters": 4, "adapters_active": 2, "adapter_rank": 2, "adapter_alpha": 4.0, "adapter_fusion": True},
}


def config(**changes) -> WorkspaceConfig:
    return WorkspaceConfig(**(SIZES | changes))


def fresh(seed: int = 4, **changes) -> WorkspaceForCausalLM:
    """As it is built: readers, experts, memories and adapters are still silent."""
    torch.manual_seed(seed)
    model = WorkspaceForCausalLM(config(**changes))
    model.model.set_features(model.config.features)
    return model.eval()


@torch.no_grad()
def awake(seed: int = 11, **changes) -> WorkspaceForCausalLM:
    """Every module speaks, gates open and close from chunk to chunk, rows halt after 1, 2 and 3 steps."""
    model = fresh(seed, **changes)
    body = model.model
    for reader in body.readers.values():
        reader.gate.fill_(0.7)
    for part in (*body.experts.values(), *body.memory.values()):
        part.out.weight.normal_(std=0.3)
    if body.table.values is not None:
        body.table.values.normal_()
    for reader in body.memory.values():
        reader.whiten.mean_HQ.normal_(std=0.2)
        reader.whiten.matrix_HQQ.add_(0.1 * torch.randn_like(reader.whiten.matrix_HQQ))
    for block in body.blocks:
        for p in block.adapters.parameters():
            p.add_(0.2 * torch.randn_like(p))
    for head in body.router.heads.values():
        head.weight.normal_(std=2.0)
    for matrix in body.workspace.parameters():
        if matrix.dim() == 2 and matrix is not body.workspace.initial:
            matrix.mul_(0.5)  # else random slots are chaotic, and rounding grows from chunk to chunk
    body.router.inner.weight.normal_(std=0.5)
    body.workspace.stop.weight.normal_(std=2.0)
    body.workspace.stop.bias.fill_(0.3)
    return model


def ids_of(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def ragged(ids_BT: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """The first so many tokens of each row, padded on the left; and the mask."""
    width = max(lengths)
    padded, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width).long()
    for row, length in enumerate(lengths):
        padded[row, width - length :] = ids_BT[row, :length]
        mask[row, width - length :] = 1
    return padded, mask


def in_pieces(
    model: WorkspaceForCausalLM, ids_BT: Tensor, sizes: list[int], mask_BT: Tensor | None = None
) -> Tensor:
    """Logits of the whole input, read piece by piece with a cache; the last size repeats."""
    cache, logits, at = WorkspaceCache(), [], 0
    while at < ids_BT.shape[1]:
        size = sizes[min(len(logits), len(sizes) - 1)]
        piece = slice(at, at + size)
        mask = None if mask_BT is None else mask_BT[:, piece]
        logits.append(model(ids_BT[:, piece], mask, past_key_values=cache, use_cache=True).logits)
        at += size
    return torch.cat(logits, 1)


def close(got: Tensor, wanted: Tensor, tol: float = 1e-4) -> None:
    torch.testing.assert_close(got, wanted, rtol=tol, atol=tol)
