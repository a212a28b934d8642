"""The differentiable encoder: the same towers with parameters, trained through their merges.

Module and parameter names are the original checkpoint's, so that its state dict is a checkpoint. Gradients flow
through merged tokens, not through the matching: which tokens meet is taken as given in each step.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tempme_export.encoder import ops
from tempme_export.encoder.checkpoint import ADAPTER, CLIP_POSITION, LORA_A, LORA_B, PROMPT
from tempme_export.encoder.recipe import Recipe
from tempme_export.encoder.reference import join_clips
from tempme_export.encoder.schedule import BlockSchedule
from tempme_export.errors import CheckpointError
from tempme_export.kernels.dense import merge_tokens
from tempme_export.training.blocks import Additions, Block, TextBlock, Transformer

Tune = Literal["lora", "full", "adapter", "prompt"]
TUNES: tuple[Tune, ...] = ("lora", "full", "adapter", "prompt")
PROMPTS = 5  # tokens in each block: 0.08 M for ViT-B/32, as in the paper's Table 13


class Stream(NamedTuple):
    """Tokens [clips, N, D] and how many original tokens each stands for, [clips, N] float32; None while all are 1."""

    x: Tensor
    size: Tensor | None


class VideoBlock(Block):
    """A block of the video tower with its merges (spec section 3)."""

    def __init__(self, block: BlockSchedule, recipe: Recipe, additions: Additions) -> None:
        backbone, merge = recipe.backbone, recipe.profile.merge
        super().__init__(backbone.width, backbone.heads, backbone.activation, additions)
        self.block, self.size_bias = block, merge.size_bias
        position = nn.Parameter(torch.zeros(1, block.clips_in, 1, backbone.width))
        self.register_parameter(CLIP_POSITION, position if merge.clip_position and block.factor > 1 else None)

    def _merge(self, stream: Stream, metric: Tensor, r: int) -> Stream:
        x, size = stream
        if r == 0:
            return stream
        with torch.autocast(x.device.type, enabled=False):
            assign = ops.match_tokens(metric.detach().contiguous(), self.block.n_cls, r)
            return Stream(*merge_tokens(x.float(), size, assign, self.block.n_cls, r))

    def _join(self, stream: Stream) -> Stream:
        """Step 1: the metric is the stream before the clip positions are added, which are if anything merges."""
        factor, n_cls = self.block.factor, self.block.n_cls // self.block.factor
        x, size = stream
        if size is not None:
            size = join_clips(size, factor, n_cls)
        metric = join_clips(x, factor, n_cls)
        position = getattr(self, CLIP_POSITION)
        if self.block.r_cross == 0 or position is None:
            return self._merge(Stream(metric, size), metric, self.block.r_cross)
        x = (x.unflatten(0, (-1, self.block.clips_in)) + position).flatten(0, 1)
        return self._merge(Stream(join_clips(x, factor, n_cls), size), metric, self.block.r_cross)

    def forward(self, stream: Stream) -> Stream:
        """The stream of block.clips_in clips -> that of block.clips."""
        if self.block.factor > 1:
            stream = self._join(stream)
        bias = stream.size.log() if self.size_bias and stream.size is not None else None
        out, keys = self.attn(self.ln_1(stream.x), bias, self.ln_1)
        stream = self._merge(stream._replace(x=stream.x + out), keys.mean(dim=1), self.block.r_intra)
        return stream._replace(x=self.feed_forward(stream.x))


class VideoTower(nn.Module):
    """Normalised frames to a unit embedding."""

    def __init__(self, recipe: Recipe, additions: Additions) -> None:
        super().__init__()
        b = recipe.backbone
        self.schedule, self.patch, self.grid = recipe.schedule, b.patch, b.image_size // b.patch
        self.conv1 = nn.Conv2d(3, b.width, b.patch, b.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(b.width))
        self.positional_embedding = nn.Parameter(torch.empty(b.tokens_per_frame, b.width))
        self.ln_pre, self.ln_post = nn.LayerNorm(b.width), nn.LayerNorm(b.width)
        self.transformer = Transformer(VideoBlock(block, recipe, additions) for block in recipe.schedule.blocks)
        self.proj = nn.Parameter(torch.empty(b.width, b.embed))

    def _stem(self, frames: Tensor) -> Tensor:
        """[B, F, 3, S, S] -> [B * F, P, D]; the convolution as a matrix product, since its stride is its kernel."""
        pixels = frames.reshape(-1, 3, self.grid, self.patch, self.grid, self.patch)
        pixels = pixels.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        patches = F.linear(pixels, self.conv1.weight.flatten(1))
        cls = self.class_embedding.expand(len(patches), 1, -1).to(patches.dtype)
        return self.ln_pre(torch.cat([cls, patches], dim=1) + self.positional_embedding)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, F, 3, S, S] float32 -> [B, E] float32 of unit length."""
        stream = Stream(self._stem(frames), None)
        for block in self.transformer.resblocks:
            stream = block(stream)
        cls = stream.x[:, : self.schedule.blocks[-1].n_cls].reshape(len(frames), self.schedule.frames, -1)
        features = F.normalize((self.ln_post(cls) @ self.proj).float(), dim=-1)
        return F.normalize(features.mean(dim=1), dim=-1)


class TrainableModel(nn.Module):
    """Both towers and the temperature, with the parameters that `tune` trains.

    tune  "lora": rank-`rank` additions to q, k, v of both towers, their B zero at the start, and the clip positions;
          "adapter": a layer of inner width `rank` behind each MLP, and the clip positions; "prompt": PROMPTS more keys
          and values in each block, and the clip positions; "full": every weight of the towers, LoRA of the
          checkpoint folded in. What does not train is frozen
    seed  of what is drawn: LoRA's A, the adapter's first layer, prompts
    train_temperature  whether `logit_scale`, which is log(1 / temperature), trains too
    Raises CheckpointError when the checkpoint holds additions of another kind or size.
    """

    def __init__(
        self, recipe: Recipe, tune: Tune, rank: int = 8, seed: int = 0, train_temperature: bool = False
    ) -> None:
        super().__init__()
        b = recipe.backbone
        chosen = {
            "lora": Additions(rank=rank),
            "adapter": Additions(adapter=rank),
            "prompt": Additions(prompts=PROMPTS),
            "full": Additions(adapter=recipe.checkpoint.facts.adapter, prompts=recipe.checkpoint.facts.prompts or 0),
        }[tune]
        self.visual = VideoTower(recipe, chosen)
        self.token_embedding = nn.utils.skip_init(nn.Embedding, b.vocab, b.text_width)
        self.positional_embedding = nn.Parameter(torch.empty(b.context, b.text_width))
        self.transformer = Transformer(
            TextBlock(b.text_width, b.text_heads, b.activation, chosen) for _ in range(b.text_layers)
        )
        self.ln_final = nn.LayerNorm(b.text_width)
        self.text_projection = nn.Parameter(torch.empty(b.text_width, b.embed))
        self.logit_scale = nn.Parameter(torch.empty(()))
        self._draw(seed)
        self._load(recipe, chosen)
        trained = (LORA_A, LORA_B, CLIP_POSITION, PROMPT)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(tune == "full" or name.endswith(trained) or ADAPTER in name)
        self.logit_scale.requires_grad_(train_temperature)

    def _draw(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith((LORA_A, f"{ADAPTER}down.weight")):
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
            elif name.endswith(f"{ADAPTER}down.bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(PROMPT):
                nn.init.normal_(parameter, std=0.02, generator=generator)

    def _load(self, recipe: Recipe, chosen: Additions) -> None:
        source, facts = recipe.checkpoint.source, recipe.checkpoint.facts
        tensors = dict(recipe.checkpoint.tensors)
        if chosen.rank is None:
            tensors = _folded(tensors)
        for what, found, asked in (
            ("LoRA of rank", facts.lora_rank if chosen.rank is not None else None, chosen.rank),
            ("adapters of inner width", facts.adapter, chosen.adapter),
            ("prompts of length", facts.prompts, chosen.prompts or None),
        ):
            if found is not None and found != asked:
                raise CheckpointError(
                    f"{source} has {what} {found}, asked for was {asked or 'a training without'}. Ask for the same, "
                    "or train everything (--full)."
                )
        missing, _ = self.load_state_dict(tensors, strict=False)
        added = (LORA_A, LORA_B, CLIP_POSITION, PROMPT)
        foreign = [name for name in missing if not name.endswith(added) and ADAPTER not in name]
        assert not foreign, f"the checkpoint was validated, yet lacks {foreign}"

    def video(self, frames: Tensor) -> Tensor:
        """Normalised pixels [B, F, 3, S, S] -> float32 [B, E] of unit length."""
        return self.visual(frames)

    def text(self, token_ids: Tensor) -> Tensor:
        """int64 [B, L] -> float32 [B, E] of unit length. What lies behind every end token is not computed."""
        end = token_ids.argmax(dim=-1)
        length = int(end.max()) + 1
        x = self.token_embedding(token_ids[:, :length]) + self.positional_embedding[:length]
        for block in self.transformer.resblocks:
            x = block(x)
        x = self.ln_final(x[torch.arange(len(x), device=x.device), end])
        return F.normalize((x @ self.text_projection).float(), dim=-1)

    def forward(self, frames: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Both towers: unit embeddings of videos [B, E] and texts [B, E], float32."""
        return self.video(frames), self.text(token_ids)

    def counts(self) -> dict[str, int]:
        """Number of trained values, by kind."""
        found: dict[str, int] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                kind = _kind(name)
                found[kind] = found.get(kind, 0) + parameter.numel()
        return found

    def state(self) -> dict[str, Tensor]:
        """The model in the original's checkpoint layout: float32 on the CPU, names with `clip.` (spec section 7)."""
        return {f"clip.{name}": tensor.detach().float().cpu() for name, tensor in self.state_dict().items()}


def _kind(name: str) -> str:
    if name.endswith((LORA_A, LORA_B)):
        return "lora"
    if ADAPTER in name:
        return "adapters"
    if name.endswith(PROMPT):
        return "prompts"
    return {CLIP_POSITION: "clip positions", "logit_scale": "temperature"}.get(name.rsplit(".", 1)[-1], "backbone")


def _folded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """W + B A in place of W, B and A."""
    folded = {name: tensor for name, tensor in tensors.items() if not name.endswith((LORA_A, LORA_B))}
    for name in tensors:
        if name.endswith(LORA_A):
            block = name.removesuffix(LORA_A)
            product = tensors[block + LORA_B].double() @ tensors[name].double()
            weight = f"{block}attn.in_proj_weight"
            folded[weight] = (folded[weight].double() + product).float()
    return folded
