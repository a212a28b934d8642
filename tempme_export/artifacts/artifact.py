"""Artifact: one kind of file that a bundle may hold, and who builds it."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from tempme_export.errors import making
from tempme_export.progress import Progress

if TYPE_CHECKING:
    from tempme_export.encoder.recipe import Recipe

Tower = Literal["video", "text"]


class Spec(Protocol):
    """Part of a request that an exporter may ask for; `pipeline.spec.ExportSpec` says what each means."""

    @property
    def precision(self) -> str: ...
    @property
    def frame_mask(self) -> bool: ...
    @property
    def expose_merges(self) -> bool: ...
    @property
    def device(self) -> str: ...
    @property
    def opset(self) -> int: ...
    @property
    def calibrate(self) -> str | Path | None: ...
    @property
    def ranges(self) -> str | None: ...
    @property
    def workspace_gib(self) -> float | None: ...
    @property
    def largest_file(self) -> int: ...
    @property
    def verbose(self) -> bool: ...


@dataclass(frozen=True)
class Making:
    """Everything that an exporter builds from.

    folder     where the bundle is put together; what an artifact is built from lies there already
    out        where the bundle will lie
    quantized  both towers in int8, as `quantization.build` prepares them; None in any other precision
    progress   hears of the steps and of what they leave
    """

    recipe: "Recipe"
    spec: Spec
    folder: Path
    out: Path
    quantized: Any
    progress: Progress


class Preview(Protocol):
    """Preview of an artifact, as data: for `--dry-run`, whatever this machine lacks for it."""

    @property
    def name(self) -> str:
        """Its place in a JSON document."""
        ...

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of each line for people."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        ...


class Exporter(Protocol):
    """Builder of an artifact; modules are the usual ones."""

    def check(self, spec: Spec) -> None:
        """Refuse what no checkpoint could mend: UsageError for the request, BackendError for this machine."""
        ...

    def check_recipe(self, recipe: "Recipe", spec: Spec) -> None:
        """Raise UsageError for a model of which there can be no such artifact."""
        ...

    def files(self, artifact: "Artifact", recipe: "Recipe", spec: Spec) -> list[str]:
        """Names of what will be written."""
        ...

    def size(self, artifact: "Artifact", recipe: "Recipe", spec: Spec) -> int:
        """Upper estimate of its bytes."""
        ...

    def scratch(self, artifact: "Artifact", recipe: "Recipe", spec: Spec) -> int:
        """Bytes that are written beside the bundle for a while."""
        ...

    def preview(self, recipe: "Recipe", spec: Spec) -> Preview | None:
        """Preview of it for a dry run, beyond names and sizes; None: nothing. Raises UsageError for the request."""
        ...

    def build(self, artifact: "Artifact", making: Making) -> dict[str, Any] | None:
        """Write it to `making.folder`; what the manifest is to say of it. Raises ExportError."""
        ...


class Requirements(Protocol):
    """Requirements of a build, told before anything heavy is imported; modules are the usual ones."""

    def check_options(self, precision: str, workspace_gib: float | None) -> None:
        """Raise UsageError for what it cannot be built with."""
        ...

    def check_builder(self, device: str) -> None:
        """Raise BackendError naming all that is missing here to build it for a device."""
        ...

    def check_rebuild(self, device: str, workspace_gib: float | None) -> None:
        """As both, for a bundle that is there already."""
        ...


@dataclass(frozen=True)
class Artifact:
    """One kind of file of a bundle.

    file     its name in the bundle
    tower    what it encodes
    builder  what builds it: an Exporter, or the name of the module that is one, imported when it is asked for something
    option   what an export must be asked for to write it, and where the manifest keeps what it says of itself; None:
             every bundle has it
    help     the option in a word for users; of artifacts that share one, one says it
    states   texts that it says of itself, without which nothing can tell where it runs
    bound    it runs only on the kind of machine that it was built for
    drafted  a dry run writes it beside the bundle: what is built from it may be built on another machine
    source   the file of the bundle that it is built from, without any weights of the checkpoint, so that it can be
             built again; None: from the checkpoint
    graph    the file of another artifact whose operators it holds: an export writes that too, and servers get both
    exposes  it returns the decision of every merge, where an export is asked to expose them
    needs    what a machine must have to build it: Requirements, or the name of the module that is them
    """

    file: str
    tower: Tower
    builder: "str | Exporter" = field(compare=False)
    option: str | None = None
    help: str = ""
    states: tuple[str, ...] = ()
    bound: bool = False
    drafted: bool = False
    source: str | None = None
    graph: str | None = None
    exposes: bool = False
    needs: "str | Requirements | None" = field(default=None, compare=False)

    @property
    def exporter(self) -> Exporter:
        """Exporter that builds it. Raises BackendError without what it is made of."""
        if not isinstance(self.builder, str):
            return self.builder
        with making(self.file):
            return cast(Exporter, importlib.import_module(self.builder))

    @property
    def requirements(self) -> Requirements | None:
        """Requirements of building it; None: no more than of any."""
        if not isinstance(self.needs, str):
            return self.needs
        return cast(Requirements, importlib.import_module(self.needs))

    def check(self, spec: Spec) -> None:
        """Refuse what no checkpoint could mend: as its Requirements, then as its Exporter."""
        if (required := self.requirements) is not None:
            required.check_options(spec.precision, spec.workspace_gib)
            required.check_builder(spec.device)
        self.exporter.check(spec)

    def misfits(self, manifest: Mapping[str, Any]) -> list[str]:
        """Facts of it in a manifest of another kind than its readers need, in words; a bundle may say nothing."""
        facts = manifest.get(self.option) if self.option and self.states else None
        if facts is None or (isinstance(facts, dict) and all(isinstance(facts.get(one), str) for one in self.states)):
            return []
        return [f"{self.option} is {facts!r:.80}, expected a table with the text {', '.join(self.states)}, or nothing"]
