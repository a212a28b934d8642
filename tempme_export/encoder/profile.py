"""Profiles: what to build, as strict TOML. Unknown or missing keys are errors."""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempme_export.encoder.backbone import Backbone, open_clip_backbone
from tempme_export.encoder.complexity import complexity
from tempme_export.encoder.schedule import MergePolicy, Schedule, build_schedule
from tempme_export.errors import ProfileError, did_you_mean

FROM_CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class BatchRange:
    """Videos per call: smallest, usual and largest; also TensorRT's optimisation profile."""

    min: int
    opt: int
    max: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Few sizes for what is set up for one each: smallest, usual, largest and the powers of two between."""
        powers = (2**exponent for exponent in range(self.max.bit_length()))
        return tuple(sorted({self.min, self.opt, self.max, *(one for one in powers if self.min < one < self.max)}))


@dataclass(frozen=True)
class Expect:
    """Numbers a profile claims; None where it claims nothing."""

    final_tokens: int | None = None
    gmacs: float | None = None


@dataclass(frozen=True)
class Profile:
    """Everything about a model that its checkpoint's shapes cannot tell, and the batch range to build for."""

    name: str
    backbone: str
    frames: int
    text_length: int
    merge: MergePolicy
    batch: BatchRange
    expect: Expect = Expect()

    def schedule(self, backbone: Backbone) -> Schedule:
        """Token counts on `backbone`. Raises ProfileError when they differ from `expect` or do not fit."""
        if self.text_length > backbone.context:
            raise ProfileError(
                f"profile {self.name}: text_length = {self.text_length}, but the text tower of {backbone.name} "
                f"has {backbone.context} positions. Use {backbone.context} or less."
            )
        try:
            schedule = build_schedule(
                self.merge,
                layers=backbone.layers,
                frames=self.frames,
                tokens_per_frame=backbone.tokens_per_frame,
            )
        except ProfileError as error:
            raise ProfileError(f"profile {self.name}: {error}") from None
        found = {
            "final_tokens": schedule.final_tokens,
            "gmacs": round(complexity(schedule, backbone).gmacs, 1),
        }
        for key, value in found.items():
            expected = getattr(self.expect, key)
            if expected is not None and expected != value:
                raise ProfileError(
                    f"profile {self.name}: expect.{key} = {expected}, but its settings give {value} on "
                    f"{backbone.name}. Correct the settings or the expectation."
                )
        return schedule

    def to_dict(self) -> dict[str, Any]:
        """The profile as the nested dictionary that `parse_profile` reads."""
        merge = dataclasses.asdict(self.merge)
        merge["clip_layers"], merge["clip_factors"] = (
            list(self.merge.clip_layers),
            list(self.merge.clip_factors),
        )
        document: dict[str, Any] = {
            "name": self.name,
            "backbone": self.backbone,
            "frames": self.frames,
            "text_length": self.text_length,
            "merge": merge,
            "shapes": {"batch": [self.batch.min, self.batch.opt, self.batch.max]},
        }
        expect = {k: v for k, v in dataclasses.asdict(self.expect).items() if v is not None}
        return {**document, "expect": expect} if expect else document


_INT = (int, "a whole number")
_NUMBER = ((int, float), "a number")
_SCHEMA: dict[str, dict[str, tuple[Any, str]]] = {
    "": {
        "name": (str, "a text"),
        "backbone": (str, "a text"),
        "frames": _INT,
        "text_length": _INT,
        "merge": (dict, "a table"),
        "shapes": (dict, "a table"),
        "expect": (dict, "a table"),
    },
    "merge": {
        "image_r": _INT,
        "clip_layers": (list, "a list of whole numbers"),
        "clip_factors": (list, "a list of whole numbers"),
        "cross_percent": _NUMBER,
        "intra_percent": _NUMBER,
        "size_bias": (bool, "true or false"),
        "clip_position": (bool, "true or false"),
    },
    "shapes": {"batch": (list, "three whole numbers: min, opt, max")},
    "expect": {"final_tokens": _INT, "gmacs": _NUMBER},
}
_OPTIONAL = {"": {"expect"}, "merge": set(), "shapes": set(), "expect": {"final_tokens", "gmacs"}}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_table(source: str, table: str, values: dict[str, Any]) -> None:
    where = f"{source}: [{table}]" if table else source
    known = _SCHEMA[table]
    problems = [f"unknown key {key!r}" for key in values if key not in known]
    problems += [f"missing key {key!r}" for key in known if key not in values and key not in _OPTIONAL[table]]
    for key, value in values.items():
        kind, words = known.get(key, (object, ""))
        is_bool_by_mistake = isinstance(value, bool) and kind is not bool
        wrong_items = isinstance(value, list) and not all(_is_int(item) for item in value)
        if key in known and (not isinstance(value, kind) or is_bool_by_mistake or wrong_items):
            problems.append(f"{key} = {value!r} is not {words}")
    if problems:
        raise ProfileError(f"{where}: {'; '.join(problems)}. Known keys: {', '.join(known)}.")


def _check_ranges(source: str, profile: Profile) -> None:
    merge, batch = profile.merge, profile.batch
    limits = [
        (profile.frames >= 1, f"frames = {profile.frames} is below 1"),
        (
            profile.text_length >= 2,
            f"text_length = {profile.text_length} leaves no room for start and end (2)",
        ),
        (merge.image_r >= 0, f"merge.image_r = {merge.image_r} is negative"),
        (
            0 <= merge.cross_percent <= 100,
            f"merge.cross_percent = {merge.cross_percent} is not within 0..100",
        ),
        (
            0 <= merge.intra_percent <= 100,
            f"merge.intra_percent = {merge.intra_percent} is not within 0..100",
        ),
        (
            all(i >= 0 for i in merge.clip_layers),
            f"merge.clip_layers = {list(merge.clip_layers)} has a negative",
        ),
        (
            all(m >= 1 for m in merge.clip_factors),
            f"merge.clip_factors = {list(merge.clip_factors)}: at least 1",
        ),
        (
            1 <= batch.min <= batch.opt <= batch.max,
            f"shapes.batch = {[batch.min, batch.opt, batch.max]} is not min <= opt <= max from 1 up",
        ),
    ]
    problems = [message for fine, message in limits if not fine]
    if problems:
        raise ProfileError(f"{source}: {'; '.join(problems)}.")


def parse_profile(document: dict[str, Any], source: str) -> Profile:
    """Validate a profile's dictionary. `source` names it in errors.

    Raises ProfileError for unknown, missing or ill-typed keys, values out of range and, where the backbone
    is an open_clip config, settings that do not fit it or contradict `expect`.
    """
    _check_table(source, "", document)
    for table in ("merge", "shapes", "expect"):
        _check_table(source, table, document.get(table, {}))
    merge = dict(document["merge"])
    merge["clip_layers"], merge["clip_factors"] = tuple(merge["clip_layers"]), tuple(merge["clip_factors"])
    batch = document["shapes"]["batch"]
    if len(batch) != 3:
        raise ProfileError(f"{source}: shapes.batch = {batch} must be three whole numbers: min, opt, max.")
    profile = Profile(
        name=document["name"],
        backbone=document["backbone"],
        frames=document["frames"],
        text_length=document["text_length"],
        merge=MergePolicy(**merge),
        batch=BatchRange(*batch),
        expect=Expect(**document.get("expect", {})),
    )
    _check_ranges(source, profile)
    if profile.backbone != FROM_CHECKPOINT:
        try:
            backbone = open_clip_backbone(profile.backbone)
        except ProfileError as error:
            raise ProfileError(f"{source}: {error}") from None
        profile.schedule(backbone)
    return profile


def profile_folder() -> Path:
    """Folder of the shipped profiles."""
    from tempme_export import profiles

    return Path(profiles.__path__[0])


def shipped_profiles() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in profile_folder().glob("*.toml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a shipped profile by name, or any profile by the path of its TOML file.

    Raises ProfileError as `parse_profile`, and for a file that is missing or not TOML.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(name_or_path) not in shipped_profiles():
            raise ProfileError(
                f"no profile is called {str(name_or_path)!r}. Give the path of a .toml file or one of: "
                f"{', '.join(shipped_profiles())}.{did_you_mean(str(name_or_path), shipped_profiles())}"
            )
        path = profile_folder() / f"{name_or_path}.toml"
    if not path.is_file():
        raise ProfileError(f"profile {path} is not a file. Shipped profiles: {', '.join(shipped_profiles())}.")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ProfileError(f"profile {path} cannot be read as TOML: {error}") from error
    return parse_profile(document, source=f"profile {path.name}")
