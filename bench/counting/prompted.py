"""CLIP with prompts that take part as tokens, to count what they cost; no checkpoint of this package holds them."""

import torch
from torch import Tensor

from tempme_export.encoder.recipe import Recipe
from tempme_export.encoder.reference import MergeLog, ReferenceVideo
from tempme_export.encoder.schedule import BlockSchedule
from tempme_export.errors import ProfileError


class PromptedVideo(ReferenceVideo):
    """The reference with `prompts` zeros behind each clip's tokens in every block, dropped after the block."""

    def __init__(self, recipe: Recipe, prompts: int, device: torch.device | str = "cpu") -> None:
        """Raises ProfileError for a recipe that merges: prompts would be merged as well."""
        if recipe.schedule.merges:
            raise ProfileError(
                f"profile {recipe.profile.name} merges tokens, and nothing says how prompts among them would merge. "
                "Count prompts where nothing merges."
            )
        super().__init__(recipe, device=device)
        self.prompts = prompts

    def _block(
        self, x: Tensor, size: Tensor, block: BlockSchedule, merged_before: bool, log: MergeLog | None
    ) -> tuple[Tensor, Tensor]:
        tokens = x.shape[1]
        x = torch.cat([x, x.new_zeros(len(x), self.prompts, x.shape[2])], dim=1)
        size = torch.cat([size, size.new_ones(len(size), self.prompts)], dim=1)
        x, size = super()._block(x, size, block, merged_before, log)
        return x[:, :tokens], size[:, :tokens]
