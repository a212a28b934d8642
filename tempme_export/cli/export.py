"""`tempme-export`: arguments -> pipeline calls -> exit code."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tempme_export.artifacts import registry
from tempme_export.cli.app import CommandLine
from tempme_export.cli.artifact_options import asks_for_artifacts
from tempme_export.cli.options import (
    OUTPUT,
    ActivationOption,
    BundleArgument,
    DamagedOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    ProfileOption,
    value,
)
from tempme_export.errors import UsageError

line = CommandLine(
    "tempme-export",
    moved={
        "--verify": "tempme-export verify BUNDLE",
        "--rebuild": "tempme-export rebuild BUNDLE",
        "--triton-repo": "tempme-export triton-repo BUNDLE DIR",
        "--threads": "tempme-export triton-repo BUNDLE DIR --threads N",
        "--trace": "tempme-export CKPT --expose-merges",
        "--batch": "tempme-export CKPT --batch-range MIN:OPT:MAX",
    },
)
_GRAPH, _INT8, _ACCEPTANCE, _ENGINE = "Graphs", "int8", "Acceptance", "Files for one machine"


class Precision(StrEnum):
    """Of weights and activations."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class Ranges(StrEnum):
    """Calibration methods."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"


WorkspaceOption = Annotated[
    float | None,
    typer.Option(
        "--workspace", metavar="GIB", rich_help_panel=_ENGINE, help="TensorRT's workspace limit; by default all memory."
    ),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", rich_help_panel=_ENGINE, help="Show TensorRT's build log.")]


def _batch_range(text: str | None) -> tuple[int, int, int] | None:
    """MIN:OPT:MAX. Raises UsageError for anything else."""
    if text is None:
        return None
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise UsageError(f"--batch-range: found {text!r}, expected MIN:OPT:MAX, three whole numbers like 1:8:64.")
    low, usual, high = map(int, parts)
    if not 1 <= low <= usual <= high:
        raise UsageError(f"--batch-range: found {text!r}, expected 1 <= MIN <= OPT <= MAX.")
    return low, usual, high


def _check_machine(
    artifacts: frozenset[str], dry_run: bool, precision: str, device: str, workspace: float | None, log: bool
) -> None:
    """Refuse in a moment, before anything heavy is imported, what cannot be built here."""
    demanding = [one.requirements for one in registry.demanding(artifacts)]
    if not demanding and (workspace is not None or log):
        raise UsageError("--workspace and --verbose are for the builder of an engine. Add --trt.")
    for required in filter(None, demanding):
        required.check_options(precision, workspace)
        if not dry_run:
            required.check_builder(device)


@line.default(3, 4, 5, 6)
@asks_for_artifacts(_ENGINE)
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CKPT",
            autocompletion=line.complete,
            show_default=False,
            help="A .pt, .pth, .safetensors or Hugging Face checkpoint, or open_clip:MODEL/PRETRAINED.",
        ),
    ],
    profile: ProfileOption = None,
    activation: ActivationOption = None,
    device: DeviceOption = "cpu",
    precision: Annotated[
        Precision,
        typer.Option(rich_help_panel=_GRAPH, help="Number format of weights and activations; int8 is for CPUs."),
    ] = Precision.FP32,
    batch_range: Annotated[
        str | None,
        typer.Option(metavar="MIN:OPT:MAX", rich_help_panel=_GRAPH, help="Videos per call. Default: the profile's."),
    ] = None,
    frame_mask: Annotated[
        bool, typer.Option("--frame-mask", rich_help_panel=_GRAPH, help="Add the input frame_mask, for short videos.")
    ] = False,
    expose_merges: Annotated[
        bool,
        typer.Option(
            "--expose-merges",
            rich_help_panel=_GRAPH,
            help=f"Add the outputs assign_00, assign_01, ... to {registry.exposing().file}: the token that each token "
            "was merged into.",
        ),
    ] = False,
    opset: Annotated[int, typer.Option(rich_help_panel=_GRAPH, help="ONNX opset: 18, 20 or 23.")] = 18,
    artifacts: frozenset[str] = frozenset(),
    workspace: WorkspaceOption = None,
    verbose: VerboseOption = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="VIDEOS|DATA",
            rich_help_panel=_INT8,
            help="Calibrate on a folder of videos, on DATA as for --gate (its training split), or on a .npz file of "
            "clips.",
        ),
    ] = None,
    ranges: Annotated[
        Ranges | None, typer.Option(rich_help_panel=_INT8, help="Calibration method. Default: minmax.")
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            rich_help_panel=_ACCEPTANCE,
            help="Refuse a bundle that retrieves worse than the original path on msrvtt:DIR, activitynet:DIR, "
            "didemo:DIR, lsmdc:DIR (test split), or a .csv or .parquet file of video, caption.",
        ),
    ] = None,
    gate_videos: Annotated[
        Path | None,
        typer.Option(metavar="DIR", rich_help_panel=_ACCEPTANCE, help="Videos of --gate. Default: where DATA says."),
    ] = None,
    allow_damaged: DamagedOption = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", rich_help_panel=OUTPUT, help="Bundle folder. Default: CKPT with .tempme."),
    ] = None,
    force: ForceOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            rich_help_panel=OUTPUT,
            help="Show what would be built and write nothing; with --trt, write the engine's ONNX graph alone.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a TempMe checkpoint to a verified bundle: ONNX graphs of both towers, and on request more.

    tempme-export ckpt.pt          ckpt.tempme, which runs wherever ONNX runs
    tempme-export ckpt.pt --trt    also a TensorRT engine with the fused kernels as plugins
    """
    sizes = _batch_range(batch_range)
    _check_machine(artifacts, dry_run, precision, device, workspace, verbose)
    from tempme_export.cli.export_commands import export_bundle, preview_bundle
    from tempme_export.pipeline.spec import ExportSpec

    spec = ExportSpec(
        checkpoint=checkpoint,
        profile=profile,
        activation=value(activation),
        out=out,
        precision=precision.value,
        batch=sizes,
        frame_mask=frame_mask,
        expose_merges=expose_merges,
        options=artifacts,
        device=device,
        opset=opset,
        calibrate=calibrate,
        ranges=value(ranges),
        gate=gate,
        gate_videos=gate_videos,
        allow_damaged=allow_damaged,
        workspace_gib=workspace,
        verbose=verbose,
        force=force,
    )
    if dry_run:
        preview_bundle(spec, as_json)
    else:
        export_bundle(spec, as_json)


@line.command("verify", 3, 4, 5)
def verify(bundle: BundleArgument, device: DeviceOption = "cpu", as_json: JsonOption = False) -> None:
    """Check every byte of a bundle and run its self-test on this machine."""
    from tempme_export.cli.bundle_commands import verify_bundle

    verify_bundle(bundle, device, as_json)


@line.command("rebuild", 3, 4, 5, 6)
def rebuild(
    bundle: BundleArgument,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cuda or cuda:N. Default: the first GPU.")
    ] = None,
    workspace: WorkspaceOption = None,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build a bundle's TensorRT engine again, for the GPU, driver and TensorRT of this machine."""
    gpu = device or "cpu"  # which stands for the first GPU
    for required in filter(None, (one.requirements for one in registry.rebuilt())):
        required.check_rebuild(gpu, workspace)
    from tempme_export.cli.export_commands import rebuild_engine

    rebuild_engine(bundle, gpu, workspace, verbose, as_json)


@line.command("triton-repo", 3, 6)
def triton_repo(
    bundle: BundleArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="Folder of the repository.")],
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="CPU threads of each model. Default: all cores.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model repository for Triton Inference Server from a bundle."""
    from tempme_export.cli.bundle_commands import serve_bundle

    serve_bundle(bundle, folder, threads, force, as_json)


main = line.main()


if __name__ == "__main__":
    main()
