"""Accuracies that the paper prints, to stand beside its figures and ours (Tables 1, 2 and 4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

B32, B16 = "ViT-B-32-quickgelu", "ViT-B-16-quickgelu"
METHODS = ("none", "diffrate", "tome", "tempme")
"""Rows of Tables 1 and 4 that merge tokens or nothing, by our keys."""


@dataclass(frozen=True)
class Setting:
    """Columns of Table 1: a backbone, frames, and the videos that its accuracies are of."""

    title: str
    backbone: str
    frames: int
    videos: str


TABLE_1 = (
    Setting("ViT-B/32, 12 frames", B32, 12, "MSR-VTT"),
    Setting("ViT-B/32, 64 frames", B32, 64, "ActivityNet"),
    Setting("ViT-B/16, 12 frames", B16, 12, "MSR-VTT"),
)
TABLE_4 = TABLE_1[2]


@dataclass(frozen=True)
class Accuracy:
    """Text to video, in %: recall at 1, and R-Sum, which adds recall at 1, 5 and 10."""

    r1: float
    r_sum: float


ACCURACIES: Mapping[tuple[str, str, int], Accuracy] = MappingProxyType(
    {
        ("none", B32, 12): Accuracy(43.7, 193.0),
        ("diffrate", B32, 12): Accuracy(41.5, 189.9),
        ("tome", B32, 12): Accuracy(42.9, 191.4),
        ("tempme", B32, 12): Accuracy(46.1, 198.6),
        ("none", B32, 64): Accuracy(38.7, 191.5),
        ("diffrate", B32, 64): Accuracy(38.0, 188.7),
        ("tome", B32, 64): Accuracy(38.6, 189.6),
        ("tempme", B32, 64): Accuracy(44.9, 205.6),
        ("none", B16, 12): Accuracy(47.3, 201.4),
        ("diffrate", B16, 12): Accuracy(47.3, 202.4),
        ("tome", B16, 12): Accuracy(46.2, 200.6),
        ("tempme", B16, 12): Accuracy(49.0, 206.7),
    }
)
"""By method, backbone (an open_clip name) and frames."""
