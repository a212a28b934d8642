"""Methods on the original path: the reference encoder, and EViT over the same blocks."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from tempme_export.bench.methods.catalogue import Method, without_clips
from tempme_export.bench.methods.recipes import method_recipe, with_policy
from tempme_export.bench.methods.schedules import evit_schedule
from tempme_export.encoder.recipe import Recipe
from tempme_export.encoder.reference import MergeLog, ReferenceVideo, attention, layer_norm, mlp
from tempme_export.encoder.schedule import BlockSchedule, Schedule
from tempme_export.errors import CheckpointError


def class_attention(h: Tensor, keys: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Attention of the class token to the patches, averaged over heads.

    h     [B, N, D], the input of the attention
    keys  [B, heads, N, D / heads], as `reference.attention` returns them
    Returns [B, N - 1]: softmax over all N tokens, the class token's own share left out.
    """
    d, heads, width = h.shape[-1], keys.shape[1], keys.shape[-1]
    q = F.linear(h[:, :1], weights["attn.in_proj_weight"][:d], weights["attn.in_proj_bias"][:d])
    q = q.unflatten(-1, (heads, width)).transpose(1, 2)
    return ((q * width**-0.5) @ keys.transpose(-1, -2)).softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)


def keep_attentive(x: Tensor, size: Tensor, attentive: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Keep the class token and the most attentive patches in their order, and fuse the others into one token behind
    them: their mean, weighted by attention. Among equal patches the lower index stays.

    x          [B, N, D], the class token first; size [B, N] original tokens that each stands for
    attentive  [B, N - 1], not negative; zeros for all others give a fused token of zeros
    keep       patches that stay, fewer than N - 1
    Returns [B, keep + 2, D] and [B, keep + 2].
    """
    order = attentive.sort(dim=-1, descending=True, stable=True).indices
    kept, rest = order[:, :keep].sort(dim=-1).values, order[:, keep:]
    weight = attentive.gather(1, rest)
    weight = weight / weight.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    patches, sizes = x[:, 1:], size[:, 1:]
    stays = patches.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    others = patches.gather(1, rest.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    fused = (weight.unsqueeze(-1) * others).sum(dim=1, keepdim=True)
    fused_size = sizes.gather(1, rest).sum(dim=1, keepdim=True)
    return torch.cat([x[:, :1], stays, fused], dim=1), torch.cat(
        [size[:, :1], sizes.gather(1, kept), fused_size], dim=1
    )


class EvitVideo(ReferenceVideo):
    """EViT over the reference's blocks, frame by frame: after the attention of the blocks of the schedule, the class
    token, the patches that it attends to most and one fused token remain.

    Its merge log has tokens and sizes after every block, and no merge steps: nothing is matched. Attention takes no
    account of sizes.
    """

    def __init__(
        self,
        recipe: Recipe,
        schedule: Schedule | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """schedule  of `schedules.evit_schedule`; None for the method's own. Raises CheckpointError for prompts."""
        if recipe.checkpoint.facts.prompts is not None:
            raise CheckpointError(
                f"{recipe.checkpoint.source} was trained with {recipe.checkpoint.facts.prompts} prompt tokens in each "
                "block, and EViT does not say whether they take part in the class token's attention. Leave evit out."
            )
        super().__init__(with_policy(recipe, without_clips(recipe.profile.merge, 0), "evit"), dtype, device)
        self.schedule = evit_schedule(recipe.profile.frames, recipe.backbone) if schedule is None else schedule

    def _block(
        self, x: Tensor, size: Tensor, block: BlockSchedule, merged_before: bool, log: MergeLog | None
    ) -> tuple[Tensor, Tensor]:
        weights = self.blocks[block.index]
        h = layer_norm(x, weights, "ln_1")
        out, keys = attention(h, weights, self.backbone.heads, None)
        x = x + out
        if block.r_intra > 0:
            x, size = keep_attentive(x, size, class_attention(h, keys, weights), block.tokens_mlp - 2)
        x = x + mlp(layer_norm(x, weights, "ln_2"), weights, self.backbone.activation)
        if log is not None:
            log.tokens.append(x)
            log.sizes.append(size)
        return x, size


def encoder(
    method: Method, recipe: Recipe, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ReferenceVideo:
    """A method over a recipe's weights on the original path; its `schedule` holds the token counts it runs with.

    Raises UsageError where the method does not run on the recipe's profile, CheckpointError where EViT meets prompts.
    """
    under = method_recipe(method, recipe)
    if method.exports:
        return ReferenceVideo(under, dtype, device)
    return EvitVideo(under, dtype=dtype, device=device)
