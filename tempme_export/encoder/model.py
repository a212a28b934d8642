"""The fast encoder: static schedule, no mutable state, LoRA folded, merges through `ops` only.

Equal to `reference` in what it computes; different in how. Sizes are constants apart from the batch, so that
tracing yields a graph without shape arithmetic. In float16 and bfloat16 the LayerNorm statistics, softmax,
scores, sizes and weighted sums stay in float32, and so do inputs and outputs.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tempme_export.encoder import ops
from tempme_export.encoder.checkpoint import ADAPTER
from tempme_export.encoder.recipe import Recipe, folded_weights
from tempme_export.encoder.schedule import BlockSchedule
from tempme_export.errors import CheckpointError


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _unit(x: Tensor) -> Tensor:
    """Rows of length one; zeros stay zeros. F.normalize would expand to a shape known only at run time."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)


def _sum_of_frames(x: Tensor) -> Tensor:
    """[B, F, E] -> [B, E], in pairs: runtimes sum an axis in another order when the batch is 1."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        pairs = x[:, :half] + x[:, half : 2 * half]
        x = torch.cat([pairs, x[:, 2 * half :]], dim=1) if x.shape[1] % 2 else pairs
    return x.squeeze(1)


def check_supported(recipe: Recipe) -> None:
    """Raises CheckpointError for what the fast encoder, and so every artifact, leaves to the reference: prompts."""
    prompts = recipe.checkpoint.facts.prompts
    if prompts is not None:
        raise CheckpointError(
            f"{recipe.checkpoint.source} was trained with {prompts} prompt tokens in each block; LoRA, adapters and "
            "full fine-tuning are exported, prompts run on the original path only (tempme-eval CKPT). "
            "Train with tempme-train --tune lora."
        )


Stages = tuple[Callable[[Any], Any], ...]


def _run(stages: Stages, x: Any) -> Any:
    for stage in stages:
        x = stage(x)
    return x


class LayerNorm(nn.Module):
    """Parameters of a LayerNorm, kept in float32 or wider; the operators apply it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weights: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        self.register_buffer("weight", weight.to(_wide(weight.dtype)))
        self.register_buffer("bias", bias.to(_wide(bias.dtype)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        return ops.layer_norm(x, self.weight, self.bias)

    def add(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """x + delta and its LayerNorm, two [B, N, D]."""
        return ops.add_norm(x, delta, self.weight, self.bias)


class Linear(nn.Module):
    """y = W x + b with frozen weights; every product of activations with weights is one of these."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return F.linear(x, self.weight, self.bias)


def _linear(weights: Mapping[str, Tensor], name: str) -> Linear:
    return Linear(weights[f"{name}.weight"], weights[f"{name}.bias"])


class Projections(nn.Module):
    """The two matrix products around an attention; the query scale is folded into the query weights."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, heads: int) -> None:
        super().__init__()
        self.heads = heads
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        weight, bias, out_weight, out_bias = (weights[f"{prefix}attn.{name}"] for name in names)
        scale = torch.ones_like(bias)
        scale[: len(out_bias)] = (len(out_bias) // heads) ** -0.5
        self.in_proj = Linear(weight * scale.unsqueeze(-1), bias * scale)
        self.out_proj = Linear(out_weight, out_bias)


class Mlp(nn.Module):
    """Two linear layers around QuickGELU or exact GELU, and the adapter behind them where there is one."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, activation: str) -> None:
        super().__init__()
        self.quick = activation == "quickgelu"
        self.c_fc, self.c_proj = (_linear(weights, f"{prefix}mlp.{name}") for name in ("c_fc", "c_proj"))
        self.down = self.up = None
        if f"{prefix}{ADAPTER}down.weight" in weights:
            self.down, self.up = (_linear(weights, f"{prefix}{ADAPTER}{name}") for name in ("down", "up"))

    def forward(self, h: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        h = self.c_fc(h)
        h = h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h)
        out = self.c_proj(h)
        return out if self.down is None or self.up is None else out + self.up(F.relu(self.down(out)))


class Merges(list[tuple[Tensor, Tensor]]):
    """Collects (assign, merged tokens) of every merge in execution order, for parity and drawings."""


class Stream(NamedTuple):
    """State that flows from block to block. Adding `delta` is left to the step that reads the sum, which fuses it.

    x         [clips, N, D], the residual stream
    delta     [clips, N, D], the last MLP's output, not yet added; None before the first block
    size      [clips, N] float32 or wider: original tokens in each; None while all are 1
    log_size  its logarithm
    """

    x: Tensor
    delta: Tensor | None
    size: Tensor | None
    log_size: Tensor | None


class VideoBlock(nn.Module):
    """One transformer block with its merges (spec section 3)."""

    clip_position: Tensor | None

    def __init__(
        self, weights: Mapping[str, Tensor], block: BlockSchedule, heads: int, activation: str, size_bias: bool
    ) -> None:
        super().__init__()
        prefix = f"transformer.resblocks.{block.index}."
        self.block, self.size_bias = block, size_bias
        self.ln_1, self.ln_2 = LayerNorm(weights, prefix + "ln_1"), LayerNorm(weights, prefix + "ln_2")
        self.attn = Projections(weights, prefix, heads)
        self.mlp = Mlp(weights, prefix, activation)
        position = weights.get(prefix + "clip_position")
        self.register_buffer("clip_position", None if position is None else position.flatten(0, -2))

    def _merge(
        self, stream: Stream, assign: Tensor, position: Tensor | None, norm: LayerNorm, factor: int, r: int
    ) -> tuple[Stream, Tensor]:
        x, delta, size, _ = stream
        x, h, size, log_size = ops.merge_norm(
            x, delta, size, assign, position, norm.weight, norm.bias, factor, self.block.n_cls, r
        )
        return Stream(x, None, size, log_size), h

    def _join(self, stream: Stream, merges: Merges) -> tuple[Stream, Tensor]:
        """Join clips and merge across them; the stream of block.clips and its ln_1."""
        factor, n_cls, r = self.block.factor, self.block.n_cls, self.block.r_cross
        if r == 0:
            x, delta, size, log_size = stream
            x = ops.join_clips(x if delta is None else x + delta, factor, n_cls)
            if size is not None and log_size is not None:
                size, log_size = ops.join_clips(size, factor, n_cls), ops.join_clips(log_size, factor, n_cls)
            return Stream(x, None, size, log_size), self.ln_1(x)
        assign = ops.match_clips(stream.x, stream.delta, factor, n_cls, r)
        stream, h = self._merge(stream, assign, self.clip_position, self.ln_1, factor, r)
        merges.append((assign, stream.x))
        return stream, h

    def _enter(self, stream: Stream, merges: Merges) -> tuple[Stream, Tensor]:
        """Prepare the attention: join clips where the schedule says so, add up the stream, apply ln_1."""
        if self.block.factor > 1:
            return self._join(stream, merges)
        if stream.delta is None:
            return stream, self.ln_1(stream.x)
        x, h = self.ln_1.add(stream.x, stream.delta)
        return stream._replace(x=x, delta=None), h

    def forward(self, stream: Stream, merges: Merges) -> Stream:
        """The stream of block.clips_in clips -> that of block.clips; every merge is appended to `merges`."""
        stream, h = self._enter(stream, merges)
        qkv, heads = self.attn.in_proj(h), self.attn.heads
        bias = stream.log_size if self.size_bias else None
        if self.block.r_intra > 0:
            out, assign = ops.attention_match(qkv, bias, heads, self.block.n_cls, self.block.r_intra)
            stream = stream._replace(delta=self.attn.out_proj(out))
            stream, h = self._merge(stream, assign, None, self.ln_2, 1, self.block.r_intra)
            merges.append((assign, stream.x))
        else:
            x, h = self.ln_2.add(stream.x, self.attn.out_proj(ops.attention(qkv, bias, heads)))
            stream = stream._replace(x=x)
        return stream._replace(delta=self.mlp(h))


class VideoEncoder(nn.Module):
    """Video tower: normalised frames -> unit embedding."""

    position: Tensor

    def __init__(self, recipe: Recipe, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        check_supported(recipe)
        weights, backbone = folded_weights(recipe, "visual.", dtype), recipe.backbone
        self.schedule, self.dtype = recipe.schedule, dtype
        self.image_size, self.patch = backbone.image_size, backbone.patch
        self.conv1: nn.Module = Linear(weights["conv1.weight"].flatten(1))
        position = weights["positional_embedding"].clone()
        position[0] += weights["class_embedding"]
        self.register_buffer("position", position)  # [P, D], the class embedding inside its row 0
        self.ln_pre, self.ln_post = LayerNorm(weights, "ln_pre"), LayerNorm(weights, "ln_post")
        self.blocks = nn.ModuleList(
            VideoBlock(weights, block, backbone.heads, backbone.activation, recipe.profile.merge.size_bias)
            for block in self.schedule.blocks
        )
        self.proj = Linear(weights["proj"].T)

    def _stem(self, frames: Tensor) -> Tensor:
        """The convolution as a matrix product: its stride is its kernel, and ONNX has no bfloat16 Conv."""
        grid, patch = self.image_size // self.patch, self.patch
        pixels = frames.to(self.dtype).view(-1, 3, grid, patch, grid, patch)
        pixels = pixels.permute(0, 2, 4, 1, 3, 5).reshape(-1, grid * grid, 3 * patch * patch)
        return self.ln_pre(F.pad(self.conv1(pixels), (0, 0, 1, 0)) + self.position)

    def _pool(self, stream: Stream, frame_mask: Tensor | None) -> Tensor:
        """The last block's stream -> unit embedding [B, E]."""
        n_cls = self.schedule.blocks[-1].n_cls
        assert stream.delta is not None, "the last MLP's output waits to be added"
        cls = self.ln_post.add(stream.x[:, :n_cls], stream.delta[:, :n_cls])[1]
        features = self.proj(cls.reshape(-1, self.schedule.frames, cls.shape[-1]))
        features = _unit(features.to(_wide(self.dtype)))
        if frame_mask is not None:
            features = features * frame_mask.to(features.dtype).unsqueeze(-1)
        return _unit(_sum_of_frames(features))

    def stages(self, merges: Merges, frame_mask: Tensor | None = None) -> Stages:
        """The encoder as steps: the first takes the frames, the last gives the embedding, the blocks lie between."""
        return (
            lambda frames: Stream(self._stem(frames), None, None, None),
            *(partial(block, merges=merges) for block in self.blocks),
            partial(self._pool, frame_mask=frame_mask),
        )

    def encode(self, frames: Tensor, frame_mask: Tensor | None, merges: Merges) -> Tensor:
        """As `forward`; every merge is appended to `merges`."""
        return _run(self.stages(merges, frame_mask), frames)

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
        self.attn = Projections(weights, prefix, heads)
        self.mlp = Mlp(weights, prefix, activation)

    def forward(self, x: Tensor, causal: Tensor) -> Tensor:
        """x [B, L, D], causal [L, L] float32 or wider, added to the logits -> [B, L, D]."""
        qkv = self.attn.in_proj(self.ln_1(x)).unflatten(-1, (3, self.attn.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits = (q @ k.transpose(-1, -2)).to(causal.dtype) + causal
        out = logits.softmax(dim=-1).to(x.dtype) @ v
        x = x + self.attn.out_proj(out.transpose(1, 2).reshape(-1, *x.shape[1:]))
        return x + self.mlp(self.ln_2(x))


class TextEncoder(nn.Module):
    """Text tower: token ids -> unit embedding (spec section 6)."""

    position: Tensor
    causal: Tensor
    index: Tensor

    def __init__(self, recipe: Recipe, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        check_supported(recipe)
        weights, backbone = folded_weights(recipe, "", dtype), recipe.backbone
        self.length, self.dtype = recipe.profile.text_length, dtype
        self.embedding: nn.Module = nn.Embedding.from_pretrained(weights["token_embedding.weight"])
        self.register_buffer("position", weights["positional_embedding"][: self.length])
        self.blocks = nn.ModuleList(
            TextBlock(weights, i, backbone.text_heads, backbone.activation) for i in range(backbone.text_layers)
        )
        causal = torch.full((self.length, self.length), -torch.inf, dtype=_wide(dtype)).triu(1)
        self.register_buffer("causal", causal)
        self.register_buffer("index", torch.arange(self.length))
        self.ln_final = LayerNorm(weights, "ln_final")
        self.text_projection = Linear(weights["text_projection"].T)

    def _pool(self, x: Tensor, token_ids: Tensor) -> Tensor:
        """The last block's output -> unit embedding [B, E], read at the end token (the largest id)."""
        is_end = torch.eq(token_ids.argmax(dim=-1, keepdim=True), self.index).to(x.dtype)
        end = is_end.unsqueeze(1) @ x  # [B, 1, D]
        feature = self.text_projection(self.ln_final(end)).squeeze(1)
        return _unit(feature.to(_wide(self.dtype)))

    def stages(self, token_ids: Tensor) -> Stages:
        """The encoder as steps: the first takes the token ids, the last gives the embedding, the blocks lie between."""
        return (
            lambda ids: self.embedding(ids) + self.position,
            *(partial(block, causal=self.causal) for block in self.blocks),
            partial(self._pool, token_ids=token_ids),
        )

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids [B, L] int64 -> [B, E] float32 of unit length."""
        return _run(self.stages(token_ids), token_ids)
