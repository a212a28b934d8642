"""The candidates: what each needs, builds and loads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from tempme_export.artifacts import registry
from tempme_export.artifacts.backend import Backend, Setting
from tempme_export.artifacts.bundle import folder_of, open_bundle
from tempme_export.bench.cases import Case
from tempme_export.bench.core.candidate import Candidate, Entry
from tempme_export.bench.core.graphed import GraphRunner
from tempme_export.bench.core.protocol import Progress
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.reference import ReferenceVideo
from tempme_export.errors import BackendError, UsageError, did_you_mean
from tempme_export.parity.tolerance import INT8
from tempme_export.runtime.base import Runner
from tempme_export.runtime.devices import quiet_torch, torch_device
from tempme_export.runtime.processor import flags, videos_at_once
from tempme_export.runtime.pytorch import TorchRunner

ORIGINAL, ORIGINAL_BF16 = "original", "original-bf16"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_INT8 = "video.int8.onnx"
_CALIBRATION_SEED = 10_000  # beyond the clips that are measured


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


class _Autocast(torch.nn.Module):
    """The original path as its users run it on a GPU: float32 weights, products in bfloat16."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        with torch.autocast(frames.device.type, torch.bfloat16):
            return self.module(frames)


def _original(case: Case, precision: str, device: str) -> torch.nn.Module:
    module = ReferenceVideo(case.recipe, device=device)
    return _Autocast(module) if precision == "bf16" else module


def _fast(case: Case, precision: str, device: str) -> torch.nn.Module:
    return VideoEncoder(case.recipe, DTYPES[precision])


def _from_weights(
    name: str,
    module: Callable[[Case, str, str], torch.nn.Module],
    precision: str = "fp32",
    *,
    compiled: bool = False,
    graph: bool = False,
    slow_on: tuple[str, ...] = (),
) -> Candidate:
    """A PyTorch module that needs no artifact.

    compiled  through torch.compile, compiled by a first call of one video; on a CPU with a precision below float32,
              which only rehearses, it is traced and not compiled
    graph     replayed from a CUDA graph, on a GPU
    """

    def load(case: Case, artifact: Path | None, device: str) -> Runner:
        built = module(case, precision, device)
        runner = GraphRunner if graph else TorchRunner
        if not compiled:
            return runner(built, case.recipe, name, "video", device)
        torch._dynamo.reset()
        rehearsing = precision != "fp32" and torch_device(device).type == "cpu"
        compiled_module = torch.compile(built, backend="aot_eager" if rehearsing else "inductor")
        ready = runner(cast(torch.nn.Module, compiled_module), case.recipe, name, "video", device)
        _compile(ready, case)
        return ready

    return Candidate(name, load, precision=precision, slow_on=slow_on)


def _compile(runner: Runner, case: Case) -> None:
    """Raises BackendError where torch.compile does not work."""
    profile, size = case.profile, case.recipe.backbone.image_size
    videos = np.zeros((profile.batch.min, profile.frames, 3, size, size), np.float32)
    try:
        with quiet_torch():
            runner.infer({"frames": videos})
    except Exception as error:  # torch's compiler has no public root of its errors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BackendError(f"torch.compile does not work here: {reason[0]}. It needs a C++ compiler.") from error


def _artifact(path: Path | None) -> Path:
    assert path is not None, "a backend with `build` gets an artifact"
    return path


def _max_batch(case: Case, artifact: Path) -> int | None:
    """As `tempme_export.load` has it: an int8 graph takes large batches in parts."""
    if artifact.name != _INT8 and case.precision != INT8:
        return None
    schedule = case.recipe.schedule
    return videos_at_once(schedule.frames * schedule.tokens_per_frame)


def _registered(backend: Backend) -> Candidate:
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

    return Candidate(
        backend.name,
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


def _int8(one: Candidate) -> Candidate:
    return replace(one, name=f"{one.name}-int8", build=_build_int8, file=_INT8, precision="int8", slow_on=("cpu",))


def _where_bf16_is_slow(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Kinds of device on which nobody would run the original path in bfloat16: processors without AMX. With it, that
    is 2.3 to 2.7 times as fast as float32."""
    found = flags(cpuinfo.read_text()) if cpuinfo.is_file() else set()
    return () if "amx_bf16" in found else ("cpu",)


_OWN = (
    _from_weights(ORIGINAL, _original),
    _from_weights(ORIGINAL_BF16, _original, "bf16", slow_on=_where_bf16_is_slow()),
    _from_weights("original-compile", _original, compiled=True, slow_on=("cpu", "cuda")),
    _from_weights("original-bf16-compile", _original, "bf16", compiled=True, slow_on=("cpu", "cuda")),
    _from_weights("torch", _fast),
    _from_weights("torch-bf16", _fast, "bf16", slow_on=("cpu",)),
    _from_weights("torch-fp16", _fast, "fp16", slow_on=("cpu",)),
    _from_weights("compile", _fast, compiled=True, slow_on=("cpu",)),
    _from_weights("graph-bf16", _fast, "bf16", graph=True, slow_on=("cpu",)),
    _from_weights("graph-fp16", _fast, "fp16", graph=True, slow_on=("cpu",)),
    _from_weights("graph-bf16-compile", _fast, "bf16", compiled=True, graph=True, slow_on=("cpu", "cuda")),
)


def known_candidates() -> dict[str, Candidate]:
    """Paths that run from weights, and the backends of the package, by name."""
    registered = {one.name: _registered(one) for one in registry.BACKENDS if one.offered}
    int8 = [_int8(registered[name]) for name in _graph_backends()]
    return {one.name: one for one in (*_OWN, *registered.values(), *int8)}


def chosen_candidates(names: Sequence[str] | None, known: Mapping[str, Candidate] | None = None) -> list[Candidate]:
    """The original path, then the candidates asked for, or all.

    known  those there are, by name; None for all of the package
    Raises UsageError for an unknown one.
    """
    known = known_candidates() if known is None else known
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise UsageError(
            f"--backends: found {', '.join(unknown)}, expected of {', '.join(known)}.{did_you_mean(unknown[0], known)}"
        )
    return [known[ORIGINAL], *(known[name] for name in names or known if name != ORIGINAL)]


def on_backends(
    case: Case,
    names: tuple[str, ...] | None,
    device: str,
    folder: Path,
    stage: Progress,
    known: Mapping[str, Candidate] | None = None,
) -> tuple[list[Entry], dict[str, str]]:
    """One model on several backends, the original path first; and why others are missing.

    names  those that must be there; None for all
    known  the candidates to choose of; None for all of the package
    Raises UsageError for unknown names, BackendError where the original path or one that was named is missing.
    """
    entries: list[Entry] = []
    missing: dict[str, str] = {}
    for one in chosen_candidates(names, known):
        if names is None and torch_device(device).type in one.slow_on:
            missing[one.name] = f"it is measured on {device} only when named, by --backends."
            continue
        stage(f"loading {one.name}")
        try:
            entries.append(one.open(case, device, folder))
        except BackendError as error:
            if names is not None or one.name == ORIGINAL:
                raise
            missing[one.name] = str(error)
    return [replace(one, expect=entries[0].embed) for one in entries], missing
