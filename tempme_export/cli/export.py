"""`tempme-export`: arguments -> pipeline calls -> exit code (design section 5)."""

from pathlib import Path
from typing import Annotated

import typer

from tempme_export.cli import console
from tempme_export.cli.entry import entry
from tempme_export.errors import UsageError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _batch(text: str | None) -> tuple[int, int, int] | None:
    """MIN:OPT:MAX. Raises UsageError for anything else."""
    if text is None:
        return None
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise UsageError(f"--batch {text!r} is not MIN:OPT:MAX, three whole numbers like 1:8:64.")
    low, usual, high = map(int, parts)
    if not 1 <= low <= usual <= high:
        raise UsageError(f"--batch {text!r} must have 1 <= MIN <= OPT <= MAX.")
    return low, usual, high


def _check_alone(context: typer.Context, main: str, allowed: tuple[str, ...], why: str) -> None:
    """Raise UsageError where options were given that a command has no use for; `main` is the one that chose it."""
    names = {parameter.name: parameter.opts[-1] for parameter in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    others = sorted(names[name] for name in given - {*allowed, "as_json"})
    if others:
        raise UsageError(f"{', '.join(others)} cannot be combined with {main}: {why}.")


def _check_engine(trt: bool, dry_run: bool, precision: str, device: str, workspace: float | None, log: bool) -> None:
    """Refuse in a moment, before anything heavy is imported, what cannot be built here."""
    if not trt:
        if workspace is not None or log:
            raise UsageError("--workspace and --verbose are for the builder of an engine: --trt or --rebuild DIR.")
        return
    from tempme_export.exporters.trt.builder import check_builder, check_options

    check_options(precision, workspace)
    if not dry_run:
        check_builder(device)


def _is_bundle(path: str) -> bool:
    from tempme_export.artifacts.bundle import MANIFEST

    return (Path(path) / MANIFEST).is_file()


@app.command()
def command(
    context: typer.Context,
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CKPT", help="Checkpoint file, or open_clip:MODEL/PRETRAINED.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Profile name or .toml path. Default: inferred.")] = None,
    activation: Annotated[
        str | None,
        typer.Option(
            help="quickgelu or gelu in the towers. Default: as the checkpoint says, else the profile.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Bundle folder. Default: CKPT with .tempme.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16 inside the graphs, or int8 for CPUs.")] = "fp32",
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="VIDEOS_OR_DATA",
            help="For int8: a folder of videos like those to be indexed, DATA as for --gate (its training split), or a "
            ".npz file of clips.",
        ),
    ] = None,
    ranges: Annotated[
        str | None,
        typer.Option(help="For int8: activations' ranges by minmax, percentile or entropy. Default: minmax."),
    ] = None,
    batch: Annotated[str | None, typer.Option(metavar="MIN:OPT:MAX", help="Videos per call.")] = None,
    frame_mask: Annotated[bool, typer.Option("--frame-mask", help="Add the input frame_mask.")] = False,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help="video.onnx also returns where every token was merged, assign_00, assign_01, ...; the others do not.",
        ),
    ] = False,
    trt: Annotated[
        bool, typer.Option("--trt", help="Also build video.plan, a TensorRT engine for the GPU here.")
    ] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="Also compile video.pt2 for this machine's DEVICE.")] = False,
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="Where parity is judged, and what --pt2 is for: cpu, cuda or cuda:N. An engine is for "
            "the first GPU, or cuda:N.",
        ),
    ] = "cpu",
    opset: Annotated[int, typer.Option(help="ONNX opset of video.onnx and text.onnx: 18, 20 or 23.")] = 18,
    workspace: Annotated[
        float | None, typer.Option(metavar="GIB", help="Most GPU memory for the scratch of a layer of the engine.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the log of the engine's builder.")] = False,
    rebuild: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Build a bundle's engine again, for the GPU here.")
    ] = None,
    triton_repo: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write a model repository for Triton Inference Server. With a bundle as CKPT, only that.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Threads of a processor for each model of --triton-repo. Default: its cores."),
    ] = None,
    verify: Annotated[Path | None, typer.Option(metavar="DIR", help="Check a bundle instead of building one.")] = None,
    gate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Also refuse a bundle that retrieves worse than the original path here: msrvtt:DIR, "
            "activitynet:DIR, didemo:DIR, lsmdc:DIR (the test split), or a .csv or .parquet of video, caption.",
        ),
    ] = None,
    gate_videos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the gate's video files. Default: where DATA says.")
    ] = None,
    allow_damaged: Annotated[
        bool,
        typer.Option(
            "--allow-damaged",
            help="Take damaged pictures of the videos of --calibrate and --gate as a player shows them.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be built. Writes nothing, with --trt the engine's graph.")
    ] = False,
) -> None:
    """Turn a TempMe checkpoint into a verified bundle, or verify one.

    Exit codes: 0 done, 2 usage, 3 checkpoint, profile, video, data or bundle, 4 backend or device missing, 5 parity
    or gate failed, 6 build failed.
    """
    if sum(one is not None for one in (checkpoint, verify, rebuild)) != 1:
        raise UsageError(
            "give either a checkpoint to export or --verify DIR or --rebuild DIR. See tempme-export --help."
        )
    if verify is not None:
        if gate is not None or gate_videos is not None:
            raise UsageError("--gate compares with a checkpoint while a bundle is built; --verify has none.")
        _check_alone(context, "--verify", ("verify", "device"), "it checks a bundle as it is")
        from tempme_export.cli.bundle_commands import verify_bundle

        verify_bundle(verify, device, as_json)
        return
    if rebuild is not None:
        _check_alone(
            context,
            "--rebuild",
            ("rebuild", "device", "workspace", "verbose"),
            "everything else is as the bundle was built",
        )
        from tempme_export.exporters.trt.builder import BUNDLE_STAYS, check_builder, check_workspace

        check_workspace(workspace)
        check_builder(device, BUNDLE_STAYS)
        from tempme_export.cli.export_commands import rebuild_engine

        rebuild_engine(rebuild, device, workspace, verbose, as_json)
        return
    assert checkpoint is not None, "one of the three was given"
    if threads is not None and triton_repo is None:
        raise UsageError("--threads is for the models of --triton-repo DIR. Give that too, or leave it out.")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads} is not a whole number of at least 1.")
    if triton_repo is not None and _is_bundle(checkpoint):
        allowed = ("checkpoint", "triton_repo", "threads", "force")
        _check_alone(context, "--triton-repo of a bundle", allowed, "nothing is built")
        from tempme_export.cli.bundle_commands import serve_bundle

        serve_bundle(Path(checkpoint), triton_repo, threads, force, as_json)
        return
    sizes = _batch(batch)
    _check_engine(trt, dry_run, precision, device, workspace, verbose)
    from tempme_export.cli.export_commands import export_bundle, plan_bundle
    from tempme_export.pipeline.spec import ExportSpec, asked

    spec = ExportSpec(
        checkpoint=checkpoint,
        profile=profile,
        activation=activation,
        out=out,
        precision=precision,
        batch=sizes,
        frame_mask=frame_mask,
        trace=trace,
        options=asked([("pt2", pt2), ("trt", trt)]),
        device=device,
        opset=opset,
        calibrate=calibrate,
        ranges=ranges,
        gate=gate,
        gate_videos=gate_videos,
        allow_damaged=allow_damaged,
        workspace_gib=workspace,
        verbose=verbose,
        force=force,
    )
    if dry_run:
        plan_bundle(spec, triton_repo, as_json)
    else:
        export_bundle(spec, triton_repo, threads, as_json)


main = entry(app, console.show_error)


if __name__ == "__main__":
    main()
