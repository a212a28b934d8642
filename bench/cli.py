"""`tempme-bench`: arguments -> a request -> the command that answers it (`commands`)."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tempme_export.bench import commands
from tempme_export.bench.config import DEFAULT_FRAMES, BenchmarkConfig
from tempme_export.cli.app import CommandLine
from tempme_export.errors import UsageError
from tempme_export.names import command as shell_command

line = CommandLine("tempme-bench")

GPU_CHECK = "gpu-check"
MODES = ("latency", "throughput", "end-to-end")
_INTERRUPTED = 130
_COUNTING = {"complexity", "count", "profile", "frames", "json"}
_COMPILING = {"kernels", "resources", "profile", "frames", "json"}
_TIMING_KERNELS = {"kernels", "profile", "frames", "batch", "dtype", "json"}
_COMPARING = {"compare", "json", "seed"}
_READING = {"report", "results"}
_DRAWING = {"trace", "source", "profile", "activation", "frames", "out", "seed", "allow_damaged"}
_MODEL, _PROTOCOL, _RESULTS, _OTHER = "What to measure", "How to measure", "Results", "Instead of measuring"


def _option(panel: str, text: str, metavar: str | None = None, name: str | None = None, **more: Any) -> Any:
    return typer.Option(*[name] if name else [], help=text, metavar=metavar, rich_help_panel=panel, **more)


@line.default(3, 4, 5, 6, 7, 130)
def bench(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Argument(metavar="BUNDLE|CKPT", help="With neither, weights are drawn at random.")
    ] = None,
    profile: Annotated[str | None, _option(_MODEL, "A shipped profile, or a .toml file.", "P")] = None,
    activation: Annotated[
        str | None,
        _option(
            _MODEL,
            "quickgelu or gelu in the towers of a CKPT. Default: as it says, else its profile.",
        ),
    ] = None,
    frames: Annotated[
        str | None,
        _option(
            _MODEL,
            f"Without a profile, ViT-B/32 of N frames; {DEFAULT_FRAMES} by default. Several with commas: a sweep, with "
            "fitted costs.",
            "N,N",
        ),
    ] = None,
    backends: Annotated[
        str | None, _option(_MODEL, "Measured beside the original path; all by default.", "A,B")
    ] = None,
    methods: Annotated[
        str | None,
        _option(
            _MODEL, "Methods side by side on the same weights: on the original path, or one of --backends.", "A,B|all"
        ),
    ] = None,
    mode: Annotated[
        str | None,
        _option(_MODEL, "latency (batch 1, the default), throughput (batches up to the knee) or end-to-end.", "M"),
    ] = None,
    batch: Annotated[str | None, _option(_MODEL, "Videos per call, several with commas.", "N,N")] = None,
    video: Annotated[
        list[Path] | None, _option(_MODEL, "With end-to-end: a video file, repeatable; else one is rendered.", "FILE")
    ] = None,
    allow_damaged: Annotated[
        bool,
        _option(_MODEL, "Take damaged pictures of --video or --trace as a player shows them.", name="--allow-damaged"),
    ] = False,
    device: Annotated[str, _option(_MODEL, "cpu, cuda or cuda:N.", "D")] = "cpu",
    seconds: Annotated[float, _option(_PROTOCOL, "Measure each backend at least so long.", "S")] = 1.0,
    samples: Annotated[int, _option(_PROTOCOL, "Measure each backend at least so often.", "N")] = 20,
    budget: Annotated[
        float,
        _option(
            _PROTOCOL, "Seconds for one comparison, all backends together: its rounds end there at the latest.", "S"
        ),
    ] = 120.0,
    seed: Annotated[int, _option(_PROTOCOL, "Of inputs, random weights and bootstrap.", "N")] = 0,
    strict: Annotated[bool, _option(_PROTOCOL, "Exit with 7 if a ratio did not converge.", name="--strict")] = False,
    handicap: Annotated[
        list[str] | None,
        _option(_PROTOCOL, "Slow one down by P percent, to see whether --compare notices.", "NAME:P"),
    ] = None,
    json: Annotated[
        str | None, _option(_RESULTS, "One JSON document; - to stdout instead of tables.", "FILE|-")
    ] = None,
    out: Annotated[Path | None, _option(_RESULTS, "New Parquet and JSON files in this folder.", "DIR")] = None,
    csv: Annotated[bool, _option(_RESULTS, "With --out: the rows as CSV too.", name="--csv")] = False,
    report: Annotated[
        Path | None, _option(_RESULTS, "A page with charts in this folder, of this run or of --results.", "DIR")
    ] = None,
    results: Annotated[
        list[Path] | None,
        _option(_RESULTS, "With --report: results of earlier runs, repeatable; measure nothing.", "DIR"),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, _option(_OTHER, "What changed between two results folders.", "A B")
    ] = None,
    trace: Annotated[
        Path | None, _option(_OTHER, "Draw into --out which patches of this video became one token.", "VIDEO")
    ] = None,
    complexity: Annotated[bool, _option(_OTHER, "Count operations beside the paper's.", name="--complexity")] = False,
    count: Annotated[
        str | None,
        _option(
            _OTHER,
            "With --complexity: count also the running encoder (eager), or that and its ONNX graph (minutes).",
            "eager|graph",
        ),
    ] = None,
    kernels: Annotated[bool, _option(_OTHER, "Time the kernels alone; needs a GPU.", name="--kernels")] = False,
    dtype: Annotated[
        str | None, _option(_OTHER, "With --kernels: of the tokens, bf16 by default.", "fp32,fp16,bf16")
    ] = None,
    resources: Annotated[
        bool,
        _option(_OTHER, "With --kernels: compile them, and show what they take; no GPU.", name="--resources"),
    ] = False,
) -> None:
    """Videos/s, operations and tokens of every backend or method beside the original PyTorch path."""
    commands.check_writable(json)
    if resources and not kernels:
        raise UsageError("--resources shows what kernels take. Write: tempme-bench --kernels --resources")
    if count is not None and (not complexity or count not in (commands.EAGER, commands.GRAPH)):
        raise UsageError(f"--count {count!r}: write tempme-bench --complexity --count eager, or --count graph.")
    if dtype is not None and not kernels:
        raise UsageError("--dtype is that of timed kernels. Write: tempme-bench --kernels --dtype ...")
    if results and report is None:
        raise UsageError("--results are read for a page. Write: tempme-bench --report DIR --results DIR")
    counts = None if frames is None else tuple(_positive("frames", item) for item in _listed("frames", frames))
    batches = None if batch is None else tuple(sorted(_positive("batch", item) for item in _listed("batch", batch)))
    if compare is not None:
        _refuse_other_options(context, "--compare reads two results and measures nothing", _COMPARING)
        commands.compare(*compare, seed, json)
    elif results:
        assert report is not None, "checked above"
        _refuse_other_options(context, "--results are read and nothing is measured; it", _READING)
        commands.write_page(report, results)
    elif trace is not None:
        _refuse_other_options(context, "--trace draws and measures nothing; it", _DRAWING)
        if out is None:
            raise UsageError("--trace draws into a folder. Add --out DIR.")
        commands.draw(trace, out, source, profile, _one("frames", counts), seed, activation, allow_damaged)
    elif complexity:
        _refuse_other_options(context, "--complexity measures nothing", _COUNTING)
        commands.count(profile, _one("frames", counts), count, json)
    elif resources:
        _refuse_other_options(context, "--resources compiles and measures nothing", _COMPILING)
        commands.compile_kernels(profile, _one("frames", counts), json)
    elif kernels:
        _refuse_other_options(context, "--kernels times kernels alone", _TIMING_KERNELS)
        dtypes = tuple(_listed("dtype", "bf16" if dtype is None else dtype))
        commands.time_kernels(profile, _one("frames", counts), batches or (1,), dtypes, json)
    else:
        if mode not in (None, *MODES):
            raise UsageError(f"--mode {mode!r} is not one of {', '.join(MODES)}.")
        if video and mode != "end-to-end":
            raise UsageError("--video is for the whole way. Add --mode end-to-end.")
        if allow_damaged and not video:
            raise UsageError("--allow-damaged is of videos, and none was given. Add --video FILE, or leave it out.")
        if csv and out is None:
            raise UsageError("--csv writes beside the other results. Add --out DIR.")
        config = BenchmarkConfig(
            source=source,
            profile=profile,
            activation=activation,
            frames=counts,
            backends=None if backends is None else tuple(_listed("backends", backends)),
            methods=None if methods is None else tuple(_listed("methods", methods)),
            mode=mode or "latency",
            batches=batches,
            videos=tuple(video or ()),
            allow_damaged=allow_damaged,
            device=device,
            seconds=seconds,
            budget=budget,
            samples=samples,
            seed=seed,
            handicap=tuple(map(_handicap, handicap or ())),
            command=shell_command("tempme-bench", *sys.argv[1:]),
        )
        if commands.measure(config, commands.Delivery(json, out, csv, report), strict=strict):
            raise SystemExit(_INTERRUPTED)


def _refuse_other_options(context: typer.Context, reason: str, heeded: set[str]) -> None:
    """Raise UsageError for options that would have to be ignored."""
    given = [
        name
        for name in context.params
        if name not in heeded and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise UsageError(f"{reason} and cannot heed {', '.join(given)}. Leave that out.")


def _listed(option: str, text: str) -> list[str]:
    """The items of a comma-separated option. Raises UsageError for an empty or repeated one."""
    items = [item.strip() for item in text.split(",")]
    if "" in items or len(set(items)) < len(items):
        raise UsageError(f"--{option} {text!r} must list different items with commas between.")
    return items


def _positive(option: str, item: str) -> int:
    if not item.isdecimal() or int(item) < 1:
        raise UsageError(f"--{option}: {item!r} is not a whole number from 1 up.")
    return int(item)


def _one(option: str, items: tuple[int, ...] | None) -> int | None:
    """The only item, where one is given. Raises UsageError for several."""
    if items is not None and len(items) > 1:
        raise UsageError(f"--{option} takes one number here, found {len(items)}.")
    return None if items is None else items[0]


def _handicap(text: str) -> tuple[str, float]:
    """NAME:PERCENT. Raises UsageError for anything else."""
    name, _, percent = text.rpartition(":")
    try:
        value = float(percent)
    except ValueError:
        value = -1.0
    if not name or not 0 < value < float("inf"):
        raise UsageError(f"--handicap {text!r} is not NAME:PERCENT with a percentage above 0, such as ort:10.")
    return name, value


@line.command(GPU_CHECK, 4, 130)
def gpu_check(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Where gpu-check.json and the logs go.")],
    minutes: Annotated[
        float, typer.Option(help="For all steps together, most valuable first; what is left out is said.", metavar="N")
    ] = 30.0,
    steps: Annotated[str | None, typer.Option(help="Only these, by name.", metavar="A,B")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Rehearse every step on the CPU; nothing is measured.")
    ] = False,
) -> None:
    """Test, compare and time kernels and encoder on this machine's GPU. Exits with 1 where a step failed.

    Every step is saved as soon as it is done.
    """
    from tempme_export.bench.gpu.check import check

    raise SystemExit(check(folder, steps, dry_run=dry_run, minutes=minutes))


main = line.main()

if __name__ == "__main__":
    main()
