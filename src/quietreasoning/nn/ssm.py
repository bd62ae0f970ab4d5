"""A state-space expert: one Mamba-2 layer (arXiv 2405.21060, section 7) entered and left anywhere.

Shapes: R rows, T tokens, D width, I inner width = H heads x P channels, N state size, C = I + 2 N convolved
channels, K kernel size less one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quietreasoning.nn.ssd import ssd

FASTEST_A = 16.0  # a starts uniform in [-16, -1]
FIRST_DT = (1e-3, 1e-1)  # dt starts log-uniform in this range


class SSMState(NamedTuple):
    """What a row carries from one call to the next; its size does not depend on the tokens read."""

    conv_RCK: Tensor  # the last real inputs of the convolution, oldest first
    h_RHPN: Tensor  # fp32 or wider


class SSMExpert(nn.Module):
    """mixer(RMSNorm x), to be added to x.

    z, x, B, C, dt = W n; x, B, C through a causal depthwise convolution and SiLU; dt = softplus(dt + bias);
    the scan with one a = -exp(a_log) per head; y + skip x; RMSNorm(y SiLU(z)); W_o.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        state: int,
        head_dim: int = 64,
        conv: int = 4,
        chunk: int = 64,
        eps: float = 1e-6,
    ):
        super().__init__()
        sizes = {"width": width, "inner": inner, "state": state, "head_dim": head_dim, "chunk": chunk}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if inner % head_dim:
            raise ValueError(f"inner={inner} must be a multiple of head_dim={head_dim}")
        if conv < 2:
            raise ValueError(f"conv={conv} must be at least 2: a kernel of 1 sees no token before its own")
        self.heads, self.head_dim, self.state, self.chunk = inner // head_dim, head_dim, state, chunk
        self.splits = [inner, inner + 2 * state, self.heads]
        self.norm = nn.RMSNorm(width, eps=eps)
        self.project = nn.Linear(width, sum(self.splits), bias=False)
        self.conv_weight_CK = nn.Parameter(torch.empty(inner + 2 * state, conv))
        self.conv_bias_C = nn.Parameter(torch.empty(inner + 2 * state))
        self.dt_bias_H = nn.Parameter(torch.empty(self.heads))
        self.a_log_H = nn.Parameter(torch.empty(self.heads))
        self.skip_H = nn.Parameter(torch.empty(self.heads))
        self.gated_norm = nn.RMSNorm(inner, eps=eps)
        self.out = nn.Linear(inner, width, bias=False)
        self.kernel: Callable[..., Any] | None = None  # a faster scan, see `ssd`
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The start of the paper's code: dt log-uniform, a uniform, skip one, the rest torch's own."""
        for layer in (self.norm, self.project, self.gated_norm, self.out):
            layer.reset_parameters()
        bound = self.conv_weight_CK.shape[1] ** -0.5
        self.conv_weight_CK.uniform_(-bound, bound)
        self.conv_bias_C.uniform_(-bound, bound)
        slowest, fastest = map(math.log, FIRST_DT)
        dt_H = torch.empty_like(self.dt_bias_H, dtype=torch.float32).uniform_(slowest, fastest).exp()
        self.dt_bias_H.copy_(dt_H + torch.log(-torch.expm1(-dt_H)))  # the inverse of softplus
        self.a_log_H.copy_(torch.empty_like(dt_H).uniform_(1.0, FASTEST_A).log())
        self.skip_H.fill_(1.0)

    def empty_state(self, rows: int, device: torch.device | str, dtype: torch.dtype) -> SSMState:
        """The state before the first token; h is fp32 or wider whatever dtype is."""
        channels, kernel = self.conv_weight_CK.shape
        exact = torch.promote_types(dtype, torch.float32)
        return SSMState(
            torch.zeros(rows, channels, kernel - 1, device=device, dtype=dtype),
            torch.zeros(rows, self.heads, self.head_dim, self.state, device=device, dtype=exact),
        )

    def forward(
        self, x_RTD: Tensor, valid_RT: Tensor | None = None, state: SSMState | None = None
    ) -> tuple[Tensor, SSMState]:
        """mixer [R, T, D] and the state after each row's last real token.

        valid_RT: bool, real tokens first; at padding the mixer is 0 and the state stays as it is.
        """
        if valid_RT is not None:
            x_RTD = x_RTD.masked_fill(~valid_RT[..., None], 0.0)  # so that padding may hold anything
        if state is None:
            state = self.empty_state(len(x_RTD), x_RTD.device, x_RTD.dtype)
        z_RTI, feed_RTC, dt_RTH = self.project(self.norm(x_RTD)).split(self.splits, -1)
        exact = torch.promote_types(dt_RTH.dtype, torch.float32)
        mixed_RTC, conv_RCK = self._convolve(feed_RTC, valid_RT, state.conv_RCK)
        inner = self.heads * self.head_dim
        x_RTI, b_RTN, c_RTN = mixed_RTC.split([inner, self.state, self.state], -1)
        x_RTHP = x_RTI.unflatten(2, (self.heads, self.head_dim))
        dt_RTH = F.softplus(dt_RTH.to(exact) + self.dt_bias_H.to(exact))
        if valid_RT is not None:
            dt_RTH = dt_RTH * valid_RT[..., None]
        a_H = -self.a_log_H.to(exact).exp()
        y_RTHP, h_RHPN = ssd(
            x_RTHP, dt_RTH, a_H, b_RTN, c_RTN, chunk=self.chunk, h_RHPN=state.h_RHPN, kernel=self.kernel
        )
        y_RTHP = torch.addcmul(y_RTHP, x_RTHP.to(exact), self.skip_H[:, None].to(exact))
        gated_RTI = y_RTHP.flatten(2) * F.silu(z_RTI.to(exact))
        normed_RTI = self.gated_norm(gated_RTI.to(self.gated_norm.weight.dtype))
        return self.out(normed_RTI), SSMState(conv_RCK, h_RHPN)

    def _convolve(self, feed_RTC: Tensor, valid_RT: Tensor | None, conv_RCK: Tensor) -> tuple[Tensor, Tensor]:
        """SiLU of the convolution [R, T, C], and the last kernel - 1 real inputs."""
        tokens, kernel = feed_RTC.shape[1], self.conv_weight_CK.shape[1]
        seen_RSC = torch.cat([conv_RCK.to(feed_RTC.dtype).mT, feed_RTC], 1)
        if tokens == 1 and valid_RT is None:
            mixed_R1C = (seen_RSC * self.conv_weight_CK.T).sum(1, keepdim=True) + self.conv_bias_C
            return F.silu(mixed_R1C), seen_RSC[:, 1:].mT
        # shifted sums in the layout of the projections beat conv1d, which wants the tokens last
        out_RTC = self.conv_bias_C
        for k in range(kernel):
            out_RTC = torch.addcmul(out_RTC, seen_RSC[:, k : k + tokens], self.conv_weight_CK[:, k])
        if valid_RT is None:
            return F.silu(out_RTC), seen_RSC[:, tokens:].mT
        real_R11 = valid_RT.sum(1)[:, None, None]
        at_RK1 = real_R11 + torch.arange(kernel - 1, device=feed_RTC.device)[:, None]
        return F.silu(out_RTC), seen_RSC.gather(1, at_RK1.expand(-1, -1, seen_RSC.shape[2])).mT
