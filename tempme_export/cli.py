"""`tempme-export`: arguments -> pipeline calls -> exit code (design section 5)."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tempme_export import console
from tempme_export.errors import BackendError, TempMeExportError, UsageError

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


def _check_formats(trt: bool) -> None:
    if trt:
        raise BackendError("--trt: this version builds no TensorRT engines. Run the command without --trt.")


def _verify(bundle: Path, device: str, as_json: bool) -> None:
    from tempme_export.pipeline import verify

    reports = verify(bundle, device=device, progress=console.show_progress)
    if as_json:
        console.write_json({"bundle": str(bundle), "parity": [report.to_dict() for report in reports]})
    _say_done(f"{bundle} verified", [report.status for report in reports])


def _say_done(text: str, statuses: list[str]) -> None:
    if "not run" in statuses:
        text += "; parity was NOT RUN for the lines above, so nothing is proven about them on this machine"
    console.show_done(text)


def _dry_run(
    checkpoint: str,
    profile: str | None,
    out: Path | None,
    precision: str,
    batch: tuple[int, int, int] | None,
    force: bool,
    trace: bool,
    pt2: bool,
    gate: str | None,
    gate_videos: Path | None,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from tempme_export.bundle import PT2, SELFTEST, TEXT, VIDEO, check_destination
    from tempme_export.pipeline import (
        default_output,
        estimate_bytes,
        requested_gate,
        requested_recipe,
        scratch_bytes,
    )

    recipe = requested_recipe(checkpoint, profile, batch, trace)
    gate_data = requested_gate(gate, gate_videos, recipe)
    target = out or default_output(checkpoint)
    needed = estimate_bytes(recipe, precision, pt2)
    files = [SELFTEST, VIDEO, TEXT, *([PT2] if pt2 else [])]
    console.show_recipe(recipe)
    if gate_data is not None:
        console.show_gate_data(gate_data)
    check_destination(target, needed + (scratch_bytes(recipe, precision) if pt2 else 0), force)
    if as_json:
        document = {"out": str(target), "profile": recipe.profile.to_dict(), "schedule": asdict(recipe.plan)}
        asked = {} if gate_data is None else {"gate": gate_data.to_dict()}
        console.write_json({**document, "files": files, **asked})
    console.show_done(
        f"dry run: nothing written. {target} would take about {needed / 1e6:.0f} MB: {', '.join(files)}, manifest.json"
    )


@app.command()
def command(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CKPT", help="Checkpoint file, or open_clip:MODEL/PRETRAINED.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Profile name or .toml path. Default: inferred.")] = None,
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
        str, typer.Option(help="For int8: activations' ranges by minmax, percentile or entropy.")
    ] = "minmax",
    batch: Annotated[str | None, typer.Option(metavar="MIN:OPT:MAX", help="Videos per call.")] = None,
    frame_mask: Annotated[bool, typer.Option("--frame-mask", help="Add the input frame_mask.")] = False,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help="video.onnx also returns where every token was merged, assign_00, assign_01, ...; video.pt2 does not.",
        ),
    ] = False,
    trt: Annotated[bool, typer.Option("--trt", help="Also build a TensorRT engine (not in this version).")] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="Also compile video.pt2 for this machine's DEVICE.")] = False,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where parity is judged, and what --pt2 is for: cpu, cuda or cuda:N.")
    ] = "cpu",
    opset: Annotated[int, typer.Option(help="ONNX opset: 18, 20 or 23.")] = 18,
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
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be built, write nothing.")] = False,
) -> None:
    """Turn a TempMe checkpoint into a verified bundle, or verify one.

    Exit codes: 0 done, 2 usage, 3 checkpoint, profile, video, data or bundle, 4 backend or device missing, 5 parity
    or gate failed, 6 build failed.
    """
    if (checkpoint is None) == (verify is None):
        raise UsageError("give either a checkpoint to export or --verify DIR. See tempme-export --help.")
    _check_formats(trt)
    if verify is not None:
        if gate is not None or gate_videos is not None:
            raise UsageError("--gate compares with a checkpoint while a bundle is built; --verify has none.")
        _verify(verify, device, as_json)
        return
    assert checkpoint is not None, "one of the two was given"
    sizes = _batch(batch)
    from tempme_export.pipeline import check_request, export

    if dry_run:
        check_request(precision, sizes, opset, device, pt2, calibrate, ranges)
        _dry_run(checkpoint, profile, out, precision, sizes, force, trace, pt2, gate, gate_videos, as_json)
        return
    started = time.perf_counter()
    bundle = export(
        checkpoint,
        profile,
        out,
        precision=precision,
        batch=sizes,
        frame_mask=frame_mask,
        trace=trace,
        pt2=pt2,
        device=device,
        opset=opset,
        calibrate=calibrate,
        ranges=ranges,
        force=force,
        gate=gate,
        gate_videos=gate_videos,
        progress=console.show_progress,
    )
    if as_json:
        console.write_json({"bundle": str(bundle.path), "manifest": bundle.manifest})
    gated = bundle.manifest["gate"]
    statuses = [report["status"] for report in [*bundle.manifest["parity"], *(gated["reports"] if gated else ())]]
    _say_done(f"{bundle.path} in {time.perf_counter() - started:.0f} s", statuses)


def main() -> None:
    """Entry point. A user's error is one message and its exit code; anything else keeps its traceback."""
    try:
        app()
    except TempMeExportError as error:
        console.show_error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
