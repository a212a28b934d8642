"""ExportSpec: what was asked for, in one place, and whether it can be done."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tempme_export.artifacts import registry
from tempme_export.artifacts.artifact import Artifact
from tempme_export.artifacts.bundle import SELFTEST, SUFFIX
from tempme_export.data.annotations import RetrievalData
from tempme_export.encoder.backbone import OPEN_CLIP
from tempme_export.encoder.checkpoint import Checkpoint
from tempme_export.encoder.model import check_supported
from tempme_export.encoder.profile import BatchRange, Profile
from tempme_export.encoder.recipe import Recipe, open_recipe
from tempme_export.errors import UsageError
from tempme_export.evaluation.gate_data import GateData, open_gate
from tempme_export.exporters.external_data import LARGEST_FILE
from tempme_export.exporters.onnx import DEFAULT_OPSET
from tempme_export.media.stored_tokenizer import TOKENIZER
from tempme_export.parity.selftest import CLIPS
from tempme_export.parity.tolerance import PRECISIONS

_CHECKPOINT_SUFFIXES = {".pt", ".pth", ".bin", ".safetensors", ".ckpt"}


def default_output(source: str) -> Path:
    """`ckpt.pt` -> `ckpt.tempme` beside it; `open_clip:MODEL/TAG` -> `MODEL-TAG.tempme` here.

    A suffix that is no checkpoint's belongs to the name: `model.bin.0` -> `model.bin.0.tempme`.
    """
    if source.startswith(OPEN_CLIP):
        return Path(source.removeprefix(OPEN_CLIP).replace("/", "-") + SUFFIX)
    path = Path(source)
    stem = path.stem if path.suffix.lower() in _CHECKPOINT_SUFFIXES else path.name
    return path.with_name(stem + SUFFIX)


@dataclass(frozen=True)
class ExportSpec:
    """Settings of an export. `pipeline.export.export` says what each field means.

    options  of the artifacts that not every bundle has, as `Artifact.option` names them
    """

    checkpoint: Checkpoint | str | Path
    profile: Profile | str | Path | None = None
    out: str | Path | None = None
    activation: str | None = None
    precision: str = "fp32"
    batch: tuple[int, int, int] | None = None
    frame_mask: bool = False
    expose_merges: bool = False
    options: frozenset[str] = frozenset()
    device: str = "cpu"
    opset: int = DEFAULT_OPSET
    calibrate: str | Path | None = None
    ranges: str | None = None
    force: bool = False
    gate: RetrievalData | str | Path | None = None
    gate_videos: str | Path | None = None
    allow_damaged: bool = False
    workspace_gib: float | None = None
    largest_file: int = LARGEST_FILE
    verbose: bool = False

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Artifacts to build, in that order."""
        asked = [one for one in registry.ARTIFACTS if one.option is None or one.option in self.options]
        graphs = {one.graph for one in asked}
        return tuple(one for one in registry.ARTIFACTS if one in asked or one.file in graphs)

    @property
    def drafts(self) -> tuple[Artifact, ...]:
        """Artifacts that a dry run writes."""
        return tuple(one for one in self.artifacts if one.drafted and one.option in self.options)

    @property
    def target(self) -> Path:
        """The bundle's folder."""
        if self.out is not None:
            return Path(self.out)
        source = self.checkpoint.source if isinstance(self.checkpoint, Checkpoint) else str(self.checkpoint)
        return default_output(source)

    def check(self) -> None:
        """Refuse what no checkpoint could mend, before the work.

        Raises UsageError for values that do not exist or contradict each other, and BackendError without the runtime,
        the device, or what an artifact is built with.
        """
        known = registry.options()
        if unknown := sorted(self.options - known.keys()):
            raise UsageError(f"options: found {', '.join(unknown)}, expected some of {', '.join(sorted(known))}.")
        for artifact in reversed(self.artifacts):  # what needs the most first
            if artifact.option is not None:
                artifact.check(self)
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision: found {self.precision!r}, expected one of {', '.join(PRECISIONS)}.")
        if self.batch is not None and not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise UsageError(f"batch: found {self.batch}, expected 1 <= MIN <= OPT <= MAX.")
        for artifact in self.artifacts:
            if artifact.option is None:
                artifact.check(self)
        registry.text_backend().runtime.choose_device({}, self.device)  # acceptance runs there, whatever is built

    def recipe(self) -> Recipe:
        """Recipe to build from, with the batch range asked for.

        Raises CheckpointError for a model that no artifact can hold, and UsageError for one of which an artifact that
        is asked for cannot be made, before any work.
        """
        recipe = open_recipe(self.checkpoint, self.profile, self.activation)
        check_supported(recipe)
        for artifact in self.artifacts:
            artifact.exporter.check_recipe(recipe, self)
        if self.batch is None:
            return recipe
        return replace(recipe, profile=replace(recipe.profile, batch=BatchRange(*self.batch)))

    def gate_data(self, recipe: Recipe) -> GateData | None:
        """The data of the retrieval gate, opened and found fit for one; None where no gate is asked for.

        Raises UsageError for videos without a gate, and InputError as `open_gate`.
        """
        if self.gate is not None:
            return open_gate(self.gate, self.gate_videos, recipe.profile)
        if self.gate_videos is not None:
            raise UsageError("found a folder of videos for the gate and no gate. Give --gate DATA too.")
        return None

    def files(self, recipe: Recipe) -> list[str]:
        """Names of what the bundle will hold beside its manifest."""
        words = [] if recipe.backbone.tokenizer is None else [TOKENIZER]
        return [SELFTEST, *words, *(name for one in self.artifacts for name in one.exporter.files(one, recipe, self))]

    def size(self, recipe: Recipe) -> int:
        """Upper estimate of the bundle's bytes: its artifacts and the self-test clips, a tenth added; the tokenizer."""
        clips = len(CLIPS) * recipe.profile.frames * 3 * recipe.backbone.image_size**2
        artifacts = sum(one.exporter.size(one, recipe, self) for one in self.artifacts)
        words = 0 if recipe.backbone.tokenizer is None else 2 * 2**20
        return int(1.1 * (artifacts + clips)) + 4 * 2**20 + words

    def scratch(self, recipe: Recipe) -> int:
        """Bytes that are written beside the bundle for a while."""
        return sum(one.exporter.scratch(one, recipe, self) for one in self.artifacts)


def asked(options: Iterable[tuple[str, bool]]) -> frozenset[str]:
    """The options that are set."""
    return frozenset(name for name, is_on in options if is_on)
