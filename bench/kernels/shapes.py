"""Every launch of the kernels between an encoder's matrix products, from its schedule alone."""

import torch
from torch import Tensor

from tempme_export.encoder.backbone import HEAD_WIDTH
from tempme_export.encoder.schedule import BlockSchedule, Schedule
from tempme_export.kernels import attention, match, merge
from tempme_export.kernels.aot import Launch, launches_of


def encoder_launches(
    schedule: Schedule,
    width: int,
    batch: int,
    dtype: torch.dtype,
    *,
    size_bias: bool = True,
    clip_position: bool = True,
) -> tuple[Launch, ...]:
    """The launches of one forward of the video tower, in order.

    schedule   of the profile
    width  D of the backbone, a multiple of 64: heads are 64 wide
    batch  videos per call
    dtype  of the tokens; LayerNorm parameters stay float32

    Raises ValueError for what the kernels do not take.
    """
    walk = _Walk(width, dtype, size_bias, clip_position)
    return launches_of(lambda: walk.encode(schedule, batch))


class _Walk:
    """The encoder of `model`, its matrix products left out, on tensors without memory."""

    def __init__(self, width: int, dtype: torch.dtype, size_bias: bool, clip_position: bool) -> None:
        self.width, self.dtype = width, dtype
        self.size_bias, self.clip_position = size_bias, clip_position
        self.weight = self.bias = torch.empty(width, device="meta")

    def _rows(self, *shape: int) -> Tensor:
        return torch.empty(*shape, self.width, dtype=self.dtype, device="meta")

    def encode(self, schedule: Schedule, batch: int) -> None:
        x = self._rows(batch * schedule.frames, schedule.tokens_per_frame)
        merge.layer_norm(x, self.weight, self.bias)
        delta: Tensor | None = None
        size: Tensor | None = None
        log_size: Tensor | None = None
        for block in schedule.blocks:
            if block.factor > 1:
                x, size, log_size = self._join(block, x, delta, size, log_size)
            elif delta is None:
                merge.layer_norm(x, self.weight, self.bias)
            else:
                x, _ = merge.add_norm(x, delta, self.weight, self.bias)
            x, size, log_size = self._block(block, x, size, log_size)
            delta = torch.empty_like(x)
        assert delta is not None, "a schedule has blocks"
        n_cls = schedule.blocks[-1].n_cls
        merge.add_norm(x[:, :n_cls], delta[:, :n_cls], self.weight, self.bias)

    def _join(
        self, block: BlockSchedule, x: Tensor, delta: Tensor | None, size: Tensor | None, log_size: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        factor, n_cls, r = block.factor, block.n_cls, block.r_cross
        if r == 0:
            clips, tokens = len(x) // factor, x.shape[1] * factor
            x = self._rows(clips, tokens)
            merge.layer_norm(x, self.weight, self.bias)
            joined = None if size is None else size.view(clips, tokens)
            return x, joined, joined
        position = self._rows(block.clips_in) if self.clip_position else None
        assign = match.match_clips(x, delta, factor, n_cls, r)
        x, _, size, log_size = merge.merge_norm(
            x, delta, size, assign, position, self.weight, self.bias, factor, n_cls, r
        )
        return x, size, log_size

    def _block(
        self, block: BlockSchedule, x: Tensor, size: Tensor | None, log_size: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        heads = self.width // HEAD_WIDTH
        qkv = torch.empty(*x.shape[:2], 3 * self.width, dtype=self.dtype, device="meta")
        bias = log_size if self.size_bias else None
        if block.r_intra == 0:
            delta = attention.attention(qkv, bias, heads)
            x, _ = merge.add_norm(x, delta, self.weight, self.bias)
            return x, size, log_size
        delta, assign = attention.attention_match(qkv, bias, heads, block.n_cls, block.r_intra)
        x, _, size, log_size = merge.merge_norm(
            x, delta, size, assign, None, self.weight, self.bias, 1, block.n_cls, block.r_intra
        )
        return x, size, log_size
