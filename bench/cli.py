"""`tempme-bench`: arguments -> what was asked for -> the function that answers it (`commands`)."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tempme_export.bench import commands
from tempme_export.bench.config import BenchmarkConfig
from tempme_export.bench.options import (
    MODEL,
    PROTOCOL,
    BatchesOption,
    Count,
    FramesOption,
    Mode,
    ProfileOption,
    SeedOption,
    SweepOption,
    listed,
    names,
    number,
    numbers,
    slowdown,
)
from tempme_export.cli.app import CommandLine
from tempme_export.cli.options import (
    OUTPUT,
    ActivationOption,
    DamagedOption,
    DeviceOption,
    JsonOption,
    value,
)
from tempme_export.errors import UsageError
from tempme_export.names import command as shell_command

line = CommandLine("tempme-bench")
_INTERRUPTED = 130
_SOURCE = "Bundle folder or checkpoint. With neither, weights are drawn at random."


@line.default(3, 4, 5, 6, 7, 130)
def bench(
    source: Annotated[
        str | None, typer.Argument(metavar="BUNDLE|CKPT", autocompletion=line.complete, help=_SOURCE)
    ] = None,
    profile: ProfileOption = None,
    activation: ActivationOption = None,
    frames: SweepOption = None,
    backends: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            rich_help_panel=MODEL,
            help="Backends to measure with the original path. Default: all that run here.",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="A,B|all",
            rich_help_panel=MODEL,
            help="Methods side by side on the same weights: on the original path, or one of --backends.",
        ),
    ] = None,
    batches: BatchesOption = None,
    device: DeviceOption = "cpu",
    mode: Annotated[
        Mode,
        typer.Option(
            rich_help_panel=PROTOCOL, help="Batch 1, batches up to saturation, or the whole way from a video file."
        ),
    ] = Mode.LATENCY,
    video: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=PROTOCOL,
            help="Video for end-to-end; repeatable. Default: a rendered video.",
        ),
    ] = None,
    allow_damaged: DamagedOption = False,
    seconds: Annotated[
        float, typer.Option(metavar="S", rich_help_panel=PROTOCOL, help="Minimum time of each candidate.")
    ] = 1.0,
    samples: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=PROTOCOL, help="Minimum samples of each candidate.")
    ] = 20,
    budget: Annotated[
        float, typer.Option(metavar="S", rich_help_panel=PROTOCOL, help="Maximum time of one comparison.")
    ] = 120.0,
    seed: SeedOption = 0,
    strict: Annotated[
        bool, typer.Option("--strict", rich_help_panel=PROTOCOL, help="Exit with 7 if a ratio did not converge.")
    ] = False,
    slow_down: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:P",
            rich_help_panel=PROTOCOL,
            help="Slow a candidate down by P percent, to test that compare notices.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", rich_help_panel=OUTPUT, help="New folder of results, Parquet and JSON."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Speed, operations and tokens of every backend or method, beside the original PyTorch path.

    tempme-bench ckpt.tempme --mode throughput     batches 1, 2, 4, ... up to saturation
    tempme-bench compare A B                       changes between two folders of --out

    Parity comes first: a candidate that computes something else is not timed.
    """
    if video and mode is not Mode.END_TO_END:
        raise UsageError("--video is for the whole way. Add --mode end-to-end.")
    if allow_damaged and not video:
        raise UsageError("--allow-damaged is of videos, and none was given. Add --video FILE, or leave it out.")
    sizes = numbers("--batches", batches)
    config = BenchmarkConfig(
        source=source,
        profile=profile,
        activation=value(activation),
        frames=numbers("--frames", frames),
        backends=names("--backends", backends),
        methods=names("--methods", methods),
        mode=mode.value,
        batches=None if sizes is None else tuple(sorted(sizes)),
        videos=tuple(video or ()),
        allow_damaged=allow_damaged,
        device=device,
        seconds=seconds,
        budget=budget,
        samples=samples,
        seed=seed,
        slowdowns=tuple(map(slowdown, slow_down or ())),
        command=shell_command("tempme-bench", *sys.argv[1:]),
    )
    if commands.measure(config, out, as_json, strict=strict):
        raise SystemExit(_INTERRUPTED)


@line.command("compare", 3)
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", show_default=False, help="Results before a change.")],
    after: Annotated[Path, typer.Argument(metavar="B", show_default=False, help="Results after it.")],
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Show changes of speed between two folders of results, and which of them are more than noise."""
    commands.compare(before, after, seed, as_json)


@line.command("report", 3, 6)
def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="DIR", show_default=False, help="Folders of results, from --out.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", rich_help_panel=OUTPUT, show_default=False, help="Folder of the page.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Write one HTML page with charts, and the charts as PNG, from results of earlier runs."""
    commands.write_page(out, results, as_json)


@line.command("complexity", 3, 5)
def complexity(
    profile: ProfileOption = None,
    frames: FramesOption = None,
    by: Annotated[
        Count | None,
        typer.Option("--count", help="Also count the running encoder, or that and its ONNX graph (minutes)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count operations and tokens by formula beside the paper's, and those of a profile."""
    commands.count(profile, number("--frames", frames), value(by), as_json)


@line.command("kernels", 3, 4)
def kernels(
    profile: ProfileOption = None,
    frames: FramesOption = None,
    batches: BatchesOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="A,B", rich_help_panel=MODEL, help="fp32, fp16 or bf16. Default: bf16."),
    ] = None,
    resources: Annotated[
        bool, typer.Option("--resources", help="Compile them and show registers and memory; needs no GPU.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Time the fused kernels of each block beside plain PyTorch. Needs a GPU."""
    count = number("--frames", frames)
    if resources:
        if batches is not None or dtype is not None:
            raise UsageError("--resources compiles and times nothing. Leave out --batches and --dtype.")
        commands.compile_kernels(profile, count, as_json)
    else:
        sizes = tuple(sorted(numbers("--batches", batches) or (1,)))
        commands.time_kernels(profile, count, sizes, tuple(listed("--dtype", dtype or "bf16")), as_json)


@line.command("visualize", 3, 4)
def visualize(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", show_default=False, help="Video file.")],
    source: Annotated[str | None, typer.Argument(metavar="BUNDLE|CKPT", show_default=False, help=_SOURCE)] = None,
    *,
    out: Annotated[
        Path, typer.Option(metavar="DIR", rich_help_panel=OUTPUT, show_default=False, help="Folder of the pictures.")
    ],
    profile: ProfileOption = None,
    activation: ActivationOption = None,
    frames: FramesOption = None,
    seed: SeedOption = 0,
    allow_damaged: DamagedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw which patches of which frames of a video became one token."""
    model = commands.Model(source, profile, number("--frames", frames), value(activation), seed)
    commands.draw(model, video, out, allow_damaged, as_json)


@line.command("gpu-check", 4, 130)
def gpu_check(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of gpu-check.json and the logs.")],
    minutes: Annotated[
        float,
        typer.Option(help="Time limit of all steps, the most valuable first; steps left out are named.", metavar="N"),
    ] = 30.0,
    steps: Annotated[str | None, typer.Option(help="Run these steps only.", metavar="A,B")] = None,
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
