"""The artifacts and backends that there are. A new one is an exporter, a runner and its entry here."""

from collections.abc import Container, Iterator
from contextlib import contextmanager

from tempme_export.artifacts.artifact import Artifact, Tower
from tempme_export.artifacts.backend import Backend, Folder, Library, Need, Platform, Reveals
from tempme_export.errors import BackendError, did_you_mean

_EXPORTERS, _RUNNERS = "tempme_export.exporters", "tempme_export.runtime"
_ENGINE_NEEDS = f"{_EXPORTERS}.trt.requirements"
_GRAPHS = "tempme_export.quantization.graphs"  # above the exporters: a float or int8

VIDEO_ONNX = Artifact("video.onnx", "video", _GRAPHS, exposes=True)
TEXT_ONNX = Artifact("text.onnx", "text", _GRAPHS)
PACKAGE = Artifact(
    "video.pt2",
    "video",
    f"{_EXPORTERS}.pt2",
    option="pt2",
    help="Also compile video.pt2 (AOTInductor) for DEVICE.",
    states=("device",),
    bound=True,
)
PLUGIN_ONNX = Artifact("video.plugin.onnx", "video", f"{_EXPORTERS}.plugin_onnx", option="trt", drafted=True)
PLAN = Artifact(
    "video.plan",
    "video",
    f"{_EXPORTERS}.trt.engine",
    option="trt",
    help="Also build video.plan, a TensorRT engine for this GPU.",
    bound=True,
    source=PLUGIN_ONNX.file,
    needs=_ENGINE_NEEDS,
)
ORT_LIBRARY = Artifact(
    "libtempme_ort.so",
    "video",
    f"{_EXPORTERS}.ort_ops",
    option="ort-ops",
    help="Also compile our operators for ONNX Runtime on processors.",
    states=("sha256", "graph", "machine", "libc"),
    bound=True,
    graph=PLUGIN_ONNX.file,
)

# In the order in which they are built and verified: an engine is built from the graph before it.
ARTIFACTS: tuple[Artifact, ...] = (VIDEO_ONNX, TEXT_ONNX, PACKAGE, PLUGIN_ONNX, PLAN, ORT_LIBRARY)

_ORT = f"{_RUNNERS}.ort"
_ORT_PACKAGES, _TORCH_PACKAGES = ("onnxruntime",), ("torch", "triton")
_CPU_EXTRA, _OPENVINO_EXTRA = "pip install 'tempme-export[cpu]'", "pip install 'tempme-export[openvino]'"
_GPU_EXTRA = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'tempme-export[gpu]'"
_CXX = "sudo apt install g++, or name one in CXX"
_DRIVER = "install NVIDIA's driver (https://www.nvidia.com/drivers), or start the container with --gpus all"

BACKENDS: tuple[Backend, ...] = (
    Backend(
        "ort",
        VIDEO_ONNX,
        _ORT,
        ("cpu",),
        Reveals.VALUES,
        _ORT_PACKAGES,
        need=Need(
            "cpu",
            "accept and run bundles with ONNX Runtime",
            {"onnxruntime": _CPU_EXTRA, "CPUExecutionProvider": _CPU_EXTRA},
        ),
        library=Library("onnxruntime", ("onnxruntime-gpu", "onnxruntime"), _ORT),
        platform=Platform("video", "onnxruntime_onnx"),
    ),
    Backend(
        "pt2",
        PACKAGE,
        f"{_RUNNERS}.pt2",
        ("cpu", "cuda"),
        Reveals.DECISIONS,
        _TORCH_PACKAGES,
        counts_threads=False,
        need=Need(
            "pt2",
            "compile video.pt2 (--pt2)",
            {
                "torch": "pip install 'tempme-export[export]'",
                "C++ compiler": _CXX,
            },
        ),
    ),
    Backend(
        "tensorrt",
        PLAN,
        f"{_RUNNERS}.tensorrt",
        ("cuda",),
        packages=(*_TORCH_PACKAGES, "tensorrt"),
        replays=2,
        counts_threads=False,
        need=Need(
            "trt",
            "build and run TensorRT engines (--trt)",
            {
                "driver": _DRIVER,
                "torch on GPU": "pip install --force-reinstall torch",
                "triton": "pip install triton",
                "tensorrt": "pip install 'tempme-export[trt]'",
            },
        ),
        library=Library("tensorrt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), _ENGINE_NEEDS, on_gpu=True),
        platform=Platform(
            "video_trt",
            "tensorrt_plan",
            kind="KIND_GPU",
            stated=True,
            few_sizes=True,
            requires="runs on {gpu} and needs a server release with TensorRT {tensorrt}. The server sets a shape anew "
            "whenever the batch size changes, after which TensorRT 11.1 and 11.2 are known to keep some GPU memory for "
            "good (NVIDIA/TensorRT issue 4849): send requests of one row, of which it forms batches of few sizes, or "
            "export for one size with --batch-range N:N:N",
        ),
    ),
    Backend(
        "openvino",
        VIDEO_ONNX,
        f"{_RUNNERS}.openvino",
        ("cpu",),
        packages=("openvino",),
        verifies=False,
        need=Need("openvino", "run bundles with OpenVINO", {"openvino": _OPENVINO_EXTRA}),
        library=Library("openvino", ("openvino",), f"{_RUNNERS}.openvino"),
    ),
    Backend(
        "ort-cuda",
        VIDEO_ONNX,
        _ORT,
        ("cuda",),
        Reveals.VALUES,
        _ORT_PACKAGES,
        need=Need(
            "ort-gpu",
            "ONNX Runtime on a GPU",
            {"driver": _DRIVER, "onnxruntime": _GPU_EXTRA, "CUDAExecutionProvider": _GPU_EXTRA},
        ),
    ),
    Backend(
        "ort-ops",
        ORT_LIBRARY,
        f"{_RUNNERS}.ort_ops",
        ("cpu",),
        Reveals.VALUES,
        _ORT_PACKAGES,
        need=Need("ort-ops", "compile our operators (--ort-ops)", {"C++ compiler": _CXX}),
        platform=Platform(
            "video_ops",
            "onnxruntime_onnx",
            kind="KIND_CPU",
            requires="was compiled for {machine} with {libc}; its library is found where the server starts in this "
            "folder, or by a full path in its config.pbtxt",
        ),
    ),
    Backend("plugin-ort", PLUGIN_ONNX, _ORT, ("cpu", "cuda"), Reveals.VALUES, _ORT_PACKAGES, offered=False),
    Backend(
        "text-ort",
        TEXT_ONNX,
        _ORT,
        ("cpu", "cuda"),
        packages=_ORT_PACKAGES,
        offered=False,
        platform=Platform("text", "onnxruntime_onnx"),
    ),
)


def register(*backends: Backend) -> None:
    """Add backends, and their artifacts where they are new. Raises BackendError for a name or a file that is taken."""
    global ARTIFACTS, BACKENDS
    for one in backends:
        if any(one.name == other.name for other in BACKENDS):
            raise BackendError(f"backend {one.name!r} is registered already. Give it another name.")
        if one.artifact not in ARTIFACTS:
            if any(one.artifact.file == other.file for other in ARTIFACTS):
                raise BackendError(
                    f"backend {one.name!r}: found a second artifact {one.artifact.file}, expected the registered one. "
                    "Pass that, or name another file."
                )
            ARTIFACTS = (*ARTIFACTS, one.artifact)
        BACKENDS = (*BACKENDS, one)


@contextmanager
def registered(*entries: Artifact | Backend) -> Iterator[None]:
    """For a while, these too: an artifact takes the place of the one with its file, a backend of the one with its
    name."""
    global ARTIFACTS, BACKENDS
    before = ARTIFACTS, BACKENDS
    artifacts = {one.file: one for one in ARTIFACTS} | {one.file: one for one in entries if isinstance(one, Artifact)}
    backends = {one.name: one for one in BACKENDS} | {one.name: one for one in entries if isinstance(one, Backend)}
    ARTIFACTS, BACKENDS = tuple(artifacts.values()), tuple(backends.values())
    try:
        yield
    finally:
        ARTIFACTS, BACKENDS = before


def options() -> dict[str, str]:
    """Options of an export beside what every bundle has: option -> its help."""
    helps: dict[str, str] = {}
    for one in ARTIFACTS:
        if one.option is not None:
            helps[one.option] = helps.get(one.option) or one.help
    return helps


def demanding(asked: Container[str | None]) -> tuple[Artifact, ...]:
    """The artifacts of these options that not every machine can build."""
    return tuple(one for one in ARTIFACTS if one.option in asked and one.needs is not None)


def rebuilt() -> tuple[Artifact, ...]:
    """The artifacts that can be built again from a file of their bundle."""
    return tuple(one for one in ARTIFACTS if one.source is not None)


def offered(tower: Tower = "video") -> tuple[str, ...]:
    """Names of the backends that a user may ask for."""
    return tuple(one.name for one in BACKENDS if one.artifact.tower == tower and one.offered)


def exposing() -> Artifact:
    """The artifact that returns its decisions, where an export is asked to expose merges."""
    return next(one for one in ARTIFACTS if one.exposes)


def libraries() -> tuple[Library, ...]:
    """The packages that backends run on, each once."""
    return tuple(dict.fromkeys(one.library for one in BACKENDS if one.library is not None))


def find_backend(name: str | None, device: str | None = None) -> Backend:
    """The backend of a video tower with this name; None: the first.

    NAME on a kind of device that it does not run on is NAME-KIND, where that is there. Raises BackendError for a name
    that is none, with one that comes near.
    """
    names = offered()
    if name is not None and name not in names:
        raise BackendError(f"backend: found {name!r}, expected one of {', '.join(names)}.{did_you_mean(name, names)}")
    named = {one.name: one for one in BACKENDS}
    found = named[name or names[0]]
    if device is None or found.runs_on(device):
        return found
    return named.get(f"{found.name}-{device.partition(':')[0]}", found)


def text_backend() -> Backend:
    """Backend that runs the texts, whatever runs the videos."""
    return next(one for one in BACKENDS if one.artifact.tower == "text")


def served(folder: Folder) -> tuple[Backend, ...]:
    """The backends by which a server runs the artifacts of a folder, one of each that it can run."""
    found = ([one for one in BACKENDS if one.artifact == artifact and one.platform] for artifact in held(folder))
    return tuple(platforms[0] for platforms in found if platforms)


def held(folder: Folder) -> tuple[Artifact, ...]:
    """The artifacts of a folder."""
    return tuple(artifact for artifact in ARTIFACTS if folder.has(artifact))


def verifying(folder: Folder, device: str) -> tuple[Backend, ...]:
    """The backends by which the artifacts of a folder are accepted where `device` is asked for: of every artifact those
    that run there, or its first."""
    chosen: list[Backend] = []
    for artifact in held(folder):
        verifies = [one for one in BACKENDS if one.artifact == artifact and one.verifies]
        chosen += [one for one in verifies if one.runs_on(device)] or verifies[:1]
    return tuple(chosen)
