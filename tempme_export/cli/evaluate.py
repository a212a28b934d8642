"""`tempme-eval`: arguments -> retrieval metrics of a bundle or a checkpoint -> exit code."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tempme_export.artifacts.registry import offered
from tempme_export.cli import evaluate_console
from tempme_export.cli.app import CommandLine
from tempme_export.cli.options import (
    OUTPUT,
    ActivationOption,
    DamagedOption,
    JsonOption,
    ProfileOption,
    Split,
    check_file,
    value,
)
from tempme_export.cli.terminal import write_json
from tempme_export.errors import UsageError
from tempme_export.files import write_file
from tempme_export.progress import Progress

if TYPE_CHECKING:
    from tempme_export.data.annotations import RetrievalData
    from tempme_export.data.frames import FrameSource
    from tempme_export.evaluation.encoders import Encoder

line = CommandLine("tempme-eval")
_WORK = "Speed"


def _check_folder(option: str, path: Path | None) -> None:
    if path is not None and path.exists() and not path.is_dir():
        raise UsageError(f"{option} {path} is a file. Give a folder, which need not exist.")


def _source(
    data: "RetrievalData",
    encoder: "Encoder",
    cache: Path | None,
    workers: int,
    allow_damaged: bool,
    progress: Progress,
) -> "FrameSource":
    """Frames of the data's videos, decoded as they are asked for, or all of them from a cache, filled if need be."""
    from tempme_export.data.frame_cache import FrameCache
    from tempme_export.data.frames import FrameFiles

    if cache is None:
        return FrameFiles(data.clips, encoder.frames, encoder.preprocess, allow_damaged)
    frames = FrameCache.open(cache, data.clips, encoder.frames, encoder.preprocess, allow_damaged)
    frames.fill(workers, progress, retry_failed=True)
    return frames


def _complete_backend(incomplete: str) -> list[str]:
    return [name for name in (*offered(), "original", "torch") if name.startswith(incomplete)]


@line.default(3, 4, 6)
def evaluate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE|CKPT",
            show_default=False,
            help="Folder of a bundle, checkpoint file, or open_clip:MODEL/PRETRAINED.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            show_default=False,
            help="msrvtt:DIR, activitynet:DIR, didemo:DIR, lsmdc:DIR, synthetic:DIR, or a .csv or .parquet file with "
            "the columns video and caption.",
        ),
    ],
    videos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the videos. Default: below DIR.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Split of a data set; a .csv or .parquet file has none.")] = Split.TEST,
    profile: ProfileOption = None,
    activation: ActivationOption = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=_complete_backend,
            help=f"Bundle: {', '.join(offered())}. Checkpoint: original, torch. Default: the first.",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N. Default: cpu.")] = None,
    allow_damaged: DamagedOption = False,
    batch: Annotated[int, typer.Option(metavar="N", min=1, rich_help_panel=_WORK, help="Videos per call.")] = 8,
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, rich_help_panel=_WORK, help="Decoding processes; 0 decodes in this one.")
    ] = min(4, os.cpu_count() or 1),
    features: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", rich_help_panel=_WORK, help="Cache of embeddings; an interrupted run continues from it."
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", rich_help_panel=_WORK, help="Cache of decoded frames.")
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option(metavar="FILE", rich_help_panel=OUTPUT, help="Also write the metrics as Parquet.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", rich_help_panel=OUTPUT, help="Also write the metrics as CSV.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Text-to-video and video-to-text retrieval of a bundle or checkpoint: R@1, R@5, R@10, median and mean rank.

    tempme-eval ckpt.tempme --data msrvtt:MSRVTT

    Ties and scores that are not finite count against the model. Videos that cannot be read are left out together with
    their captions, and are listed and counted.
    """
    for option, path in (("--parquet", parquet), ("--csv", csv)):
        check_file(option, path)
    for option, path in (("--features", features), ("--cache", cache)):
        _check_folder(option, path)
    if parquet is not None and csv is not None and parquet.absolute() == csv.absolute():
        raise UsageError(f"--parquet and --csv both name {csv}. Give two files.")

    from tempme_export.data.annotations import open_data

    asked = open_data(data, "train" if split is Split.TRAIN else "test", videos)
    evaluate_console.show_data(asked)

    from tempme_export.evaluation.encoders import open_encoder
    from tempme_export.evaluation.evaluate import evaluate as measure

    encoder = open_encoder(source, profile, backend, device, value(activation))
    try:
        evaluate_console.show_encoder(encoder)
        progress = evaluate_console.progress()
        with evaluate_console.warnings_as_lines():
            frames = _source(asked, encoder, cache, workers, allow_damaged, progress)
            found = measure(
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
    if encoder.origin == "bundle":
        evaluate_console.show_uses(source)
    else:
        evaluate_console.show_export(source, {"--profile": profile, "--activation": value(activation)})


main = line.main()


if __name__ == "__main__":
    main()
