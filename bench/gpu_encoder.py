"""The encoder's paths side by side on one device: time, rate, and how far each is from the original in float32."""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tempme_export.bench.gpu_timing import Spread, Timer, Work, capture, matrix_work
from tempme_export.encoder.complexity import complexity
from tempme_export.encoder.model import Merges, VideoEncoder
from tempme_export.encoder.recipe import Recipe
from tempme_export.encoder.reference import ReferenceVideo, Trace

Output = tuple[Tensor, tuple[Tensor, ...]]
Run = Callable[[], Output]
Progress = Callable[[str], None]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ANCHOR = "fused, CUDA graph"
PEAK = "matrix product"


@dataclass(frozen=True)
class EncoderRow:
    """One path at one batch size.

    group              paths of one group were timed in turns, round after round
    ms                 per call: median, 20th and 80th percentile of `samples`
    tflop_s            on TempMe's own products, each multiply-accumulate counted twice, whatever the path does
    peak_tflop_s       of a large bfloat16 matrix product in the same rounds; share_of_peak: tflop_s over it
    one_minus_cosine   largest distance of an embedding from the original's in float32, on the inputs timed
    changed_decisions  share of tokens that a merge sends elsewhere than the original in float32 does; None where
                       the path does not tell
    ready_s            building, compiling, capturing and the first calls
    """

    profile: str
    path: str
    precision: str
    batch: int
    group: str
    ms: float
    ms_p20: float
    ms_p80: float
    samples: int
    videos_per_s: float
    tflop_s: float
    peak_tflop_s: float
    share_of_peak: float
    one_minus_cosine: float
    changed_decisions: float | None
    ready_s: float

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values."""
        return dataclasses.asdict(self)


class Deciding(nn.Module):
    """The fast encoder with its decisions as further outputs."""

    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, frames: Tensor) -> Output:
        """frames [B, F, 3, S, S] -> embedding [B, E] and every merge's assignment int32."""
        merges = Merges()
        embedding = self.encoder.encode(frames, None, merges)
        return embedding, tuple(assign for assign, _ in merges)


@dataclass(frozen=True)
class Setting:
    """What every path is built for; `frames` [B, F, 3, S, S] float32 on the device."""

    recipe: Recipe
    frames: Tensor

    @property
    def device(self) -> torch.device:
        return self.frames.device


@dataclass(frozen=True)
class Ready:
    """A path ready to be timed: `run` is one call; `output` what one call gave, `graph` what holds its memory."""

    run: Callable[[], object]
    output: Output
    graph: torch.cuda.CUDAGraph | None = None


@dataclass(frozen=True)
class EncoderPath:
    """One way through the encoder."""

    name: str
    precision: str
    build: Callable[[Setting], Ready]


def moving_clips(count: int, frames: int, size: int, device: torch.device, seed: int = 0) -> Tensor:
    """Smooth pictures that drift, with a little noise: [count, frames, 3, size, size] float32 on `device`."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.zeros(count, 3, size, size)
    for cells, height in ((4, 1.0), (16, 0.7), (size // 2, 0.3)):
        grid = torch.randn(count, 3, cells, cells, generator=generator)
        picture += height * F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)
    picture = picture.to(device)
    noise = torch.Generator(device).manual_seed(seed)
    step = max(1, size // 48)
    moved = [picture.roll((step * t, -2 * step * t), dims=(-2, -1)) for t in range(frames)]
    clips = torch.stack(moved, dim=1)
    return clips + 0.05 * torch.randn(clips.shape, generator=noise, device=device)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=DTYPES["bf16"], enabled=precision == "bf16")


def _traced(reference: ReferenceVideo, frames: Tensor) -> Output:
    trace = Trace()
    embedding = F.normalize(reference.video_feature(frames, trace=trace), dim=-1)
    return embedding, tuple(step.assign for step in trace.steps)


def truth(setting: Setting) -> Output:
    """The original path in float32 throughout: convolutions do not round to TF32 as they otherwise do on a GPU."""
    reference = ReferenceVideo(setting.recipe, device=setting.device)
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.inference_mode():
            return _traced(reference, setting.frames)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def _original(precision: str) -> EncoderPath:
    def build(setting: Setting) -> Ready:
        reference = ReferenceVideo(setting.recipe, device=setting.device)

        def run() -> Tensor:
            with torch.inference_mode(), _autocast(setting.device, precision):
                return reference(setting.frames)

        with torch.inference_mode(), _autocast(setting.device, precision):
            output = _traced(reference, setting.frames)
        return Ready(run, output)

    return EncoderPath("original" if precision == "fp32" else "original, autocast", precision, build)


def _compiler(device: torch.device) -> str:
    """On a CPU, which only rehearses, the model is traced and not compiled: that takes minutes."""
    return "inductor" if device.type == "cuda" else "aot_eager"


def _compiled_original(precision: str) -> EncoderPath:
    def build(setting: Setting) -> Ready:
        torch._dynamo.reset()
        reference = ReferenceVideo(setting.recipe, device=setting.device)
        compiled = torch.compile(reference, dynamic=False, backend=_compiler(setting.device))

        def run() -> Tensor:
            with torch.no_grad(), _autocast(setting.device, precision):
                return compiled(setting.frames)

        for _ in range(2):
            embedding = run()
        return Ready(run, (embedding, ()))

    name = "original, compiled" if precision == "fp32" else "original, autocast, compiled"
    return EncoderPath(name, precision, build)


def _encoder(setting: Setting, precision: str) -> Deciding:
    return Deciding(VideoEncoder(setting.recipe, DTYPES[precision]).to(setting.device)).eval()


def _fused(precision: str, *, graph: bool, compiled: bool = False) -> EncoderPath:
    def build(setting: Setting) -> Ready:
        module: Callable[[Tensor], Output] = _encoder(setting, precision)
        if compiled:
            torch._dynamo.reset()
            module = torch.compile(module, dynamic=False, backend=_compiler(setting.device))

        def run() -> Output:
            # Compilers meet tensors of inference mode less often than those without gradients.
            with torch.no_grad() if compiled else torch.inference_mode():
                return module(setting.frames)

        for _ in range(2):
            output = run()
        if not (graph and setting.device.type == "cuda"):
            return Ready(run, output)
        del output
        replayed, results = capture((run,))
        replayed.replay()
        torch.cuda.synchronize()
        embedding, decisions = results[0]
        return Ready(replayed.replay, (embedding.clone(), tuple(one.clone() for one in decisions)), replayed)

    words = ["fused", *(["compiled"] if compiled else []), *(["CUDA graph"] if graph else [])]
    return EncoderPath(", ".join(words), precision, build)


def package(precision: str, waiting: "PackageBuild") -> EncoderPath:
    """The compiled package that another process builds; called with tensors that are on the device already."""

    def build(setting: Setting) -> Ready:
        from tempme_export.runtime.pt2 import Pt2Runner

        runner = Pt2Runner(waiting.finished(), str(setting.device))

        def run() -> dict[str, Tensor]:
            return runner.run_tensors(setting.frames)

        for _ in range(2):
            found = run()
        return Ready(run, (found.pop("video_embedding"), tuple(found.values())))

    return EncoderPath(".pt2", precision, build)


QUICK_PATHS = (
    _original("fp32"),
    _original("bf16"),
    _fused("bf16", graph=False),
    _fused("fp16", graph=False),
    _fused("bf16", graph=True),
    _fused("fp16", graph=True),
)
COMPILED_PATHS = (_fused("bf16", graph=True), _fused("bf16", graph=True, compiled=True))
COMPILED_ORIGINAL = (_original("fp32"), _original("bf16"), _compiled_original("fp32"), _compiled_original("bf16"))


class PackageBuild:
    """A process that compiles a `.pt2` package of a profile with the drawn weights, while this one does other work."""

    def __init__(self, command: Sequence[str], path: Path, log: Path) -> None:
        """command  the process; it writes `path`. `log` takes what it says."""
        self.path, self._log, self._start = path, log, time.perf_counter()
        with log.open("wb") as stream:
            self._process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)

    def finished(self) -> Path:
        """The package. Raises RuntimeError where building it failed."""
        if self._process.wait() != 0:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"building {self.path.name} failed: " + " | ".join(lines[-5:]))
        return self.path

    def close(self) -> None:
        """End the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def package_command(profile: str, path: Path, device: str) -> list[str]:
    """The command that builds a package of `profile` with the drawn weights."""
    return [sys.executable, "-m", "tempme_export.bench.gpu_step", "package", str(path), "--profile", profile] + (
        ["--dry-run"] if device == "cpu" else []
    )


def distance(expected: Tensor, found: Tensor) -> float:
    """Largest 1 - cosine between rows of two [B, E]."""
    a, b = F.normalize(expected.double(), dim=-1), F.normalize(found.double(), dim=-1)
    return float((1 - (a * b).sum(dim=-1)).max())


def changed_share(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float | None:
    """Share of tokens that go elsewhere, over all merges; None where `found` tells none."""
    if not found:
        return None
    changed = sum(int((a != b).sum()) for a, b in zip(expected, found, strict=True))
    return changed / sum(one.numel() for one in expected)


def encoder_row(
    recipe: Recipe,
    path: EncoderPath,
    batch: int,
    group: str,
    spread: Spread,
    peak_tflop_s: float,
    accuracy: tuple[float, float | None],
    ready_s: float,
) -> EncoderRow:
    """A row from what was measured."""
    flops = 2 * complexity(recipe.plan, recipe.backbone).products * batch
    tflop_s = flops / spread.median / 1e12
    return EncoderRow(
        profile=recipe.profile.name,
        path=path.name,
        precision=path.precision,
        batch=batch,
        group=group,
        ms=spread.median * 1e3,
        ms_p20=spread.p20 * 1e3,
        ms_p80=spread.p80 * 1e3,
        samples=spread.samples,
        videos_per_s=batch / spread.median,
        tflop_s=tflop_s,
        peak_tflop_s=peak_tflop_s,
        share_of_peak=tflop_s / peak_tflop_s,
        one_minus_cosine=accuracy[0],
        changed_decisions=accuracy[1],
        ready_s=ready_s,
    )


def time_paths(
    setting: Setting,
    paths: Sequence[EncoderPath],
    group: str,
    take: Timer,
    progress: Progress,
) -> tuple[list[EncoderRow], list[str]]:
    """Rows of the paths that could be built, timed in turns, and why the others could not."""
    batch, expected = len(setting.frames), truth(setting)
    ready: dict[str, tuple[EncoderPath, Ready, float]] = {}
    failures: list[str] = []
    for path in paths:
        label = f"{path.name} {path.precision}"
        progress(f"{setting.recipe.profile.name}, batch {batch}: {label}")
        start = time.perf_counter()
        try:
            built = path.build(setting)
            if setting.device.type == "cuda":
                torch.cuda.synchronize()
        except Exception as error:  # one path that fails must not cost the others their rows
            failures.append(f"batch {batch}, {label}: {type(error).__name__}: {error}")
            continue
        ready[label] = path, built, time.perf_counter() - start
    peak, flops = matrix_work(setting.device)
    works = {label: Work((built.run,)) for label, (_, built, _) in ready.items()}
    spreads = take({**works, PEAK: peak})
    peak_tflop_s = flops / spreads[PEAK].median / 1e12
    rows = []
    for label, (path, built, ready_s) in ready.items():
        embedding, decisions = built.output
        accuracy = distance(expected[0], embedding), changed_share(expected[1], decisions)
        rows.append(encoder_row(setting.recipe, path, batch, group, spreads[label], peak_tflop_s, accuracy, ready_s))
        if built.graph is not None:
            built.graph.reset()
    return rows, failures
