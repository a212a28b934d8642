"""A measurement's settings, checked before anything is measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from tempme_export.bench.core.protocol import Protocol
from tempme_export.encoder.profile import Profile
from tempme_export.errors import UsageError


@dataclass(frozen=True)
class RunSettings:
    """Settings of a measurement. The seed of the videos is the protocol's.

    batches          videos per call, rising, each measured on its own
    least_gain       leave out larger batches once two in a row are not so many times as fast; 0: measure all
    slowdowns        injected: name of an entry and percent
    command          what the user typed, for the record
    on_device        as the GPU check measures: videos lie on the device and its events are the clock, a large matrix
                     product stands beside, decisions are compared, and who computes something else is timed and says
                     so. Held against are the original's embeddings in float32 throughout
    """

    batches: tuple[int, ...]
    device: str
    protocol: Protocol
    command: str
    least_gain: float = 0.0
    slowdowns: tuple[tuple[str, float], ...] = ()
    on_device: bool = False


def check_batches(profile: Profile, batches: Sequence[int]) -> None:
    """Raise UsageError for a batch size outside the profile's range."""
    limits = profile.batch
    outside = [batch for batch in batches if not limits.min <= batch <= limits.max]
    if outside:
        raise UsageError(
            f"--batches {', '.join(map(str, outside))}: profile {profile.name} is made for "
            f"{limits.min} to {limits.max} videos per call (shapes.batch)."
        )


def check_slowdowns(slowdowns: Sequence[tuple[str, float]], names: Sequence[str]) -> None:
    """Raise UsageError for an injected slowdown of a candidate that is not measured."""
    unknown = [name for name, _ in slowdowns if name not in names]
    if unknown:
        raise UsageError(f"--slow-down: found {', '.join(unknown)}, expected one of {', '.join(names)}.")


def sweep(largest: int, smallest: int = 1) -> tuple[int, ...]:
    """Batch sizes that double from the smallest on, and the largest."""
    sizes: list[int] = []
    batch = smallest
    while batch < largest:
        sizes.append(batch)
        batch *= 2
    return (*sizes, largest)
