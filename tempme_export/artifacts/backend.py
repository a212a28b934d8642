"""Backend: one way to run an artifact. The module of its runner is imported when it is asked for something."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from tempme_export.artifacts.artifact import Artifact
from tempme_export.errors import BackendError, making

if TYPE_CHECKING:
    from tempme_export.runtime.base import Runner

ArtifactFacts = Mapping[str, Any]


class Reveals(Enum):
    """Values that a runner of a video tower can return beside the embedding."""

    NOTHING = "nothing"
    DECISIONS = "every merge's decision, in any case"
    VALUES = "any value inside, opened with `extra_outputs`"


@dataclass(frozen=True)
class Setting:
    """Settings to run an artifact with.

    threads        of a processor, for one call; None: as many as it has cores
    max_batch      rows of one call at most, unless the artifact has a limit of its own; None: as many as come
    extra_outputs  values inside to return beside the outputs
    """

    device: str
    threads: int | None = None
    max_batch: int | None = None
    extra_outputs: tuple[str, ...] = ()


class Runtime(Protocol):
    """Opener of runners; modules are the usual ones. `facts` is what the manifest says of the artifact."""

    def choose_device(self, facts: ArtifactFacts, device: str | None) -> str:
        """The device asked for, or the usual one. Raises BackendError for one that is not there."""
        ...

    def check_fit(self, path: Path, facts: ArtifactFacts, device: str) -> None:
        """Raise BackendError for an artifact of another machine, before it is loaded. Of bound artifacts only."""
        ...

    def describe(self, facts: ArtifactFacts, device: str) -> str:
        """The runtime and the device, for a report."""
        ...

    def open_runner(self, path: Path, facts: ArtifactFacts, setting: Setting) -> "Runner":
        """Raises BackendError without the runtime or device, BundleError for a file that cannot be loaded."""
        ...


@dataclass(frozen=True)
class Folder:
    """Artifacts of one export, before there is a manifest or after.

    facts  option -> what the artifact says of itself
    files  names by the manifest; None: what lies there
    """

    path: Path
    precision: str
    facts: Mapping[str, ArtifactFacts] = field(default_factory=dict)
    files: frozenset[str] | None = None

    def has(self, artifact: Artifact) -> bool:
        """True where the artifact is in it, or must be."""
        if artifact.option is None:
            return True
        return self.holds(artifact.file)

    def holds(self, file: str) -> bool:
        """True where a file that not every bundle has is in it."""
        return (self.path / file).is_file() if self.files is None else file in self.files

    def facts_of(self, artifact: Artifact) -> ArtifactFacts:
        """Facts of an artifact; none for one that says nothing."""
        return (self.facts.get(artifact.option) if artifact.option else None) or {}


@dataclass(frozen=True)
class Library:
    """A package that is a runtime, as the doctor looks for it.

    name           the doctor's, and the package's to import
    distributions  that it may come with
    probe          name of the module whose `probe` loads it for real; one that reports `providers` has `probe_provider`
    on_gpu         its probe is told whether there is a GPU ("yes" or "no")
    """

    name: str
    distributions: tuple[str, ...]
    probe: str
    on_gpu: bool = False


@dataclass(frozen=True)
class Need:
    """Something that a user may want to do, and the parts of a machine that it takes.

    parts  as the doctor names them, each with the command that brings it
    """

    name: str
    enables: str
    parts: Mapping[str, str]


@dataclass(frozen=True)
class Platform:
    """Platform of an artifact in Triton Inference Server.

    model     what the server calls it
    format    its name of the file's format
    kind      where instances run; None: by the precision
    stated    inputs, outputs and batch range are those that the artifact states of itself, and every output is listed
    few_sizes a change of the batch size costs something, so the server is to form batches of few sizes
    requires  what a client must know, with the facts of the artifact as fields
    """

    model: str
    format: str
    kind: str | None = None
    stated: bool = False
    few_sizes: bool = False
    requires: str = ""


@dataclass(frozen=True)
class Backend:
    """One way to run one artifact.

    name     what a user asks for
    runner   what opens it: a Runtime, or the name of the module that is one
    devices  kinds of device that it runs on, the usual one first
    reveals  what its runner can return beside an embedding
    verifies  it is one by which the artifact is accepted
    packages distributions whose versions its embeddings depend on, each with all whose names begin so
    offered  to users; another is there for its artifact's acceptance, or beside the videos, alone
    counts_threads  it can be told how many threads to take
    need     what it takes of a machine; None: nothing that a machine could lack
    library  package that runs it; None: torch, or one that another backend names
    platform how a server runs it; None where it cannot
    replays  runs of a batch size after which the runner may repeat what it recorded
    """

    name: str
    artifact: Artifact
    runner: "str | Runtime" = field(compare=False)
    devices: tuple[str, ...]
    reveals: Reveals = Reveals.NOTHING
    packages: tuple[str, ...] = ()
    verifies: bool = True
    offered: bool = True
    replays: int = 0
    counts_threads: bool = True
    need: Need | None = None
    library: Library | None = None
    platform: Platform | None = None

    @property
    def runtime(self) -> Runtime:
        """Runtime that opens its runners. Raises BackendError without what it is made of."""
        if not isinstance(self.runner, str):
            return self.runner
        with making(f"backend {self.name!r}"):
            return cast(Runtime, importlib.import_module(self.runner))

    def runs_on(self, device: str) -> bool:
        """True where it runs on this kind of device."""
        return device.partition(":")[0] in self.devices

    def device_or_usual(self, device: str) -> str:
        """Device to run on when other artifacts run on `device`: the same, or its usual one where that is the CPU."""
        return self.devices[0] if device == "cpu" and not self.runs_on(device) else device

    def choose_device(self, folder: Folder, device: str | None) -> str:
        """The device asked for, or the usual one. Raises BackendError without the artifact or the device."""
        if not folder.has(self.artifact):
            raise BackendError(
                f"{folder.path} has no {self.artifact.file}. Export it with --{self.artifact.option}, or use another "
                "backend."
            )
        if device is None and len(self.devices) == 1:
            device = self.devices[0]
        chosen = self.runtime.choose_device(folder.facts_of(self.artifact), device)
        if not self.runs_on(chosen):
            raise BackendError(f"backend {self.name} runs on {', '.join(self.devices)}, and {chosen} was asked for.")
        return chosen

    def check_fit(self, folder: Folder, device: str) -> None:
        """Raises BackendError for an artifact that was built for another machine."""
        if self.artifact.bound:
            self.runtime.check_fit(folder.path / self.artifact.file, folder.facts_of(self.artifact), device)

    def describe(self, folder: Folder, device: str) -> str:
        """The runtime and the device, for a report."""
        return self.runtime.describe(folder.facts_of(self.artifact), device)

    def open(self, folder: Folder, setting: Setting) -> "Runner":
        """Raises BackendError without the runtime or device, BundleError for a file that cannot be loaded."""
        return self.runtime.open_runner(folder.path / self.artifact.file, folder.facts_of(self.artifact), setting)
