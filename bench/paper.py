"""The paper's GFLOPs, counted anew from its settings (spec section 9).

A `Claim` is a figure the paper prints and the settings it belongs to. Its own number is never typed in: it
comes from `build_schedule` and `complexity`, the same that every export uses.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tempme_export.bench.methods.schedules import evit_schedule, within_frames
from tempme_export.encoder.backbone import Backbone, open_clip_backbone
from tempme_export.encoder.complexity import Complexity, complexity
from tempme_export.encoder.profile import FROM_CHECKPOINT, Profile
from tempme_export.encoder.schedule import MergePolicy, Schedule, build_schedule
from tempme_export.errors import ParityError, ProfileError

TOLERANCE = 0.1
"""Largest difference, in GMACs, of a row that claims to reproduce the paper: the paper prints one decimal."""

ClaimSchedule = Callable[["Claim", Backbone], Schedule]
Counter = Callable[[Schedule, Backbone], Complexity]
Encoder = Literal["original", "evit", "adapters", "prompts", "key prompts"]


def merge_schedule(claim: "Claim", backbone: Backbone) -> Schedule:
    """Token counts under the claim's merge policy."""
    return build_schedule(
        claim.merge,
        layers=backbone.layers,
        frames=claim.frames,
        tokens_per_frame=backbone.tokens_per_frame,
    )


def evit_claim_schedule(claim: "Claim", backbone: Backbone) -> Schedule:
    """Token counts of EViT on the claim's frames."""
    return evit_schedule(claim.frames, backbone)


def convolution_of_12_frames(schedule: Schedule, backbone: Backbone) -> Complexity:
    """Count `schedule` with the patch convolution of 12 frames only."""
    counted = complexity(schedule, backbone)
    return dataclasses.replace(counted, patch_convolution=counted.patch_convolution * 12 // schedule.frames)


@dataclass(frozen=True)
class Claim:
    """A figure that the paper prints, and the settings it belongs to.

    printed         the paper's GFLOPs (multiply-accumulates per video, in 1e9); None where it prints none
    printed_tokens  clips and tokens per clip after the last block, where the paper prints them
    settings        the settings in words, where the merge policy does not say them
    reproduces      whether the settings are claimed to give the printed figure
    explanation     a count that gives the printed figure although the settings do not
    reason          why a row does not reproduce; may name {ours} and {explained}
    encoder         what computes it, to be counted besides; None where the paper does not say enough to build one
    """

    label: str
    source: str
    backbone: str
    frames: int
    merge: MergePolicy
    printed: float | None
    printed_tokens: tuple[int, int] | None = None
    schedule: ClaimSchedule = merge_schedule
    count: Counter = complexity
    settings: str = ""
    reproduces: bool = True
    explanation: Counter | None = None
    reason: str = ""
    encoder: Encoder | None = "original"


def _tempme(
    image_r: int, layers: tuple[int, ...], factors: tuple[int, ...], remain_cross: int, remain_intra: int
) -> MergePolicy:
    """The policy with the paper's R_C and R_I, which are percentages that remain. Layers are zero-based."""
    return MergePolicy(image_r, layers, factors, 100 - remain_cross, 100 - remain_intra)


def _b32(layers: tuple[int, ...], factors: tuple[int, ...]) -> MergePolicy:
    return _tempme(2, layers, factors, 70, 90)


_B32, _B16 = "ViT-B-32-quickgelu", "ViT-B-16-quickgelu"
_NONE = MergePolicy(0, (), (), 0, 0)
_TOME_B32 = MergePolicy(2, (), (), 0, 0)
_TOME_B16 = MergePolicy(10, (), (), 0, 0)
_TEMPME_B32 = _b32((8, 9, 10), (2, 2, 3))
_TEMPME_B16 = _tempme(10, (8, 9, 10), (2, 2, 3), 60, 80)
_F8 = "the settings give {ours:.1f}, a third less than the 34.8 of 12 frames, as the text beside the table says"
_F64 = "the printed figure charges the patch convolution for 12 frames only: charged so, {explained:.2f}"


def _f64(label: str, merge: MergePolicy, printed: float, printed_tokens: tuple[int, int]) -> Claim:
    return Claim(
        label,
        "Table 1",
        _B32,
        64,
        merge,
        printed,
        printed_tokens,
        reproduces=False,
        explanation=convolution_of_12_frames,
        reason=_F64,
    )


CLAIMS: tuple[Claim, ...] = (
    Claim("no merging B/32", "Table 1", _B32, 12, _NONE, 53.0, (12, 50)),
    Claim("no merging B/16", "Table 1", _B16, 12, _NONE, 211.3, (12, 197)),
    Claim("ToMe B/32", "Table 1", _B32, 12, _TOME_B32, 40.2, (12, 26)),
    Claim("ToMe B/16", "Table 1", _B16, 12, _TOME_B16, 144.4, (12, 77)),
    Claim("TempMe B/32", "Table 1", _B32, 12, _TEMPME_B32, 34.8, (1, 97)),
    Claim("TempMe B/16", "Table 1", _B16, 12, _TEMPME_B16, 121.4, (1, 127)),
    Claim(
        "EViT B/32",
        "Table 2",
        _B32,
        12,
        _NONE,
        37.2,
        schedule=evit_claim_schedule,
        settings="keep 70 % of the patches at blocks 4, 7, 10, fuse the rest",
        encoder="evit",
    ),
    Claim(
        "joined, nothing merged",
        "Table 9",
        _B32,
        12,
        _tempme(0, (8, 9, 10), (2, 2, 3), 100, 100),
        54.3,
    ),
    Claim(
        "token reduction only",
        "Table 9",
        _B32,
        12,
        _TEMPME_B32,
        34.7,
        count=within_frames,
        settings="the tokens of TempMe, attention within each frame",
        encoder=None,
    ),
    Claim("12-9->4-10->1", "Table 10", _B32, 12, _b32((8, 9), (3, 4)), 35.4),
    Claim("12-9->1", "Table 10", _B32, 12, _b32((8,), (12,)), 37.0),
    Claim("12-9->6-10->3", "Table 10", _B32, 12, _b32((8, 9), (2, 2)), 35.4),
    Claim("12-9->4", "Table 10", _B32, 12, _b32((8,), (3,)), 36.8),
    Claim("clip layers 7, 9, 11", "Table 10", _B32, 12, _b32((6, 8, 10), (2, 2, 3)), 31.9),
    Claim("clip layers 4, 7, 10", "Table 10", _B32, 12, _b32((3, 6, 9), (2, 2, 3)), 25.8),
    Claim("clip layers 1, 5, 9", "Table 10", _B32, 12, _b32((0, 4, 8), (2, 2, 3)), 18.1),
    Claim("no merging B/32", "Table 16", _B32, 8, _NONE, 35.4),
    Claim(
        "TempMe B/32",
        "Table 16",
        _B32,
        8,
        _b32((8, 9, 10), (2, 2, 2)),
        25.0,
        reproduces=False,
        reason=_F8,
    ),
    _f64("no merging B/32", _NONE, 276.7, (64, 50)),
    _f64("ToMe B/32", _TOME_B32, 208.5, (64, 26)),
    _f64("TempMe B/32", _b32((8, 9, 10), (4, 4, 4)), 180.3, (1, 500)),
)


@dataclass(frozen=True, kw_only=True)
class PaperRow(Claim):
    """A claim, its settings and reason in words, beside its count. Tokens are per clip after the last block."""

    clips: int
    tokens: int
    complexity: Complexity

    @property
    def difference(self) -> float | None:
        """Our GMACs minus the printed figure."""
        return None if self.printed is None else self.complexity.gmacs - self.printed

    @property
    def holds(self) -> bool:
        """True where count and tokens agree with what the paper prints."""
        close = self.difference is None or abs(self.difference) <= TOLERANCE
        return close and self.printed_tokens in (None, (self.clips, self.tokens))

    def to_dict(self) -> dict[str, Any]:
        """The row as a JSON object; `gmacs` and `parts` in the paper's convention, `gflops` true ones."""
        return {
            "label": self.label,
            "source": self.source,
            "frames": self.frames,
            "settings": self.settings,
            "clips": self.clips,
            "tokens_per_clip": self.tokens,
            "gmacs": self.complexity.gmacs,
            "gflops": self.complexity.gflops,
            "paper_gflops": self.printed,
            "paper_tokens": self.printed_tokens,
            "difference": self.difference,
            "reproduces": None if self.printed is None else self.reproduces,
            "reason": self.reason,
            "parts": {part: count / 1e9 for part, count in dataclasses.asdict(self.complexity).items()},
        }


def times(tokens: tuple[int, int] | None) -> str:
    """Clips and tokens per clip as the paper writes them."""
    return "" if tokens is None else f"{tokens[0]} x {tokens[1]}"


def in_words(merge: MergePolicy, frames: int) -> str:
    """A merge policy in the paper's notation: layers from 1, percentages that remain."""
    words = [f"r {merge.image_r}" + ("" if merge.clip_layers else " in every block")] if merge.image_r else []
    if merge.clip_layers:
        clips, steps = frames, str(frames)
        for layer, factor in zip(merge.clip_layers, merge.clip_factors, strict=True):
            clips //= factor
            steps += f"-{layer + 1}->{clips}"
        words += [steps, f"R_C {100 - merge.cross_percent:g} %", f"R_I {100 - merge.intra_percent:g} %"]
    return ", ".join(words) or "nothing merges"


def count(claim: Claim) -> PaperRow:
    """Count one claim."""
    backbone = open_clip_backbone(claim.backbone)
    schedule = claim.schedule(claim, backbone)
    counted = claim.count(schedule, backbone)
    explained = claim.explanation(schedule, backbone).gmacs if claim.explanation else None
    claimed = {
        **vars(claim),
        "settings": claim.settings or in_words(claim.merge, claim.frames),
        "reason": claim.reason.format(ours=counted.gmacs, explained=explained),
    }
    return PaperRow(**claimed, clips=schedule.final_clips, tokens=schedule.final_tokens, complexity=counted)


def profile_claim(profile: Profile) -> Claim:
    """The claim of a profile, which prints nothing. Raises ProfileError if its sizes are a checkpoint's."""
    if profile.backbone == FROM_CHECKPOINT:
        raise ProfileError(
            f"profile {profile.name} takes its sizes from a checkpoint, so its operations cannot be counted "
            "without one. Name an open_clip model in its `backbone`."
        )
    return Claim(profile.name, "profile", profile.backbone, profile.frames, profile.merge, None)


def check(rows: Iterable[PaperRow]) -> None:
    """Raise ParityError if a row that claims to reproduce the paper does not."""
    wrong = [
        f"{row.label} ({row.source}): {row.complexity.gmacs:.2f} GMACs and {row.clips} x {row.tokens} tokens "
        f"against {row.printed} and {times(row.printed_tokens) or 'no tokens'} in print"
        for row in rows
        if row.reproduces and not row.holds
    ]
    if wrong:
        raise ParityError(
            f"{len(wrong)} row(s) that claim to reproduce the paper differ from it, by more than {TOLERANCE} "
            f"GMACs or in tokens: {'; '.join(wrong)}."
        )
