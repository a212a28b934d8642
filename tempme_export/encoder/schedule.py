"""Profile -> token counts of every block: pure integers, computed once and handed down (spec sections 3 and 8)."""

from dataclasses import dataclass
from typing import Literal

from tempme_export.errors import ProfileError


@dataclass(frozen=True)
class MergePolicy:
    """Merges of each block, by rule (the `[merge]` table of a profile).

    `cross_percent` and `intra_percent` are the shares MERGED: 100 - R_C and 100 - R_I of the paper.
    """

    image_r: int
    clip_layers: tuple[int, ...]
    clip_factors: tuple[int, ...]
    cross_percent: float
    intra_percent: float
    size_bias: bool = True
    clip_position: bool = True


@dataclass(frozen=True)
class BlockSchedule:
    """One block, counted per video (`clips`) and per clip (everything else).

    `factor` adjacent clips are joined at the start of the block (1: none). `n_cls` class tokens lead
    each clip from there on. `tokens_in` counts a clip as it enters the block, before joining.
    """

    index: int
    factor: int
    clips: int
    n_cls: int
    tokens_in: int
    r_cross: int
    tokens_attention: int
    r_intra: int
    tokens_mlp: int

    @property
    def clips_in(self) -> int:
        """Clips per video that enter the block."""
        return self.clips * self.factor


MergeKind = Literal["cross", "intra"]


@dataclass(frozen=True)
class ScheduledMerge:
    """One merge of the schedule; `index` counts them in execution order."""

    index: int
    block: int
    kind: MergeKind
    n_cls: int
    r: int

    @property
    def assign_name(self) -> str:
        """Name of the assignment inside every exported graph."""
        return f"assign_{self.index:02d}"

    @property
    def tokens_name(self) -> str:
        """Name of the merged tokens inside every exported graph."""
        return f"tokens_{self.index:02d}"


@dataclass(frozen=True)
class Schedule:
    """The whole encoder's counts. `tokens_per_frame` is P of the spec (class token included)."""

    frames: int
    tokens_per_frame: int
    blocks: tuple[BlockSchedule, ...]

    @property
    def merges(self) -> tuple[ScheduledMerge, ...]:
        """Every merge, in execution order."""
        steps: list[tuple[BlockSchedule, MergeKind, int]] = []
        for block in self.blocks:
            steps += [(block, "cross", block.r_cross), (block, "intra", block.r_intra)]
        real = [step for step in steps if step[2] > 0]
        return tuple(ScheduledMerge(k, b.index, kind, b.n_cls, r) for k, (b, kind, r) in enumerate(real))

    @property
    def final_tokens(self) -> int:
        """Tokens per clip after the last block: the number the paper reports."""
        return self.blocks[-1].tokens_mlp

    @property
    def final_clips(self) -> int:
        """Clips per video after the last block."""
        return self.blocks[-1].clips


def _percent_of(n: int, percent: float) -> int:
    """int(n * (percent / 100)) in IEEE doubles, as the original rounds; not n * percent // 100."""
    return int(n * (percent / 100))


def count_a(tokens: int, n_cls: int) -> int:
    """Size of set A: patch tokens at even absolute position (spec section 4)."""
    return (tokens + 1) // 2 - (n_cls + 1) // 2


def _check_policy(merge: MergePolicy, layers: int, frames: int) -> None:
    if len(merge.clip_layers) != len(merge.clip_factors):
        raise ProfileError(
            f"merge.clip_layers has {len(merge.clip_layers)} entries and merge.clip_factors "
            f"{len(merge.clip_factors)}; each clip layer needs its factor."
        )
    if list(merge.clip_layers) != sorted(set(merge.clip_layers)):
        raise ProfileError(f"merge.clip_layers must rise without repeats, found {list(merge.clip_layers)}.")
    beyond = [i for i in merge.clip_layers if i >= layers]
    if beyond:
        raise ProfileError(f"merge.clip_layers names {beyond}, but the last block is {layers - 1} (zero-based).")
    clips = frames
    for layer, factor in zip(merge.clip_layers, merge.clip_factors, strict=True):
        if clips % factor:
            raise ProfileError(
                f"merge.clip_factors: {clips} clips reach block {layer} and cannot be joined by {factor}; "
                "each factor must divide the clips that are left."
            )
        clips //= factor


def build_schedule(merge: MergePolicy, *, layers: int, frames: int, tokens_per_frame: int) -> Schedule:
    """Count clips, tokens and merges of every block.

    merge             the policy
    layers            blocks of the vision tower
    frames            frames per video
    tokens_per_frame  1 + patches per frame

    Raises ProfileError when the policy does not fit these sizes: layers out of range, factors that do
    not divide the clips, more merges per frame than set A has tokens.
    """
    _check_policy(merge, layers, frames)
    factors = dict(zip(merge.clip_layers, merge.clip_factors, strict=True))
    first_clip_layer = min(merge.clip_layers, default=layers)
    clips, tokens, n_cls = frames, tokens_per_frame, 1
    blocks = []
    for index in range(layers):
        factor = factors.get(index, 1)
        tokens_in, r_cross = tokens, 0
        if factor > 1:
            patches = (tokens - n_cls) * factor
            r_cross = min(_percent_of(tokens * factor, merge.cross_percent), patches // 2)
            clips, n_cls = clips // factor, n_cls * factor
        attention = tokens_in * factor - r_cross
        if index < first_clip_layer:
            r_intra = merge.image_r
            available = count_a(attention, n_cls)
            if r_intra > available:
                raise ProfileError(
                    f"merge.image_r = {r_intra} merges more tokens in block {index} than there are to merge: "
                    f"{attention} tokens, {available} of them in set A. Use {available} or less."
                )
        else:
            r_intra = min(_percent_of(attention, merge.intra_percent), (attention - n_cls) // 2)
        tokens = attention - r_intra
        blocks.append(BlockSchedule(index, factor, clips, n_cls, tokens_in, r_cross, attention, r_intra, tokens))
    return Schedule(frames, tokens_per_frame, tuple(blocks))
