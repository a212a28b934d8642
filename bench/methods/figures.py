"""Figures that the paper prints for a method: Tables 1, 2, 4, 9, 10 and 16."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tempme_export.bench import paper
from tempme_export.bench.methods.catalogue import Method

_B32, _B16 = "ViT-B-32-quickgelu", "ViT-B-16-quickgelu"


@dataclass(frozen=True)
class PaperFigures:
    """Figures in print; None where the paper prints none.

    gflops        the paper's GFLOPs: multiply-accumulates per video, in 1e9
    tokens        clips and tokens per clip after the last block
    videos_per_s  on an A100, batch size and precision not said
    recalls       text to video, in %: recall at 1, and R-Sum, which adds recall at 1, 5 and 10
    claim         the settings they belong to, where the paper gives all of them
    """

    gflops: float | None
    tokens: tuple[int, int] | None
    videos_per_s: float | None
    claim: paper.Claim | None = None
    recalls: tuple[float, float] | None = None


# Method, backbone and frames -> GFLOPs, tokens: methods whose settings the paper does not give.
_UNCLAIMED: Mapping[tuple[str, str, int], tuple[float, tuple[int, int] | None]] = MappingProxyType(
    {
        ("diffrate", _B32, 12): (36.8, (12, 20)),
        ("diffrate", _B32, 64): (190.1, (64, 20)),
        ("diffrate", _B16, 12): (138.5, (12, 49)),
        ("sta", _B32, 12): (35.7, None),
        ("testa", _B32, 12): (40.6, None),
    }
)
# Videos per second of Table 4.
_SPEEDS: Mapping[tuple[str, str, int], float] = MappingProxyType(
    {
        ("none", _B16, 12): 30.6,
        ("diffrate", _B16, 12): 40.6,
        ("tome", _B16, 12): 40.8,
        ("tempme", _B16, 12): 45.1,
    }
)
_RECALLS: Mapping[tuple[str, str, int], tuple[float, float]] = MappingProxyType(
    {
        ("none", _B32, 12): (43.7, 193.0),
        ("diffrate", _B32, 12): (41.5, 189.9),
        ("tome", _B32, 12): (42.9, 191.4),
        ("tempme", _B32, 12): (46.1, 198.6),
        ("none", _B32, 64): (38.7, 191.5),
        ("diffrate", _B32, 64): (38.0, 188.7),
        ("tome", _B32, 64): (38.6, 189.6),
        ("tempme", _B32, 64): (44.9, 205.6),
        ("none", _B16, 12): (47.3, 201.4),
        ("diffrate", _B16, 12): (47.3, 202.4),
        ("tome", _B16, 12): (46.2, 200.6),
        ("tempme", _B16, 12): (49.0, 206.7),
    }
)


def paper_figures(method: Method, backbone_name: str, frames: int) -> PaperFigures | None:
    """Figures of the paper for a method on a backbone (an open_clip name); None where it prints nothing."""
    key = (method.key, backbone_name, frames)
    speed, recalls = _SPEEDS.get(key), _RECALLS.get(key)
    if key in _UNCLAIMED:
        return PaperFigures(*_UNCLAIMED[key], speed, recalls=recalls)
    for claim in paper.CLAIMS:
        if claim.label in method.labels and (claim.backbone, claim.frames) == (backbone_name, frames):
            return PaperFigures(claim.printed, claim.printed_tokens, speed, claim, recalls)
    return None
