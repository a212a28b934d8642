"""A sweep over frames or batch sizes as a whole: fitted cost curves, saturation batches, the profiles it needs."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tempme_export.bench.core.bootstrap import LEVEL, Floats, student_t
from tempme_export.bench.core.row import Row
from tempme_export.encoder.profile import Expect, Profile, load_profile, shipped_profiles
from tempme_export.errors import InputError, ProfileError

WITHIN_PERCENT = 5.0
"""Saturated is within so much of the best of the sweep: what the timing protocol takes for equal (`agreement`)."""

FEWEST_POINTS, FEWEST_FOR_QUADRATIC = 3, 5

_AGAINST_FRAMES = ("p50_ms", "encode_mb", "gmacs")
_AGAINST_BATCH = ("p50_ms", "encode_mb")
_SHARED = ("candidate", "backend", "method", "precision", "device")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A polynomial through points, by least squares.

    form          linear: a + b x; quadratic: a + b x + c x^2
    coefficients  a, b and c in the quantity's unit. Against batch, a is what a call costs, b what a video does
    low, high     their 95 % t intervals
    r2            share of the variance that the curve explains; None where the quantity does not vary
    press         root mean square of what the curve misses a point by that it was fitted without
    x, y          the points, x rising
    """

    form: Literal["linear", "quadratic"]
    coefficients: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    r2: float | None
    press: float
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Fit(Curve):
    """The curve through one candidate's sweep.

    family    the profile's name without its frame count
    frames    of every point; None where they are what varies, and `batch` likewise
    quantity  the column that is fitted: p50_ms, encode_mb or gmacs
    against   the column it is fitted against: frames or batch
    """

    candidate: str
    backend: str | None
    method: str | None
    family: str
    precision: str | None
    device: str | None
    frames: int | None
    batch: int | None
    quantity: str
    against: str


@dataclass(frozen=True)
class Saturation:
    """The saturation batch of one candidate: a larger one pays no more.

    batch           the smallest whose videos/s is within `within_percent` of the best in the sweep
    videos_per_s    there
    best_batch, best_videos_per_s  the fastest of the sweep
    at_edge         whether it is the largest batch measured: a larger one may be faster still
    """

    candidate: str
    backend: str | None
    method: str | None
    profile: str | None
    frames: int
    precision: str | None
    device: str | None
    batch: int
    videos_per_s: float
    best_batch: int
    best_videos_per_s: float
    at_edge: bool
    within_percent: float = WITHIN_PERCENT


def fits(rows: Sequence[Row]) -> list[Fit]:
    """Fit cost against frames and against batch size, for every candidate with 3 or more of them.

    rows  those whose quantity is None are left out

    Least squares of a + b x; against 5 or more frame counts also a + b x + c x^2, which is taken where it predicts
    points better that it was fitted without (leave-one-out, PRESS, Allen 1974; AICc is undefined for the quadratic on
    five points). Intervals of the coefficients are Student's t of least squares: so few points cannot be resampled.
    """
    found = []
    for against, fixed, quantities in (
        ("frames", "batch", _AGAINST_FRAMES),
        ("batch", "frames", _AGAINST_BATCH),
    ):
        keys = (*_SHARED, "family", fixed)
        for quantity in quantities:
            measured = [row for row in rows if getattr(row, quantity) is not None]
            for own in _groups(measured, keys):
                if len({getattr(row, against) for row in own}) >= FEWEST_POINTS:
                    shared: dict[str, Any] = {against: None, **dict(zip(keys, _values(own[0], keys), strict=True))}
                    curve = _best(own, quantity, against)
                    found.append(Fit(**vars(curve), **shared, quantity=quantity, against=against))
    return found


def family(profile: str, frames: int) -> str:
    """The profile's name without its frame count: vit-b-32-12f-none -> vit-b-32-none."""
    return "-".join(part for part in profile.split("-") if part != f"{frames}f") or profile


def _family(row: Row) -> str:
    return family(row.profile or "", row.frames)


def _values(row: Row, keys: Sequence[str]) -> tuple[Any, ...]:
    return tuple(_family(row) if key == "family" else getattr(row, key) for key in keys)


def _groups(rows: Iterable[Row], keys: Sequence[str]) -> Iterator[list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_values(row, keys), []).append(row)
    yield from groups.values()


def _best(rows: Sequence[Row], quantity: str, against: str) -> Curve:
    points = sorted((float(getattr(row, against)), float(getattr(row, quantity))) for row in rows)
    x, y = np.array(points).T
    line = _curve(x, y, 1)
    rounding = 1e-9 * float(np.abs(y).max())
    if against == "batch" or len(np.unique(x)) < FEWEST_FOR_QUADRATIC or line.press <= rounding:
        return line
    return min(line, _curve(x, y, 2), key=lambda one: one.press)


def _curve(x: Floats, y: Floats, degree: int) -> Curve:
    """The polynomial of `degree` through points x, y: [points] float64."""
    scale = float(np.abs(x).max())  # powers of x itself are badly conditioned
    powers = (x[:, None] / scale) ** np.arange(degree + 1)
    q, r = np.linalg.qr(powers)
    unscale = scale ** -np.arange(degree + 1.0)
    coefficients = np.linalg.solve(r, q.T @ y)
    missed = y - powers @ coefficients
    leverage = np.sum(q**2, axis=1)
    freedom = len(x) - degree - 1
    inverse = np.linalg.inv(r)
    variance = float(missed @ missed) / freedom
    half = student_t(LEVEL, freedom) * np.sqrt(variance * np.sum(inverse**2, axis=1))
    spread = float(np.sum((y - y.mean()) ** 2))
    return Curve(
        form="linear" if degree == 1 else "quadratic",
        coefficients=tuple((coefficients * unscale).tolist()),
        low=tuple(((coefficients - half) * unscale).tolist()),
        high=tuple(((coefficients + half) * unscale).tolist()),
        r2=1 - float(missed @ missed) / spread if spread > 0 else None,
        press=float(np.sqrt(np.mean((missed / (1 - leverage)) ** 2))),
        x=tuple(x.tolist()),
        y=tuple(y.tolist()),
    )


def saturation(rows: Sequence[Row]) -> Saturation:
    """The smallest batch of one candidate's sweep whose videos/s is within `WITHIN_PERCENT` of the sweep's best.

    The rule is this project's: beyond that batch, latency and memory go on growing with the batch, while videos/s gains
    less than the timing protocol can tell from nothing. It needs no model of the curve, unlike the bend of Kneedle
    (Satopaa et al. 2011), and is not moved by batches that are added above. Raises InputError for no rows, and for rows
    of more than one sweep.
    """
    of_sweep = (*_SHARED, "profile", "frames")
    sweeps = {_values(row, of_sweep) for row in rows}
    if len(sweeps) != 1:
        raise InputError(f"found rows of {len(sweeps)} sweeps over batch sizes, expected those of one candidate.")
    best = max(rows, key=lambda row: (row.videos_per_s, -row.batch))
    near = [row for row in rows if row.videos_per_s >= best.videos_per_s * (1 - WITHIN_PERCENT / 100)]
    chosen = min(near, key=lambda row: row.batch)
    shared: dict[str, Any] = dict(zip(of_sweep, _values(chosen, of_sweep), strict=True))
    return Saturation(
        **shared,
        batch=chosen.batch,
        videos_per_s=chosen.videos_per_s,
        best_batch=best.batch,
        best_videos_per_s=best.videos_per_s,
        at_edge=chosen.batch == max(row.batch for row in rows),
    )


def saturations(rows: Sequence[Row]) -> list[Saturation]:
    """Saturation batches of every candidate, profile and frame count that was measured at two or more batch sizes."""
    sweeps = _groups(rows, (*_SHARED, "profile", "frames"))
    return [saturation(own) for own in sweeps if len({row.batch for row in own}) >= 2]


def even_factors(frames: int, stages: int) -> tuple[int, ...] | None:
    """`stages` whole factors from 2 up, rising, whose product is `frames`: those of smallest sum, the most equal ones.

    None where there are none. Gives the paper's 2-2-2, 2-2-3 and 4-4-4 for 8, 12 and 64 frames.
    """
    return min(_splits(frames, stages, 2), key=sum, default=None)


def _splits(product: int, stages: int, smallest: int) -> Iterator[tuple[int, ...]]:
    if stages == 1:
        if product >= smallest:
            yield (product,)
        return
    for first in range(smallest, product + 1):
        if first**stages > product:
            return
        if product % first == 0:
            for rest in _splits(product // first, stages - 1, first):
                yield (first, *rest)


def profile_for_frames(base: Profile, frames: int) -> Profile:
    """`base` with another frame count, for a sweep.

    A shipped profile of the same backbone and merging is taken as it is. Else the clips are joined in the same blocks
    by `even_factors`, so that all end as one; the text length and the batch range stay. A profile that joins no clips
    fits any frame count. Learned clip positions belong to one frame count: weights do not move along.

    Raises ProfileError where the count does not split into as many factors as clips are joined in, and names counts
    near it that do.
    """
    if frames < 1:
        raise ProfileError(f"found {frames} frames, expected 1 or more.")
    if frames == base.frames:
        return base
    for name in shipped_profiles():
        shipped = load_profile(name)
        merge = dataclasses.replace(shipped.merge, clip_factors=base.merge.clip_factors)
        same_blocks = len(shipped.merge.clip_factors) == len(base.merge.clip_factors)
        if (shipped.backbone, shipped.frames) == (base.backbone, frames) and same_blocks and merge == base.merge:
            return shipped
    stages = len(base.merge.clip_layers)
    factors = even_factors(frames, stages) if stages else ()
    if factors is None:
        raise ProfileError(
            f"{frames} frames cannot be joined into one clip in {stages} blocks, as profile {base.name} does: that "
            f"takes {stages} whole factors from 2 up. Near it work: {', '.join(map(str, _near(frames, stages)))}."
        )
    return dataclasses.replace(
        base,
        name=_renamed(base, frames),
        frames=frames,
        merge=dataclasses.replace(base.merge, clip_factors=factors),
        expect=Expect(),
    )


def _near(frames: int, stages: int) -> list[int]:
    """The nearest counts that split: below, if there is one, and above."""
    splits = [n for n in range(2**stages, max(frames, 2**stages) * 2 + 1) if even_factors(n, stages) is not None]
    return [*[n for n in splits if n < frames][-1:], *[n for n in splits if n > frames][:2]]


def _renamed(base: Profile, frames: int) -> str:
    """vit-b-32-12f-none -> vit-b-32-16f-none; a name without its frame count gets the new one at its end."""
    name, replaced = re.subn(rf"(?<![^-]){base.frames}f(?![^-])", f"{frames}f", base.name, count=1)
    return name if replaced else f"{base.name}-{frames}f"
