"""The token embedding in 8 bits: half of a text tower's float32 file, and it is only looked up."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS = 127  # all of int8: rows are looked up, and nothing is summed in 16 bits


def _scales(x: Tensor, dim: int) -> Tensor:
    largest = x.abs().amax(dim=dim, keepdim=True)
    return torch.where(largest == 0, 1.0, largest)


class RoundedEmbedding(nn.Module):
    """An embedding as int8, with a scale for each token and one for each channel, so that outlier channels cost the
    others nothing."""

    table: Tensor
    token_scale: Tensor
    channel_scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        """weight  [V, D] float32"""
        super().__init__()
        channel_scale = _scales(weight, dim=0)
        token_scale = _scales(weight / channel_scale, dim=1) / _STEPS
        table = (weight / channel_scale / token_scale).round().to(torch.int8)
        self.register_buffer("table", table)
        self.register_buffer("token_scale", token_scale)
        self.register_buffer("channel_scale", channel_scale)

    def forward(self, token_ids: Tensor) -> Tensor:
        """[B, L] int64 -> [B, L, D] float32."""
        steps = F.embedding(token_ids, self.table).float()
        return steps * F.embedding(token_ids, self.token_scale) * self.channel_scale
