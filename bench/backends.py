"""The ways to run a case: what each needs, builds and loads."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tempme_export.artifacts import registry
from tempme_export.artifacts.backend import Backend as Registered
from tempme_export.artifacts.backend import Setting
from tempme_export.artifacts.bundle import folder_of, open_bundle
from tempme_export.artifacts.graph_files import graph_bytes, graph_files
from tempme_export.bench.cases import Case
from tempme_export.bench.memory import measured
from tempme_export.bench.timing import Progress
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.reference import ReferenceVideo
from tempme_export.errors import BackendError, UsageError
from tempme_export.files import file_sha256
from tempme_export.parity.checks import inputs_for
from tempme_export.parity.tolerance import INT8
from tempme_export.runtime.base import Runner
from tempme_export.runtime.devices import quiet_torch, torch_device
from tempme_export.runtime.processor import videos_at_once
from tempme_export.runtime.pytorch import TorchRunner
from tempme_export.runtime.tensorrt import TensorRtRunner

ORIGINAL = "original"
_INT8 = "video.int8.onnx"
_CALIBRATION_SEED = 10_000  # beyond the clips that are measured


@dataclass(frozen=True)
class Backend:
    """One way to run a case.

    load       a case, its artifact and a device -> a runner; raises BackendError where it cannot run there
    build      writes the artifact into a folder and returns its path, where the case brings none; None for a backend
               that runs from weights
    require    raises BackendError where a package or this device is missing; asked before anything is built
    file       the artifact's name in a bundle; empty for a backend that runs from weights
    precision  None: the artifact's
    device     the only kind of device it runs on; None for any
    slow_on    the kind of device on which getting ready takes minutes: there it is measured only when named
    """

    load: Callable[[Case, Path | None, str], Runner]
    build: Callable[[Case, Path], Path] | None = None
    require: Callable[[str], object] = lambda device: None
    file: str = ""
    precision: str | None = "fp32"
    device: str | None = None
    slow_on: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A backend ready to run. `build_s`, `artifact_mb` and `artifact_sha256` are None where it runs from weights.

    load_mb      resident memory that loading added, in 1e6 bytes
    artifact_mb  size of the file that it runs, in 1e6 bytes
    onnx         the file, where it runs an ONNX graph
    """

    name: str
    runner: Runner
    precision: str
    load_s: float
    load_mb: float | None
    build_s: float | None
    artifact_mb: float | None
    artifact_sha256: str | None
    onnx: Path | None = None

    def embed(self, frames: NDArray[np.float32]) -> NDArray[Any]:
        """[B, F, 3, S, S] normalised pixels -> [B, E], every frame counting."""
        return self.runner.infer(inputs_for(self.runner, frames))["video_embedding"]

    def timed_on_gpu(self, frames: NDArray[np.float32]) -> Callable[[], float] | None:
        """A call that encodes videos which already lie on the GPU and returns the seconds between its device events.

        None on a CPU, and for a backend whose inputs cannot be put there beforehand.
        """
        runner = self.runner
        if isinstance(runner, TensorRtRunner):
            return runner.timed(inputs_for(runner, frames))
        if isinstance(runner, TorchRunner) and runner.on_gpu:
            return runner.timed(runner.to_device({"frames": frames}))
        return None

    def split(self) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any]]:
        """Copying videos to the GPU, and encoding them there; on a CPU, and where a backend copies by itself, None and
        `embed`."""
        runner = self.runner
        if not (isinstance(runner, TorchRunner) and runner.on_gpu):
            return None, self.embed
        return lambda frames: runner.to_device({"frames": frames}), runner.encode


def _build_graph(case: Case, folder: Path) -> Path:
    from tempme_export.exporters.onnx import export_video

    path = folder / registry.ARTIFACTS[0].file
    if not path.is_file():
        export_video(case.recipe, path, case.precision)
    return path


def _build_int8(case: Case, folder: Path) -> Path:
    """The video tower in int8, calibrated on drawn clips: what a speed needs, and no more."""
    from tempme_export.quantization.calibration import drawn_clips
    from tempme_export.quantization.export import export_video
    from tempme_export.quantization.towers import prepare_video

    if case.bundle is not None:
        floats = ",".join(_graph_backends())
        raise BackendError(
            f"{case.bundle} is measured as it is, in {case.precision}: --backends {floats}. For int8, export the "
            "checkpoint with --precision int8 and measure that bundle so."
        )
    path = folder / _INT8
    if not path.is_file():
        clips = drawn_clips(case.recipe, seed=_CALIBRATION_SEED)
        export_video(case.recipe, prepare_video(case.recipe, clips), path)
    return path


def _load_original(case: Case, artifact: Path | None, device: str) -> Runner:
    return TorchRunner(ReferenceVideo(case.recipe, device=device), case.recipe, ORIGINAL, "video", device)


class _Autocast(torch.nn.Module):
    """The original path as its users run it on a GPU: float32 weights, products in bfloat16."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        with torch.autocast(frames.device.type, torch.bfloat16):
            return self.module(frames)


def _load_original_bf16(case: Case, artifact: Path | None, device: str) -> Runner:
    module = _Autocast(ReferenceVideo(case.recipe, device=device))
    return TorchRunner(module, case.recipe, "original-bf16", "video", device)


def _load_torch(case: Case, artifact: Path | None, device: str) -> Runner:
    return TorchRunner(VideoEncoder(case.recipe), case.recipe, "torch", "video", device)


def _load_torch_bf16(case: Case, artifact: Path | None, device: str) -> Runner:
    return TorchRunner(VideoEncoder(case.recipe, torch.bfloat16), case.recipe, "torch-bf16", "video", device)


def _load_compiled(case: Case, artifact: Path | None, device: str) -> Runner:
    """torch.compile of the fast encoder, compiled by a first call of one video."""
    profile, size = case.profile, case.recipe.backbone.image_size
    encoder = cast(torch.nn.Module, torch.compile(VideoEncoder(case.recipe)))
    runner = TorchRunner(encoder, case.recipe, "compile", "video", device)
    videos = np.zeros((profile.batch.min, profile.frames, 3, size, size), np.float32)
    try:
        with quiet_torch():
            runner.infer({"frames": videos})
    except Exception as error:  # torch's compiler has no public root of its errors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BackendError(f"torch.compile does not work here: {reason[0]}. It needs a C++ compiler.") from error
    return runner


def _artifact(path: Path | None) -> Path:
    assert path is not None, "a backend with `build` gets an artifact"
    return path


def _max_batch(case: Case, artifact: Path) -> int | None:
    """As `tempme_export.load` has it: an int8 graph takes large batches in parts."""
    if artifact.name != _INT8 and case.precision != INT8:
        return None
    plan = case.recipe.plan
    return videos_at_once(plan.frames * plan.tokens_per_frame)


def _registered(backend: Registered) -> Backend:
    """A backend of the package, on the artifact that a bundle brings; a graph is built where there is no bundle."""

    def load(case: Case, artifact: Path | None, device: str) -> Runner:
        path = _artifact(artifact)
        facts = folder_of(open_bundle(path.parent)).facts_of(backend.artifact) if case.bundle else {}
        threads = torch.get_num_threads() if backend.counts_threads else None
        return backend.runtime.open_runner(path, facts, Setting(device, threads, _max_batch(case, path)))

    def refuse(case: Case, folder: Path) -> Path:
        file, option = backend.artifact.file, backend.artifact.option
        where = f"{case.bundle} has no {file}" if case.bundle else f"there is no {file}, which takes minutes to build"
        raise BackendError(f"{where}. Run tempme-export CKPT --{option} and measure that bundle.")

    return Backend(
        load,
        _build_graph if backend.artifact.option is None else refuse,
        lambda device: backend.runtime.choose_device({}, device),
        backend.artifact.file,
        precision=None,
        device=backend.devices[0] if len(backend.devices) == 1 else None,
    )


def _graph_backends() -> list[str]:
    """Those that run what every bundle has on a processor, as they run its int8 form too."""
    return [
        one.name
        for one in registry.BACKENDS
        if one.offered and one.artifact == registry.ARTIFACTS[0] and one.runs_on("cpu")
    ]


def _int8(backend: Backend) -> Backend:
    return replace(backend, build=_build_int8, file=_INT8, precision="int8", slow_on="cpu")


_OWN = {
    ORIGINAL: Backend(_load_original),
    "original-bf16": Backend(_load_original_bf16, precision="bf16", device="cuda"),
    "torch": Backend(_load_torch),
    "torch-bf16": Backend(_load_torch_bf16, precision="bf16", device="cuda"),
    "compile": Backend(_load_compiled, slow_on="cpu"),
}


class _Table(Mapping[str, Backend]):
    """What runs from weights, and the backends of the package, by name."""

    def _all(self) -> dict[str, Backend]:
        registered = {one.name: _registered(one) for one in registry.BACKENDS if one.offered}
        return _OWN | registered | {f"{name}-int8": _int8(registered[name]) for name in _graph_backends()}

    def __getitem__(self, name: str) -> Backend:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


BACKENDS: Mapping[str, Backend] = _Table()


def chosen_backends(names: Sequence[str] | None) -> list[str]:
    """The original path, then the backends asked for, or all. Raises UsageError for an unknown one."""
    unknown = [name for name in names or () if name not in BACKENDS]
    if unknown:
        raise UsageError(f"unknown backends: {', '.join(unknown)}. Choose of: {', '.join(BACKENDS)}.")
    return [ORIGINAL, *(name for name in names or BACKENDS if name != ORIGINAL)]


def ready(
    name: str,
    load: Callable[[], Runner],
    precision: str = "fp32",
    build_s: float | None = None,
    artifact_mb: float | None = None,
    artifact_sha256: str | None = None,
    onnx: Path | None = None,
) -> Loaded:
    """Load a runner and keep what that took."""
    start = time.perf_counter()
    runner, memory = measured(load)
    load_s = time.perf_counter() - start
    kept = None if memory is None else memory.kept
    return Loaded(name, runner, precision, load_s, kept, build_s, artifact_mb, artifact_sha256, onnx)


def _sha256(artifact: Path) -> str:
    """Of the file, or of the hashes of all its files."""
    hashes = [file_sha256(path) for path in graph_files(artifact)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def load(name: str, case: Case, device: str, folder: Path) -> Loaded:
    """Build the artifact into `folder`, unless the case brings it or none is needed, and load the backend.

    Raises BackendError where a package, runtime or device is missing, ExportError where building fails.
    """
    backend, kind = BACKENDS[name], torch_device(device).type
    if backend.device not in (None, kind):
        raise BackendError(f"it runs on {backend.device} only, and this measurement on {kind}.")
    backend.require(device)
    artifact, build_s, size, sha256 = None, None, None, None
    if backend.build is not None:
        artifact = case.artifact(backend.file)
        if artifact is None:
            start = time.perf_counter()
            artifact = backend.build(case, folder)
            build_s = time.perf_counter() - start
        size, sha256 = graph_bytes(artifact) / 1e6, _sha256(artifact)
    precision = backend.precision or case.precision
    onnx = artifact if backend.file.endswith(".onnx") else None
    return ready(name, lambda: backend.load(case, artifact, device), precision, build_s, size, sha256, onnx)


def load_all(
    names: Sequence[str], case: Case, device: str, folder: Path, *, named: bool, stage: Progress
) -> tuple[dict[str, Loaded], dict[str, str]]:
    """The backends that are there, and the reasons why others are not.

    named  whether the user asked for them by name

    Raises BackendError where the original path or one that was named is missing.
    """
    loaded: dict[str, Loaded] = {}
    missing: dict[str, str] = {}
    for name in names:
        if not named and BACKENDS[name].slow_on == torch_device(device).type:
            missing[name] = f"it takes minutes to get ready on {device}. Ask for it: --backends {name}"
            continue
        stage(f"loading {name}")
        try:
            loaded[name] = load(name, case, device, folder)
        except BackendError as error:
            if named or name == ORIGINAL:
                raise
            missing[name] = str(error)
    return loaded, missing
