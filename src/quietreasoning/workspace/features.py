"""What of a workspace model is switched on, and what each switch owns."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from quietreasoning.config import UserError
from quietreasoning.nn.trunk import Block
from quietreasoning.workspace.config import FEATURES, WorkspaceConfig


class WorkspacePreTrained(PreTrainedModel):
    config_class = WorkspaceConfig
    config: WorkspaceConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _is_stateful = True  # a recurrent state cannot be cropped

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Trunk and embeddings by `initializer_range`; the other modules keep what they were made with."""
        std = self.config.initializer_range
        if isinstance(module, Block):
            for linear in (module.qkv, module.out, module.gate_up, module.down):
                init.normal_(linear.weight, mean=0.0, std=std)
                if linear.bias is not None:
                    init.zeros_(linear.bias)
        elif isinstance(module, nn.Embedding) or (isinstance(module, nn.Linear) and module is self._head()):
            init.normal_(module.weight, mean=0.0, std=std)

    def _head(self) -> nn.Module | None:
        return None


class Switches:
    """Mixed into the model: features on and off. Expects its modules under their usual names."""

    def set_features(self, features: tuple[str, ...]) -> None:
        """Switch modules on and the others off; an off module computes nothing and is not trained."""
        for name in features:
            if name not in FEATURES:
                raise UserError(f"features: no module {name!r}. Choices: {', '.join(FEATURES)}")
        self.config.features = tuple(features)
        self.config.check()
        around = (self.workspace, self.readers, self.router, self.experts, self.table, self.memory)
        adapters = (block.adapters for block in self.blocks if block.adapters is not None)
        owned = {id(p) for module in (*around, *adapters) for p in module.parameters()}
        on = {id(p) for feature in features for p in self.parameters_of(feature)}
        for p in self.parameters():
            if id(p) in owned:
                p.requires_grad_(id(p) in on and p.is_floating_point())

    def parameters_of(self, feature: str) -> list[nn.Parameter]:
        """The parameters a feature owns; the trunk's belong to none. Router parts need the workspace."""
        router = self.router.heads
        routed = self.config.has("workspace")
        modules: dict[str, list[nn.Module | None]] = {
            "workspace": [self.workspace, self.readers],
            "pkm": [self.table, self.memory, *([router["pkm"], router["temperature"]] if routed else [])],
            "adapters": [
                *(b.adapters for b in self.blocks),
                *([router["adapters"]] if routed and "adapters" in router else []),
            ],
            "ssm": [self.experts, *([router["ssm"]] if routed and "ssm" in router else [])],
            "retrieval": [router["episodic"]] if routed else [],
            "knn": [router["knn"]] if routed else [],
        }
        found = [p for module in modules[feature] if module is not None for p in module.parameters()]
        if feature != "workspace" and routed:  # the shared part of the router serves whoever asks it
            found += [*self.router.norm.parameters(), *self.router.inner.parameters()]
        return found

    def plan_parts(self) -> tuple[str, ...]:
        """What the router is asked for."""
        c = self.config
        asked = {"ssm": c.has("ssm") and c.ssm_blocks, "pkm": c.has("pkm") and c.pkm_blocks}
        asked |= {"temperature": asked["pkm"], "adapters": c.has("adapters")}
        asked |= {"episodic": c.has("retrieval"), "knn": c.has("knn")}
        return tuple(part for part, wanted in asked.items() if wanted)
