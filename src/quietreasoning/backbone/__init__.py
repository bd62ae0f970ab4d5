"""The only room that touches the insides of Hugging Face models.

`load_backbone(config)` gives a `Backbone`: embeddings in, last hidden states out, with a cache that
can be forked, so that a method can run its own loops on the same prompt. Latents are embeddings that
are no token ("soft tokens"); 4-D masks and caches are made here and nowhere else.
"""

from quietreasoning.backbone.adapters import adapters_off
from quietreasoning.backbone.config import BackboneConfig, LoraConfig, ScratchConfig
from quietreasoning.backbone.load import load_backbone, meta_backbone
from quietreasoning.backbone.model import Backbone, Call, Past, States, last_hidden, role_of

__all__ = [
    "Backbone",
    "BackboneConfig",
    "Call",
    "LoraConfig",
    "Past",
    "ScratchConfig",
    "States",
    "adapters_off",
    "last_hidden",
    "load_backbone",
    "meta_backbone",
    "role_of",
]
