"""A linear layer whose weight is stored as integers: what `fake_quant.py` trained, deployed.

Tensors are named and packed as the compressed-tensors format has them: `weight` int8 [O, I], or at 4 bits
`weight_packed` int32 [O, I / 8], eight to a word, the first lowest, each plus 8; `weight_scale` float32
[O, G].

Shapes: M rows, O outputs, I inputs, G groups of inputs, E inputs in a group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quietreasoning.nn.fake_quant import Bits, integers, scaled_linear, scales, weight_integers

PACKED = 8  # 4-bit integers in a word


class IntLinear(nn.Module):
    """Per-channel int8 weights, or packed 4-bit ones in groups; activations are counted token by token."""

    def __init__(self, inputs: int, outputs: int, bits: Bits, bias: Tensor | None = None):
        """bias: [O], kept in its own precision. ValueError where 4-bit weights do not fill their words."""
        super().__init__()
        self.in_features, self.out_features, self.bits = inputs, outputs, bits
        if bits.weight == 4:
            if inputs % PACKED:
                raise ValueError(f"{inputs} inputs of 4 bits do not fill words of {PACKED}")
            self.register_buffer("weight_packed", torch.zeros(outputs, inputs // PACKED, dtype=torch.int32))
            self.register_buffer("weight_shape", torch.tensor([outputs, inputs]))
        else:
            self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(outputs, inputs // (bits.group or inputs)))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, bits: Bits) -> IntLinear:
        """The layer that `linear` is when it counts in `bits`."""
        bias = None if linear.bias is None else linear.bias.detach().clone()
        made = cls(linear.in_features, linear.out_features, bits, bias).to(linear.weight.device)
        whole_OGE, scale_OG1 = weight_integers(linear.weight, bits)
        whole_OI = whole_OGE.flatten(1)
        if bits.weight == 4:
            made.weight_packed.copy_(pack(whole_OI))
        else:
            made.weight.copy_(whole_OI)
        made.weight_scale.copy_(scale_OG1[..., 0])
        return made

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O] in the precision of `x`."""
        if self.bits.weight == 8 and self.bits.activation == 8 and self.weight_scale.shape[1] == 1:
            return self._in_integers(x)
        whole_OI = unpack(self.weight_packed) if self.bits.weight == 4 else self.weight
        scale_OG1 = self.weight_scale[..., None]
        whole_OGE = whole_OI.reshape(*self.weight_scale.shape, -1)
        return scaled_linear(x, whole_OGE, scale_OG1, self.bias, self.bits)

    def _in_integers(self, x: Tensor) -> Tensor:
        scale_X1 = scales(x, 8)
        whole_MI = integers(x, scale_X1, 8).to(torch.int8).reshape(-1, self.in_features)
        y = int_product(whole_MI, self.weight).reshape(*x.shape[:-1], self.out_features)
        y = y * scale_X1 * self.weight_scale[:, 0]
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> IntLinear:
        scale_OG = self.weight_scale  # exact, whatever precision the model is cast to
        super()._apply(fn, recurse)
        if scale_OG.device.type != "meta":
            self.weight_scale = scale_OG.to(self.weight_scale.device)
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


def int_product(left_MI: Tensor, right_OI: Tensor) -> Tensor:
    """int8 x int8 summed in int32: [M, I], [O, I] -> [M, O]."""
    rows = left_MI.shape[0]
    if left_MI.device.type == "cpu":
        return torch._int_mm(left_MI, right_OI.T) if rows else left_MI.new_zeros(0, len(right_OI)).int()
    # what GPUs multiply: more than 16 rows, the other sizes multiples of 8
    left_MI = _padded(left_MI, max(32, -(-rows // 8) * 8), -(-left_MI.shape[1] // 8) * 8)
    right = _padded(right_OI, -(-right_OI.shape[0] // 8) * 8, left_MI.shape[1])
    return torch._int_mm(left_MI, right.T)[:rows, : len(right_OI)]


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    return nn.functional.pad(matrix, (0, columns - matrix.shape[1], 0, rows - matrix.shape[0]))


def pack(whole_OI: Tensor) -> Tensor:
    """Integers in [-8, 7], [O, I] -> words of eight, int32 [O, I / 8]."""
    shifts_8 = 4 * torch.arange(PACKED, device=whole_OI.device)
    words = (whole_OI.long() + 8).unflatten(1, (-1, PACKED)) << shifts_8
    words = words.sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpack(words_OW: Tensor) -> Tensor:
    """Words of eight, int32 [O, W] -> integers in [-8, 7], int8 [O, 8 W]."""
    shifts_8 = 4 * torch.arange(PACKED, device=words_OW.device, dtype=torch.int32)
    return (((words_OW[..., None] >> shifts_8) & 15) - 8).to(torch.int8).flatten(1)
