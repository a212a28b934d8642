"""The fast encoder: static schedule, no mutable state, LoRA folded, merges through `ops` only.

Equal to `reference` in what it computes; different in how. Sizes are constants apart from the batch, so that
tracing yields a graph without shape arithmetic. In float16 and bfloat16 the LayerNorm statistics, softmax,
scores, sizes and weighted sums stay in float32, and so do inputs and outputs.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tempme_export import ops
from tempme_export.recipe import Recipe, folded_weights
from tempme_export.schedule import BlockPlan


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _unit(x: Tensor) -> Tensor:
    """Rows of length one; zeros stay zeros. F.normalize would expand to a shape known only at run time."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)


class LayerNorm(nn.Module):
    """LayerNorm with float32 statistics and parameters, returning the input's dtype."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weights: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        self.register_buffer("weight", weight.to(_wide(weight.dtype)))
        self.register_buffer("bias", bias.to(_wide(bias.dtype)))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        normed = F.layer_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.bias, 1e-5)
        return normed.to(x.dtype)


class Linear(nn.Module):
    """y = W x + b with frozen weights."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return F.linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """Multi-head attention in the primitive pattern MatMul, Add, Softmax, MatMul, which compilers fuse.

    The query scale is folded into the query weights.
    """

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, heads: int) -> None:
        super().__init__()
        self.heads = heads
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        weight, bias, out_weight, out_bias = (weights[f"{prefix}attn.{name}"] for name in names)
        self.head_width = len(out_bias) // heads
        scale = torch.ones_like(bias)
        scale[: len(out_bias)] = self.head_width**-0.5
        self.in_proj = Linear(weight * scale.unsqueeze(-1), bias * scale)
        self.out_proj = Linear(out_weight, out_bias)

    def forward(self, h: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """h [B, N, D], bias broadcasting to [B, H, N, N] in float32 -> output [B, N, D], keys [B, H, N, D / H]."""
        n, width = h.shape[1:]
        qkv = self.in_proj(h).view(-1, n, 3, self.heads, self.head_width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits = (q @ k.transpose(-1, -2)).to(_wide(h.dtype))
        if bias is not None:
            logits = logits + bias
        out = logits.softmax(dim=-1).to(h.dtype) @ v
        return self.out_proj(out.transpose(1, 2).reshape(-1, n, width)), k


class Mlp(nn.Module):
    """Two linear layers around QuickGELU or exact GELU."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, activation: str) -> None:
        super().__init__()
        self.quick = activation == "quickgelu"
        self.c_fc = Linear(weights[f"{prefix}mlp.c_fc.weight"], weights[f"{prefix}mlp.c_fc.bias"])
        self.c_proj = Linear(weights[f"{prefix}mlp.c_proj.weight"], weights[f"{prefix}mlp.c_proj.bias"])

    def forward(self, h: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        h = self.c_fc(h)
        h = h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h)
        return self.c_proj(h)


class Merges(list[tuple[Tensor, Tensor]]):
    """Collects (assign, merged tokens) of every merge in execution order, for parity and drawings."""


class VideoBlock(nn.Module):
    """One transformer block with its merges (spec section 3)."""

    clip_position: Tensor | None

    def __init__(
        self, weights: Mapping[str, Tensor], plan: BlockPlan, heads: int, activation: str, size_bias: bool
    ) -> None:
        super().__init__()
        prefix = f"transformer.resblocks.{plan.index}."
        self.plan, self.size_bias = plan, size_bias
        self.ln_1, self.ln_2 = LayerNorm(weights, prefix + "ln_1"), LayerNorm(weights, prefix + "ln_2")
        self.attn = Attention(weights, prefix, heads)
        self.mlp = Mlp(weights, prefix, activation)
        position = weights.get(prefix + "clip_position")
        if position is not None:  # [clips, D] -> [clips after joining, factor, 1, D]
            position = position.view(plan.clips, plan.factor, 1, -1)
        self.register_buffer("clip_position", position)

    def _join(self, x: Tensor) -> Tensor:
        """[B * clips * factor, n, ...] -> [B * clips, factor * n, ...], class tokens first."""
        factor, rest = self.plan.factor, x.shape[2:]
        cls = self.plan.n_cls // factor
        clips = x.view(-1, factor, x.shape[1], *rest)
        joined = [clips[:, :, :cls].reshape(-1, self.plan.n_cls, *rest)]
        joined.append(clips[:, :, cls:].reshape(-1, factor * (x.shape[1] - cls), *rest))
        return torch.cat(joined, dim=1)

    def _with_position(self, x: Tensor) -> Tensor:
        if self.clip_position is None:
            return x
        tokens, width = x.shape[1:]
        clips = x.view(-1, self.plan.clips, self.plan.factor, tokens, width) + self.clip_position
        return clips.view(-1, tokens, width)

    def _cross_clip(self, x: Tensor, size: Tensor | None, merges: Merges) -> tuple[Tensor, Tensor | None]:
        metric = self._join(x)
        size = None if size is None else self._join(size)
        if self.plan.r_cross == 0:
            return metric, size
        assign = ops.match_tokens(metric, self.plan.n_cls, self.plan.r_cross)
        joined = self._join(self._with_position(x))
        x, size = ops.merge_tokens(joined, size, assign, self.plan.n_cls, self.plan.r_cross)
        merges.append((assign, x))
        return x, size

    def forward(self, x: Tensor, size: Tensor | None, merges: Merges) -> tuple[Tensor, Tensor | None]:
        """x [B * clips_in, n, D], size [B * clips_in, n] or None before any merge -> the same, merged."""
        if self.plan.factor > 1:
            x, size = self._cross_clip(x, size, merges)
        bias = None if size is None or not self.size_bias else size.log()[:, None, None, :]
        out, keys = self.attn(self.ln_1(x), bias)
        x = x + out
        if self.plan.r_intra > 0:
            metric = keys.mean(dim=1, dtype=_wide(keys.dtype))
            assign = ops.match_tokens(metric, self.plan.n_cls, self.plan.r_intra)
            x, size = ops.merge_tokens(x, size, assign, self.plan.n_cls, self.plan.r_intra)
            merges.append((assign, x))
        return x + self.mlp(self.ln_2(x)), size


class VideoEncoder(nn.Module):
    """Video tower: normalised frames -> unit embedding."""

    patch_weight: Tensor
    position: Tensor
    proj: Tensor

    def __init__(self, recipe: Recipe, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        weights, backbone = folded_weights(recipe, "visual.", dtype), recipe.backbone
        self.plan, self.dtype = recipe.plan, dtype
        self.image_size, self.patch = backbone.image_size, backbone.patch
        self.register_buffer("patch_weight", weights["conv1.weight"].flatten(1))
        position = weights["positional_embedding"].clone()
        position[0] += weights["class_embedding"]
        self.register_buffer("position", position)  # [P, D], the class embedding inside its row 0
        self.ln_pre, self.ln_post = LayerNorm(weights, "ln_pre"), LayerNorm(weights, "ln_post")
        self.blocks = nn.ModuleList(
            VideoBlock(weights, plan, backbone.heads, backbone.activation, recipe.profile.merge.size_bias)
            for plan in self.plan.blocks
        )
        self.register_buffer("proj", weights["proj"])

    def _stem(self, frames: Tensor) -> Tensor:
        """The convolution as a matrix product: its stride is its kernel, and ONNX has no bfloat16 Conv."""
        grid, patch = self.image_size // self.patch, self.patch
        pixels = frames.to(self.dtype).view(-1, 3, grid, patch, grid, patch)
        pixels = pixels.permute(0, 2, 4, 1, 3, 5).reshape(-1, grid * grid, 3 * patch * patch)
        patches = F.linear(pixels, self.patch_weight)
        return self.ln_pre(F.pad(patches, (0, 0, 1, 0)) + self.position)

    def encode(self, frames: Tensor, frame_mask: Tensor | None, merges: Merges) -> Tensor:
        """As `forward`; every merge is appended to `merges`."""
        x, size = self._stem(frames), None
        for block in self.blocks:
            x, size = block(x, size, merges)
        cls = x[:, : self.plan.blocks[-1].n_cls].reshape(-1, self.plan.frames, x.shape[-1])
        features = (self.ln_post(cls) @ self.proj).to(_wide(self.dtype))
        features = _unit(features)
        if frame_mask is not None:
            features = features * frame_mask.to(features.dtype).unsqueeze(-1)
        return _unit(features.sum(dim=1))

    def forward(self, frames: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """frames [B, F, 3, S, S] float32, frame_mask [B, F] bool -> [B, E] float32 of unit length.

        A masked frame takes part in merging and attention and is left out of the mean; a video without
        any frame that counts gives zeros (spec section 5).
        """
        return self.encode(frames, frame_mask, Merges())


class TextBlock(nn.Module):
    """One transformer block of the text tower."""

    def __init__(self, weights: Mapping[str, Tensor], index: int, heads: int, activation: str) -> None:
        super().__init__()
        prefix = f"transformer.resblocks.{index}."
        self.ln_1, self.ln_2 = LayerNorm(weights, prefix + "ln_1"), LayerNorm(weights, prefix + "ln_2")
        self.attn = Attention(weights, prefix, heads)
        self.mlp = Mlp(weights, prefix, activation)

    def forward(self, x: Tensor, causal: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = x + self.attn(self.ln_1(x), causal)[0]
        return x + self.mlp(self.ln_2(x))


class TextEncoder(nn.Module):
    """Text tower: token ids -> unit embedding (spec section 6)."""

    embedding: Tensor
    position: Tensor
    causal: Tensor
    index: Tensor
    projection: Tensor

    def __init__(self, recipe: Recipe, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        weights, backbone = folded_weights(recipe, "", dtype), recipe.backbone
        self.length, self.dtype = recipe.profile.text_length, dtype
        self.register_buffer("embedding", weights["token_embedding.weight"])
        self.register_buffer("position", weights["positional_embedding"][: self.length])
        self.blocks = nn.ModuleList(
            TextBlock(weights, i, backbone.text_heads, backbone.activation) for i in range(backbone.text_layers)
        )
        causal = torch.full((self.length, self.length), -torch.inf, dtype=_wide(dtype)).triu(1)
        self.register_buffer("causal", causal)
        self.register_buffer("index", torch.arange(self.length))
        self.ln_final = LayerNorm(weights, "ln_final")
        self.register_buffer("projection", weights["text_projection"])

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids [B, L] int64 -> [B, E] float32 of unit length, read at the end token (the largest id)."""
        x = F.embedding(token_ids, self.embedding) + self.position
        for block in self.blocks:
            x = block(x, self.causal)
        is_end = torch.eq(token_ids.argmax(dim=-1, keepdim=True), self.index).to(x.dtype)
        end = (is_end.unsqueeze(1) @ x).squeeze(1)
        feature = (self.ln_final(end) @ self.projection).to(_wide(self.dtype))
        return _unit(feature)
