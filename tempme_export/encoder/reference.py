"""The reference encoder, as plain as the spec reads; also the original PyTorch path of every benchmark.

Eager, logits materialised, sort, gather and scatter in the merges; any floating dtype. A change of the rules
is made here first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tempme_export.encoder.backbone import Activation
from tempme_export.encoder.checkpoint import ADAPTER, PROMPT
from tempme_export.encoder.recipe import Recipe, folded_weights
from tempme_export.encoder.schedule import BlockSchedule, MergeKind
from tempme_export.kernels.reference import decision_gap_ref, match_tokens_ref, merge_tokens_ref


@dataclass(frozen=True)
class MergeStep:
    """One merge as it happened.

    assign  [B * clips, N] int32
    gap     [B * clips] float32: the smallest score difference the decisions hang on
    tokens  [B * clips, N - r, D]: the merged tokens
    """

    block: int
    kind: MergeKind
    n_cls: int
    r: int
    assign: Tensor
    gap: Tensor
    tokens: Tensor


@dataclass
class MergeLog:
    """Merge log of the encoder: every merge, and tokens and sizes after every block."""

    steps: list[MergeStep] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    sizes: list[Tensor] = field(default_factory=list)


def attention(h: Tensor, weights: Mapping[str, Tensor], heads: int, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Multi-head attention of spec section 3, rule 2.

    h     [B, N, D]
    bias  broadcasts to the logits [B, heads, N, N]; None where absent
    Where the weights hold prompts [P, D], every query also attends to them; they are of size 1 and have no output.
    Returns the projected output [B, N, D] and the unscaled keys [B, heads, N, D / heads], without the prompts'.
    """
    b, n, d = h.shape
    qkv = F.linear(h, weights["attn.in_proj_weight"], weights["attn.in_proj_bias"])
    q, k, v = qkv.view(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    logits = (q * (d // heads) ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias
    if PROMPT in weights:
        prompts = layer_norm(weights[PROMPT], weights, "ln_1")
        kv = F.linear(prompts, weights["attn.in_proj_weight"][d:], weights["attn.in_proj_bias"][d:])
        prompt_k, prompt_v = kv.view(-1, 2, heads, d // heads).permute(1, 2, 0, 3)
        logits = torch.cat([(q * (d // heads) ** -0.5) @ prompt_k.transpose(-1, -2), logits], dim=-1)
        v = torch.cat([prompt_v.expand(b, -1, -1, -1), v], dim=-2)
    out = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, d)
    return F.linear(out, weights["attn.out_proj.weight"], weights["attn.out_proj.bias"]), k


def mlp(h: Tensor, weights: Mapping[str, Tensor], activation: Activation) -> Tensor:
    """Two linear layers around QuickGELU (x * sigmoid(1.702 x)) or exact GELU: [B, N, D] -> [B, N, D].

    Where the weights hold an adapter, it follows: out + up(relu(down(out))).
    """
    h = F.linear(h, weights["mlp.c_fc.weight"], weights["mlp.c_fc.bias"])
    h = h * torch.sigmoid(1.702 * h) if activation == "quickgelu" else F.gelu(h)
    out = F.linear(h, weights["mlp.c_proj.weight"], weights["mlp.c_proj.bias"])
    if f"{ADAPTER}down.weight" not in weights:
        return out
    inner = F.relu(F.linear(out, weights[f"{ADAPTER}down.weight"], weights[f"{ADAPTER}down.bias"]))
    return out + F.linear(inner, weights[f"{ADAPTER}up.weight"], weights[f"{ADAPTER}up.bias"])


def layer_norm(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    """LayerNorm over the last axis with CLIP's epsilon 1e-5."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)


def join_clips(x: Tensor, factor: int, n_cls: int) -> Tensor:
    """factor adjacent clips become one: class tokens clip by clip, then patches clip by clip (spec section 3, rule 1).

    x  [B * clips, N, ...] -> [B * clips / factor, factor * N, ...]
    """
    clips = x.unflatten(0, (-1, factor))
    return torch.cat([clips[:, :, :n_cls].flatten(1, 2), clips[:, :, n_cls:].flatten(1, 2)], dim=1)


def _block_weights(weights: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    prefix = f"transformer.resblocks.{index}."
    return {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}


class ReferenceVideo(nn.Module):
    """Video tower of the reference. `forward` returns what a bundle's `video.onnx` returns."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.backbone, self.schedule, self.policy = recipe.backbone, recipe.schedule, recipe.profile.merge
        self.dtype = dtype
        self.weights = {k: v.to(device) for k, v in folded_weights(recipe, "visual.", dtype).items()}
        self.blocks = [_block_weights(self.weights, i) for i in range(self.backbone.layers)]

    def _stem(self, frames: Tensor) -> Tensor:
        """[B, F, 3, S, S] -> [B * F, P, D] (spec section 2)."""
        patches = F.conv2d(frames.flatten(0, 1), self.weights["conv1.weight"], stride=self.backbone.patch)
        patches = patches.flatten(2).transpose(1, 2)
        cls = self.weights["class_embedding"].expand(len(patches), 1, -1)
        x = torch.cat([cls, patches], dim=1) + self.weights["positional_embedding"]
        return layer_norm(x, self.weights, "ln_pre")

    def _merge(
        self,
        x: Tensor,
        size: Tensor,
        metric: Tensor,
        block: BlockSchedule,
        kind: MergeKind,
        log: MergeLog | None,
    ) -> tuple[Tensor, Tensor]:
        r = block.r_cross if kind == "cross" else block.r_intra
        if r == 0:
            return x, size
        assign = match_tokens_ref(metric, block.n_cls, r)
        x, size = merge_tokens_ref(x, size, assign, x.shape[1] - r)
        if log is not None:
            gap = decision_gap_ref(metric, block.n_cls, r)
            log.steps.append(MergeStep(block.index, kind, block.n_cls, r, assign, gap, x))
        return x, size

    def _cross_clip(
        self, x: Tensor, size: Tensor, block: BlockSchedule, weights: Mapping[str, Tensor], log: MergeLog | None
    ) -> tuple[Tensor, Tensor]:
        """Step 1 of a clip layer. The metric is x before the clip positions are added."""
        n_cls = block.n_cls // block.factor
        metric = join_clips(x, block.factor, n_cls)
        size = join_clips(size, block.factor, n_cls)
        if block.r_cross == 0:
            return metric, size
        if self.policy.clip_position:
            position = weights["clip_position"]
            x = (x.unflatten(0, (-1, len(position))) + position[:, None]).flatten(0, 1)
        return self._merge(join_clips(x, block.factor, n_cls), size, metric, block, "cross", log)

    def _block(
        self, x: Tensor, size: Tensor, block: BlockSchedule, merged_before: bool, log: MergeLog | None
    ) -> tuple[Tensor, Tensor]:
        weights = self.blocks[block.index]
        if block.factor > 1:
            x, size = self._cross_clip(x, size, block, weights, log)
        use_size = self.policy.size_bias and (merged_before or block.r_cross > 0)
        bias = size.log().to(x.dtype)[:, None, None, :] if use_size else None
        out, keys = attention(layer_norm(x, weights, "ln_1"), weights, self.backbone.heads, bias)
        x, size = self._merge(x + out, size, keys.mean(dim=1), block, "intra", log)
        x = x + mlp(layer_norm(x, weights, "ln_2"), weights, self.backbone.activation)
        if log is not None:
            log.tokens.append(x)
            log.sizes.append(size)
        return x, size

    @torch.inference_mode()
    def frame_features(self, frames: Tensor, log: MergeLog | None = None) -> Tensor:
        """Unit feature of every frame: [B, F, 3, S, S] -> [B, F, E] (spec sections 2, 3 and 5)."""
        x = self._stem(frames.to(self.dtype))
        size = torch.ones(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        merged = False
        for block in self.schedule.blocks:
            x, size = self._block(x, size, block, merged, log)
            merged = merged or block.r_cross > 0 or block.r_intra > 0
        cls = x[:, : self.schedule.blocks[-1].n_cls].reshape(len(frames), self.schedule.frames, -1)
        return F.normalize(layer_norm(cls, self.weights, "ln_post") @ self.weights["proj"], dim=-1)

    @torch.inference_mode()
    def video_feature(self, frames: Tensor, frame_mask: Tensor | None = None, log: MergeLog | None = None) -> Tensor:
        """Mean of the unit frame features whose mask is 1, not normalised again: [B, E]; zeros where none is.

        frames      [B, F, 3, S, S] normalised pixels
        frame_mask  [B, F]; None counts all frames
        """
        features = self.frame_features(frames, log)
        if frame_mask is None:
            return features.mean(dim=1)
        mask = frame_mask.to(features.dtype).unsqueeze(-1)
        return (features * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)

    def forward(self, frames: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Unit video embedding: [B, F, 3, S, S] -> [B, E]."""
        return F.normalize(self.video_feature(frames, frame_mask), dim=-1)


class ReferenceText(nn.Module):
    """Text tower of the reference (spec section 6)."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.backbone = recipe.backbone
        self.weights = {k: v.to(device) for k, v in folded_weights(recipe, "", dtype).items()}
        self.blocks = [_block_weights(self.weights, i) for i in range(self.backbone.text_layers)]

    @torch.inference_mode()
    def text_feature(self, token_ids: Tensor) -> Tensor:
        """Projected feature of the end token, not normalised: int64 [B, L] -> [B, E]."""
        length = token_ids.shape[1]
        x = self.weights["token_embedding.weight"][token_ids] + self.weights["positional_embedding"][:length]
        causal = torch.full((length, length), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        for weights in self.blocks:
            x = x + attention(layer_norm(x, weights, "ln_1"), weights, self.backbone.text_heads, causal)[0]
            x = x + mlp(layer_norm(x, weights, "ln_2"), weights, self.backbone.activation)
        end = x[torch.arange(len(x), device=x.device), token_ids.argmax(dim=-1)]
        return layer_norm(end, self.weights, "ln_final") @ self.weights["text_projection"]

    def forward(self, token_ids: Tensor) -> Tensor:
        """Unit text embedding: int64 [B, L] -> [B, E]."""
        return F.normalize(self.text_feature(token_ids), dim=-1)
