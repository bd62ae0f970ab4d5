"""Linear layers that train as the integers they will be: symmetric fake quantisation, straight through.

    s = 2 max|v| / (2^b - 1),  q = clamp(round(v / s), -2^(b-1), 2^(b-1) - 1),  v ~ s q

with one scale an output channel of the weight (or a group of its inputs) and one a token of the activations,
taken anew from every tensor, so that ranges shrink as values do. The forward multiplies the integers
themselves, held in floats, and scales their sums: what int8 x int8 into int32 gives, exact while sums stay
below 2^24, in bf16 too, which holds every 8-bit integer. Rounding hands its gradient through
(arXiv 1308.3432); scales have none. A layer that is switched off is the plain layer, bit for bit.

Shapes: O outputs, I inputs, G groups of inputs, E inputs in a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = torch.finfo(torch.float32).eps  # the smallest scale, as deployed


@dataclass(frozen=True)
class Bits:
    """How a layer counts. activation: bits of what goes in; None leaves it as it is. group: inputs that share
    a weight's scale; None: all of them."""

    weight: int = 8
    activation: int | None = 8
    group: int | None = None


class _Round(torch.autograd.Function):
    """Nearest integer within [low, high]; the gradient goes through where no more than rounding was lost."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, low: int, high: int) -> Tensor:
        return values.round().clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        values, low, high = inputs
        ctx.save_for_backward((values > low - 1) & (values < high + 1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


def scales(values: Tensor, bits: int) -> Tensor:
    """One scale for the last dimension, [..., N] -> [..., 1], in float32 or wider, without gradient."""
    wide = torch.promote_types(values.dtype, torch.float32)
    step = values.detach().abs().amax(-1, keepdim=True) / ((2**bits - 1) / 2)  # rounded as deployed
    return step.to(wide).clamp(min=EPS)


def integers(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Whole numbers, held as floats of the scale's precision, [...] -> [...]; straight-through gradient."""
    return _Round.apply(values * (1.0 / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def weight_integers(weight_OI: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """Integers [O, G, E] of a weight and their scales [O, G, 1]; ValueError where groups do not divide it."""
    outputs, inputs = weight_OI.shape
    each = bits.group or inputs
    if inputs % each:
        raise ValueError(f"groups of {each} do not divide {inputs} inputs")
    weight_OGE = weight_OI.reshape(outputs, inputs // each, each)
    scale_OG1 = scales(weight_OGE, bits.weight)
    return integers(weight_OGE, scale_OG1, bits.weight), scale_OG1


def fake_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, bits: Bits) -> Tensor:
    """[..., I] -> [..., O], in the precision of a plain linear layer, autocast or not."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        whole_OGE, scale_OG1 = weight_integers(weight_OI, bits)
        return scaled_linear(x.to(dtype), whole_OGE, scale_OG1, bias_O, bits)


def scaled_linear(
    x: Tensor, whole_OGE: Tensor, scale_OG1: Tensor, bias_O: Tensor | None, bits: Bits
) -> Tensor:
    """The same from a weight's integers: [..., I] -> [..., O] in the precision of `x`."""
    # float16 overflows where integers are summed; bfloat16 holds each of them and sums in float32
    operand = x.dtype if x.dtype.itemsize > 2 else torch.bfloat16
    scale_X1, put_in = None, x
    if bits.activation is not None:
        scale_X1 = scales(x, bits.activation)
        put_in = integers(x, scale_X1, bits.activation)
    grouped = whole_OGE.shape[1] > 1
    weight_OI = (whole_OGE * scale_OG1 if grouped else whole_OGE).flatten(1)
    y = F.linear(put_in.to(operand), weight_OI.to(operand))
    if scale_X1 is not None:
        y = y * scale_X1
    if not grouped:
        y = y * scale_OG1[:, 0, 0]
    return (y if bias_O is None else y + bias_O).to(x.dtype)


class FakeQuantLinear(nn.Linear):
    """A linear layer that counts in integers while it is `on`; all else of it is the plain one's.

    Plain layers become this one, `prepare`, and plain again, `restore`; `on` is in no checkpoint.
    """

    bits: Bits
    on: bool

    def forward(self, input: Tensor) -> Tensor:
        if not self.on:
            return super().forward(input)
        return fake_linear(input, self.weight, self.bias, self.bits)


def prepare(model: nn.Module, names: Iterable[str], bits: Bits) -> None:
    """Make the linear layers of these names countable, in place, and leave them off.

    Raises ValueError that names a layer whose inputs the groups do not divide.
    """
    layers = {name: model.get_submodule(name) for name in names}
    for name, layer in layers.items():
        if bits.group and layer.in_features % bits.group:
            raise ValueError(f"groups of {bits.group} do not divide the {layer.in_features} inputs of {name}")
    for layer in layers.values():
        layer.__class__ = FakeQuantLinear
        layer.bits, layer.on = bits, False


def prepared(model: nn.Module) -> Iterator[tuple[str, FakeQuantLinear]]:
    """The countable layers, by name."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, FakeQuantLinear))


def switch(model: nn.Module, on: bool) -> None:
    """Let every countable layer count in integers, or in floats again."""
    for _, layer in prepared(model):
        layer.on = on


def restore(model: nn.Module) -> None:
    """Plain linear layers again, in place."""
    for _, layer in list(prepared(model)):
        del layer.bits, layer.on
        layer.__class__ = nn.Linear
