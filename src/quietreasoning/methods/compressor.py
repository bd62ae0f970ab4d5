"""A compressor of a frozen model's states, learned by counting: second moments, then one eigendecomposition.

Nothing is solved while states are counted but now and then, to show how much is still missing; every width
up to `d_compressed` comes from the same sums. `kind: tied` learns the same map by gradient instead.

Shapes: B rows, T positions, N counted states, D their width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from quietreasoning.backbone.compressor_file import Origin, save_compressor
from quietreasoning.backbone.states import LAST, read_states, rewriting, watch
from quietreasoning.config import UserError
from quietreasoning.contract import (
    IGNORE,
    Batch,
    Markers,
    Method,
    MethodConfig,
    Permit,
    Response,
    Role,
    StepOutput,
    Term,
)
from quietreasoning.methods.compressor_figures import next_token_kl, predicted
from quietreasoning.methods.whole import next_labels, whole
from quietreasoning.nn.compressor import Compressor, TiedLinear, metric_pca, pca
from quietreasoning.nn.moment_buffers import FisherBuffers, MomentBuffers
from quietreasoning.nn.moments import Moments, without_first
from quietreasoning.nn.round_trip import round_trip
from quietreasoning.nn.row_gather import full_precision

FISHER_EVERY = 8  # of how many positions of a row one shows its next-token distribution to the metric


class StateCompressor(Method):
    """PCA of states (Eckart-Young), in a metric if wanted, or the tied linear map that it makes needless."""

    controls = ()
    answers = False
    reads_text = True

    class Config(MethodConfig):
        name: Literal["compressor"] = "compressor"
        """States to fewer numbers and back."""
        layers: tuple[int | Literal["last", "pre_norm"], ...] = Field(("last",), min_length=1)
        """Whose states: after so many blocks, before the final norm (pre_norm), at the head (last)."""
        d_compressed: int = Field(256, ge=1)
        """Numbers in the longest code that is kept; every shorter one is its beginning."""
        widths: tuple[int, ...] = ()
        """Shorter codes whose figures are told too."""
        kind: Literal["pca", "metric", "tied"] = "pca"
        """Least squared error, least error in `metric`, or a tied linear map trained by gradient, which goes
        on from an earlier stage of another kind."""
        metric: Literal["fisher", "unembedding"] = "fisher"
        """How errors are weighed with kind=metric: by how they move the next token's distribution, or by how
        they move its logits."""
        ridge: float = Field(10.0, gt=0)
        """Added to the metric, relative to its mean: more of it minds what the head does not see."""
        centred: bool = True
        """Take the mean off first. Without, about one direction is spent on it."""
        whiten: bool = True
        """Scale the code so that all its numbers vary alike; states come back the same."""
        skip_first: int = Field(1, ge=0)
        """First tokens of a row that are not counted: their states are far larger than all others."""
        stage: Literal["1a", "1b"] = "1a"
        """1a counts whole rows of any kind; 1b rows with steps, into a second set beside that of 1a."""
        blend: float = Field(0.5, ge=0, le=1)
        """Weight of the second set in stage 1b; both are kept."""

        @model_validator(mode="after")
        def _fits(self) -> StateCompressor.Config:
            if not all(1 <= width <= self.d_compressed for width in self.widths):
                raise ValueError(
                    f"widths={list(self.widths)} must lie between 1 and d_compressed={self.d_compressed}"
                )
            if self.kind == "metric" and (self.layers != (LAST,) or not self.centred):
                raise ValueError(
                    "kind=metric weighs what the head reads: needs layers=[last] and centred=true"
                )
            return self

    def __init__(self, backbone: nn.Module, config: Config, markers: Markers):
        super().__init__(backbone, config, markers)
        size, width = backbone.width, config.d_compressed
        if width > size:
            raise UserError(
                f"method.d_compressed={width}: states of this model have {size} numbers. Choose 1 to {size}."
            )
        backbone.requires_grad_(False)
        # one name for a map that is solved and one that is trained: a later stage goes on from an earlier
        self.maps = nn.ModuleList(TiedLinear(size, width) for _ in config.layers)
        self.maps.requires_grad_(config.kind == "tied")
        self.text = nn.ModuleList(MomentBuffers(size) for _ in config.layers)
        self.thinking = nn.ModuleList(MomentBuffers(size) for _ in config.layers)
        if config.kind == "metric" and config.metric == "fisher":
            self.fisher = FisherBuffers(len(self._head()), size)
        self.register_buffer("solved_at", torch.zeros((), dtype=torch.long))
        if config.kind != "tied":
            with torch.no_grad():
                self.maps.apply(lambda m: m.weight_KD.zero_() if isinstance(m, TiedLinear) else None)
        self._solved: tuple[Any, list[Compressor]] = (None, [])

    @property
    def counts(self) -> bool:
        return self.config.kind != "tied"

    @property
    def widths(self) -> tuple[int, ...]:
        """All widths to tell of, ascending."""
        return tuple(sorted({*self.config.widths, self.config.d_compressed}))

    def train(self, mode: bool = True) -> StateCompressor:
        super().train(mode)
        self.backbone.eval()
        return self

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        ids_BT, role_BT = whole(batch, self.markers)
        states = int(self._counted(batch, role_BT).sum()) * len(self.config.layers)
        return {"state": states, "token": int((next_labels(ids_BT) != IGNORE).sum())}

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        """In training mode: count, and tell the error of the map as it was before. In eval mode: figures."""
        ids_BT, role_BT = whole(batch, self.markers)
        counted_BT = self._counted(batch, role_BT)
        if not self.training:
            return self._measure(ids_BT, role_BT, counted_BT)
        states = self._read(ids_BT, role_BT)
        error, cosine = torch.zeros((), device=ids_BT.device), torch.zeros((), device=ids_BT.device)
        for place, layer in enumerate(self.config.layers):
            states_ND = states[layer][counted_BT].float()
            with full_precision(states_ND):
                told_ND = self.maps[place](states_ND)
            error = error + (states_ND - told_ND).square().sum() / self.backbone.width
            cosine = cosine + F.cosine_similarity(states_ND, told_ND.detach(), dim=1).sum()
            self._count(place, states[layer], counted_BT)
        if hasattr(self, "fisher"):
            shown_BT = counted_BT & (counted_BT.cumsum(1) % FISHER_EVERY == 0)
            self.fisher.observe(self.backbone.logits, self._head(), states[LAST][shown_BT])
        number = counted_BT.sum() * len(self.config.layers)
        return StepOutput({"reconstruction": Term(error, "state")}, {"cosine": (cosine, number)})

    @torch.no_grad()
    def pace(self, progress: float) -> None:
        """Solve again when twice as many states were counted as the last time; a trained map stays."""
        if self.config.stage == "1b" and self.config.blend < 1 and not self.text[0].seen:
            raise UserError(
                f"method.stage=1b, method.blend={self.config.blend:g}: no states of a stage 1a were counted. "
                "Put a stage with method.stage=1a before it, or set method.blend=1."
            )
        seen = self.text[0].seen + self.thinking[0].seen
        if not seen or seen < 2 * int(self.solved_at):
            return
        self.solved_at.fill_(seen)
        for place, tied in enumerate(self.maps):
            moments = self.moments(place)
            if self.config.centred:
                tied.mean_D.copy_(moments.mean_D())
            if self.counts:
                width, centred = self.config.d_compressed, self.config.centred
                tied.weight_KD.copy_(pca(moments, width, centred=centred).encoder_KD)

    def moments(self, place: int = 0) -> Moments:
        """Of the layer at `place` among `layers`: what the solution is made of."""
        text, thinking = self.text[place], self.thinking[place]
        if self.config.stage == "1a" or not thinking.seen:
            return text.moments()
        if self.config.blend == 1:
            return thinking.moments()
        return text.moments().blend(thinking.moments(), self.config.blend)

    def solved(self) -> list[Compressor]:
        """One compressor a layer, of all that was counted; on the device of the method."""
        parts = [*self.maps.parameters(), *self.text.buffers(), *self.thinking.buffers()]
        now = tuple((id(part), part._version) for part in parts)
        if self._solved[0] != now:
            found = [self._solve(place).to(parts[0].device) for place in range(len(self.maps))]
            self._solved = (now, found)
        return self._solved[1]

    def export(self, folder: Path) -> list[Path]:
        """`compressor-<layer>.safetensors`, one a layer."""
        paths = []
        for place, (layer, compressor) in enumerate(zip(self.config.layers, self.solved(), strict=True)):
            origin = Origin(
                identity=self.backbone.identity,
                layer=layer,
                hidden_size=self.backbone.width,
                centred=self.config.centred,
                tokens=int(self.moments(place).count),
                kind=self.config.kind,
                skipped=self.config.skip_first,
            )
            paths.append(save_compressor(folder / f"compressor-{layer}.safetensors", compressor, origin))
        return paths

    def generate(
        self,
        prompt_BP: Tensor,
        *,
        max_new_tokens: int,
        control: str | None = None,
        effort: int | None = None,
        permit: Permit | None = None,
    ) -> Response:
        raise UserError(
            "method compressor shortens states and answers nothing; quiet eval shows how well they come "
            "back, and method recursion thinks with them"
        )

    def _head(self) -> Tensor:
        return self.backbone.model.get_output_embeddings().weight

    def _counted(self, batch: Batch, role_BT: Tensor) -> Tensor:
        counted_BT = without_first(role_BT != Role.PAD, self.config.skip_first)
        if self.config.stage == "1b":
            counted_BT = counted_BT & (batch.steps_BKS != IGNORE).flatten(1).any(1)[:, None]
        return counted_BT

    def _read(self, ids_BT: Tensor, role_BT: Tensor) -> dict[int | str, Tensor]:
        if LAST not in self.config.layers:
            return read_states(self.backbone, ids_BT, role_BT, self.config.layers)
        with torch.no_grad(), watch(self.backbone.model, self.config.layers) as seen:
            self.backbone(ids_BT, role_BT)
        return seen

    def _count(self, place: int, states_BTD: Tensor, counted_BT: Tensor) -> None:
        own = self.text if self.config.stage == "1a" else self.thinking
        try:
            own[place].observe(states_BTD, counted_BT)
        except ValueError as error:
            raise UserError(
                f"layer {self.config.layers[place]}: {error}. Set train.precision=fp32 and "
                "backbone.dtype=float32."
            ) from None

    def _solve(self, place: int) -> Compressor:
        config, moments = self.config, self.moments(place)
        if config.kind == "tied":
            return self.maps[place].settled(moments, whiten=config.whiten)
        if config.kind == "pca":
            return pca(moments, config.d_compressed, centred=config.centred, whiten=config.whiten)
        head_VD = self._head().detach()
        metric_DD = (
            self.fisher.metric_DD(head_VD)
            if config.metric == "fisher"
            else head_VD.T.double() @ head_VD.double()
        )
        return metric_pca(moments, metric_DD, config.d_compressed, ridge=config.ridge, whiten=config.whiten)

    @torch.no_grad()
    def _measure(self, ids_BT: Tensor, role_BT: Tensor, counted_BT: Tensor) -> StepOutput:
        """Figures of every layer and width; what is predicted after the round trip of the first layer."""
        with watch(self.backbone.model, self.config.layers) as seen:
            hidden_BTD = self.backbone(ids_BT, role_BT).hidden_BTD
        labels_BT = next_labels(ids_BT)
        states = dict(seen)
        metrics: dict[str, tuple[Tensor, Tensor]] = {}
        error, after_BTD = torch.zeros((), device=ids_BT.device), hidden_BTD
        for place, (layer, compressor) in enumerate(zip(self.config.layers, self.solved(), strict=True)):
            mean_D = self.moments(place).mean_D()
            for width in self.widths:
                part = compressor.sliced(width)
                told = round_trip(states[layer], part(states[layer]), mean_D, counted_BT)
                again_BTD = self._after(layer, part, ids_BT, role_BT, counted_BT)
                kl = next_token_kl(self.backbone, hidden_BTD[counted_BT], again_BTD[counted_BT])
                metrics[f"{layer}/{width}/cosine"] = (told.cosine, told.count)
                metrics[f"{layer}/{width}/centred_r2"] = (told.variance - told.squared_error, told.variance)
                metrics[f"{layer}/{width}/kl"] = (kl, told.count)
            error = error + told.squared_error / self.backbone.width  # of the longest code
            if place == 0:
                after_BTD = again_BTD
        nll, hits, count = predicted(self.backbone, after_BTD, labels_BT)
        metrics["token_accuracy"] = (hits.float(), count)
        metrics["uncompressed/nll"] = (predicted(self.backbone, hidden_BTD, labels_BT)[0], count)
        return StepOutput({"reconstruction": Term(error, "state"), "lm": Term(nll, "token", 0.0)}, metrics)

    def _after(
        self, layer: int | str, part: Compressor, ids_BT: Tensor, role_BT: Tensor, counted_BT: Tensor
    ) -> Tensor:
        """Final states if counted states of `layer` go through the compressor; the others stay."""

        def change(states_BTD: Tensor) -> Tensor:
            return torch.where(counted_BT[..., None], part(states_BTD).to(states_BTD.dtype), states_BTD)

        with rewriting(self.backbone.model, layer, change):
            return self.backbone(ids_BT, role_BT).hidden_BTD
