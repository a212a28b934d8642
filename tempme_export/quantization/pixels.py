"""The patch embedding on pixels as the video file had them: 8 bits, which are quantised without any loss.

Frames arrive normalised, (p / 255 - mean) / std with another mean and std for each colour, which one scale cannot
hold exactly. Undone in the graph, p / 255 is a multiple of the scale, and the normalisation moves into the weights.
"""

import torch
from torch import Tensor, nn

from tempme_export.encoder.model import Linear
from tempme_export.quantization.products import Range

PIXELS = Range(0.0, 1.0)


class PixelPatches(nn.Module):
    """The patch embedding of normalised frames, through a product whose input is in [0, 1]."""

    std: Tensor
    mean: Tensor

    def __init__(self, conv1: Linear, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """conv1 has weights [D, 3 * patch * patch], the colours outermost; mean and std are one per colour."""
        super().__init__()
        per_colour = conv1.weight.shape[1] // len(std)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64).repeat_interleave(per_colour))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).repeat_interleave(per_colour))
        weight = conv1.weight.double() / self.std
        self.linear = Linear(weight.float(), (-weight @ self.mean).float())
        self.std, self.mean = self.std.float(), self.mean.float()

    def forward(self, pixels: Tensor) -> Tensor:
        """[..., 3 * patch * patch] normalised -> [..., D]."""
        return self.linear(pixels * self.std + self.mean)
