"""Which weights a backbone holds: what files that fit one model alone are made of and checked against."""

from __future__ import annotations

import hashlib

import torch

from quietreasoning.backbone.config import BackboneConfig
from quietreasoning.backbone.load import _identity
from quietreasoning.backbone.model import Backbone


def named_identity(path: str, revision: str | None = None) -> dict[str, str]:
    """Of a model folder, with the SHA-256 of its files; of a hub id, its name alone. Nothing is loaded."""
    return _identity(BackboneConfig(path=path, revision=revision))


def weights_identity(backbone: Backbone) -> dict[str, str]:
    """`Backbone.identity` with the SHA-256 of the weights at hand.

    A model folder that was not trained has it already, of its files. Else, for a trained or fresh model and
    one from the hub, the tensors themselves are hashed, names and all, wherever they lie.
    """
    identity = dict(backbone.identity)
    if backbone.tune == "frozen" and identity.get("sha256"):
        return identity
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        held = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(held.view(torch.uint8).numpy().tobytes())
    return identity | {"sha256": digest.hexdigest()}
