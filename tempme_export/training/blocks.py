"""Transformer blocks with parameters, as both towers have them, and what a tuning adds to them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Additions:
    """Trainable additions to every block of both towers; None or 0 where there are none."""

    rank: int | None = None  # of the LoRA on queries, keys and values
    adapter: int | None = None  # inner width
    prompts: int = 0  # keys and values that every token of the block attends to


class Attention(nn.Module):
    """Multi-head attention with optional low-rank additions to its packed projection, and optional prompts."""

    TVPt_LoRA_a: Tensor | None
    TVPt_LoRA_b: Tensor | None
    prompt: Tensor | None

    def __init__(self, width: int, heads: int, additions: Additions) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        rank, prompts = additions.rank, additions.prompts
        self.TVPt_LoRA_a = None if rank is None else nn.Parameter(torch.empty(rank, width))
        self.TVPt_LoRA_b = None if rank is None else nn.Parameter(torch.zeros(3 * width, rank))
        self.prompt = nn.Parameter(torch.empty(prompts, width)) if prompts else None

    def _qkv(self, h: Tensor) -> Tensor:
        qkv = F.linear(h, self.in_proj_weight, self.in_proj_bias)
        if self.TVPt_LoRA_a is not None and self.TVPt_LoRA_b is not None:
            qkv = qkv + F.linear(F.linear(h, self.TVPt_LoRA_a), self.TVPt_LoRA_b)
        return qkv.unflatten(-1, (3, self.heads, -1))

    def _mask(self, q: Tensor, bias: Tensor | None, causal: bool) -> Tensor | None:
        """Mask that is added to the logits, [B or 1, 1, N, prompts + N]; None where nothing is."""
        b, _, n, _ = q.shape
        prompts = 0 if self.prompt is None else len(self.prompt)
        if causal:
            mask = torch.full((n, n), -torch.inf, dtype=q.dtype, device=q.device).triu(1)[None, None]
        elif bias is not None:
            mask = bias.to(q.dtype)[:, None, None, :].expand(b, 1, n, n)
        else:
            return None
        return F.pad(mask, (prompts, 0))

    def forward(
        self, h: Tensor, bias: Tensor | None, norm: nn.LayerNorm, causal: bool = False
    ) -> tuple[Tensor, Tensor]:
        """h [B, N, D], bias [B, N] added to every key's logits -> (output [B, N, D], keys [B, H, N, D / H]).

        norm  the LayerNorm that h has passed, which prompts pass too
        """
        q, k, v = self._qkv(h).permute(2, 0, 3, 1, 4).unbind(0)
        keys, mask = k, self._mask(q, bias, causal)
        if self.prompt is not None:
            _, prompt_k, prompt_v = self._qkv(norm(self.prompt)).permute(1, 2, 0, 3).unbind(0)
            k = torch.cat([prompt_k.expand(len(k), -1, -1, -1), k], dim=2)
            v = torch.cat([prompt_v.expand(len(v), -1, -1, -1), v], dim=2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2)), keys


class Adapter(nn.Module):
    """A narrow layer behind the MLP, which begins as the identity."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        return x + self.up(F.relu(self.down(x)))


class Mlp(nn.Module):
    """Two linear layers around QuickGELU or exact GELU, and the adapter where there is one."""

    def __init__(self, width: int, activation: str, additions: Additions) -> None:
        super().__init__()
        self.quick = activation == "quickgelu"
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.adapter = None if additions.adapter is None else Adapter(width, additions.adapter)

    def forward(self, h: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        h = self.c_fc(h)
        # x * sigmoid(1.702 x) by way of SiLU, whose backward pass is one kernel
        h = self.c_proj(F.silu(1.702 * h) / 1.702 if self.quick else F.gelu(h))
        return h if self.adapter is None else self.adapter(h)


class Block(nn.Module):
    """Base of the transformer blocks of both towers."""

    def __init__(self, width: int, heads: int, activation: str, additions: Additions) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(width, heads, additions), Mlp(width, activation, additions)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def feed_forward(self, x: Tensor) -> Tensor:
        """x and its MLP: [B, N, D] -> [B, N, D]."""
        return x + self.mlp(self.ln_2(x))


class TextBlock(Block):
    """A block of the text tower, causal."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        return self.feed_forward(x + self.attn(self.ln_1(x), None, self.ln_1, causal=True)[0])


class Transformer(nn.Module):
    """The blocks of a tower under the name that checkpoints give them."""

    resblocks: nn.ModuleList

    def __init__(self, blocks: Iterable[Block]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)
