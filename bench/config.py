"""A measurement as it was asked for on the command line."""

from dataclasses import dataclass
from pathlib import Path

from tempme_export.encoder.profile import Profile, load_profile, shipped_profiles
from tempme_export.errors import ProfileError, UsageError

DEFAULT_FRAMES = 12


@dataclass(frozen=True)
class BenchmarkConfig:
    """A measurement as it was asked for; None where the default is meant."""

    source: str | None
    profile: str | None
    activation: str | None
    frames: tuple[int, ...] | None
    backends: tuple[str, ...] | None
    methods: tuple[str, ...] | None
    mode: str
    batches: tuple[int, ...] | None
    videos: tuple[Path, ...]
    allow_damaged: bool
    device: str
    seconds: float
    budget: float
    samples: int
    seed: int
    slowdowns: tuple[tuple[str, float], ...]
    command: str


def chosen_profile(profile: str | None, frames: int | None) -> Profile:
    """The profile asked for by name, path or frame count. Raises ProfileError where there is none."""
    if profile is None:
        name = f"vit-b-32-{DEFAULT_FRAMES if frames is None else frames}f"
        if name not in shipped_profiles():
            raise ProfileError(
                f"no shipped profile has {frames} frames on ViT-B/32. Write one and give it with --profile, "
                f"or choose of: {', '.join(shipped_profiles())}."
            )
        return load_profile(name)
    loaded = load_profile(profile)
    if frames not in (None, loaded.frames):
        raise UsageError(f"profile {loaded.name} has {loaded.frames} frames, --frames says {frames}. Leave out one.")
    return loaded
