"""`tempme-eval`: arguments -> retrieval metrics of a bundle or a checkpoint -> exit code."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tempme_export.artifacts.registry import offered
from tempme_export.cli import evaluate_console
from tempme_export.cli.entry import entry
from tempme_export.cli.terminal import write_json
from tempme_export.errors import UsageError
from tempme_export.files import write_file

if TYPE_CHECKING:
    from tempme_export.data.annotations import RetrievalData
    from tempme_export.data.frames import FrameSource
    from tempme_export.evaluation.encoders import Encoder

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_SPLITS = ("train", "test")


def _check_file(option: str, path: Path | None) -> None:
    """Raises UsageError, before hours of work, for a file that could not be written after it."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder. Give the name of a file in it.")
    parent = path.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path} cannot be written: {parent} is not a folder that can be written to.")


def _check_folder(option: str, path: Path | None) -> None:
    if path is not None and path.exists() and not path.is_dir():
        raise UsageError(f"{option} {path} is a file. Give a folder, which need not exist.")


def _source(
    data: "RetrievalData",
    encoder: "Encoder",
    cache: Path | None,
    workers: int,
    allow_damaged: bool,
    progress: Callable[[str, int, int], None],
) -> "FrameSource":
    """Frames of the data's videos, decoded as they are asked for, or all of them from a cache, filled if need be."""
    from tempme_export.data.frame_cache import FrameCache
    from tempme_export.data.frames import FrameFiles

    if cache is None:
        return FrameFiles(data.clips, encoder.frames, encoder.preprocess, allow_damaged)
    frames = FrameCache.open(cache, data.clips, encoder.frames, encoder.preprocess, allow_damaged)
    frames.fill(workers, lambda done, total: progress("frames", done, total), retry_failed=True)
    return frames


@app.command()
def command(
    source: Annotated[
        str,
        typer.Argument(metavar="BUNDLE|CKPT", help="Bundle folder, checkpoint file, or open_clip:MODEL/PRETRAINED."),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="msrvtt:DIR, activitynet:DIR, didemo:DIR, lsmdc:DIR, synthetic:DIR, or a "
            ".csv or .parquet file with the columns video and caption.",
        ),
    ],
    videos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the videos lie. Default: below DIR.")
    ] = None,
    split: Annotated[str, typer.Option(help="train or test; a file of one's own has no splits.")] = "test",
    profile: Annotated[str | None, typer.Option(help="Profile name or .toml path of a CKPT. Default: its own.")] = None,
    activation: Annotated[
        str | None,
        typer.Option(
            help="quickgelu or gelu in the towers of a CKPT. Default: as it says, else its profile.",
        ),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help=f"BUNDLE: {', '.join(offered())}. CKPT: original, torch. Default: the first.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. Default: cpu.")] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep embeddings here; an interrupted run goes on from them.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep decoded frames here.")] = None,
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Processes that decode videos; 0: this one.")] = min(
        4, os.cpu_count() or 1
    ),
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Videos per call.")] = 8,
    allow_damaged: Annotated[
        bool, typer.Option("--allow-damaged", help="Take damaged pictures of videos as a player shows them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table here too.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table here too.")] = None,
) -> None:
    """Text-to-video and video-to-text retrieval: recall at 1, 5 and 10 in percent, median and mean rank.

    Ties and scores that are no numbers count against the model. Videos that cannot be read are listed, left out with
    their captions, and counted.

    Exit codes: 0 done, 2 usage, 3 checkpoint, bundle, profile, data or no readable video, 4 backend or device
    missing, 6 a file could not be written.
    """
    if split not in _SPLITS:
        raise UsageError(f"--split {split!r} is not one of {', '.join(_SPLITS)}.")
    for option, path in (("--parquet", parquet), ("--csv", csv)):
        _check_file(option, path)
    for option, path in (("--features", features), ("--cache", cache)):
        _check_folder(option, path)
    if parquet is not None and csv is not None and parquet.absolute() == csv.absolute():
        raise UsageError(f"--parquet and --csv both name {csv}. Give two files.")

    from tempme_export.data.annotations import open_data

    asked = open_data(data, "train" if split == "train" else "test", videos)
    evaluate_console.show_data(asked)

    from tempme_export.evaluation.encoders import open_encoder
    from tempme_export.evaluation.evaluate import evaluate

    encoder = open_encoder(source, profile, backend, device, activation)
    try:
        evaluate_console.show_encoder(encoder)
        with evaluate_console.warnings_as_lines(), evaluate_console.progress() as progress:
            frames = _source(asked, encoder, cache, workers, allow_damaged, progress)
            found = evaluate(
                encoder, asked, frames, features, progress, backend=encoder.backend, batch=batch, workers=workers
            )
    finally:
        encoder.close()
    evaluate_console.show_evaluation(found)
    for path, write in ((parquet, found.to_frame().write_parquet), (csv, found.to_frame().write_csv)):
        if path is not None:
            write_file(path, write)
            evaluate_console.show_file(path)
    if as_json:
        write_json(found.to_dict())


main = entry(app)


if __name__ == "__main__":
    main()
