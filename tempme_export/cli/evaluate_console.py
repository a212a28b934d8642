"""Output of `tempme-eval`, line by line. Human text goes to stderr, data to stdout."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from tempme_export.cli import live
from tempme_export.cli.console import STDERR, show_conventions
from tempme_export.cli.terminal import show_line as _line
from tempme_export.cli.terminal import show_next
from tempme_export.names import command
from tempme_export.progress import Progress

if TYPE_CHECKING:
    from tempme_export.data.annotations import RetrievalData
    from tempme_export.evaluation.checkpoint_encoder import CheckpointEncoder
    from tempme_export.evaluation.encoders import BundleEncoder
    from tempme_export.evaluation.evaluate import Evaluation

_LISTED = 10  # skipped videos
_ORIGINS = {
    "asked": "as asked",
    "declared": "as the checkpoint's file says",
    "inferred": "inferred from the checkpoint's shapes",
    "bundle": "the bundle's",
}


def show_data(data: "RetrievalData") -> None:
    """Show the data that is searched."""
    _line("data", f"{data.name}   {len(data.video_ids)} videos, {len(data.captions)} captions")
    for note in data.notes:
        _line("note", note)


def show_encoder(encoder: "BundleEncoder | CheckpointEncoder") -> None:
    """Show the encoder that is evaluated."""
    _line("model", f"{encoder.name}   {encoder.backend} on {encoder.device}   fingerprint {encoder.fingerprint[:12]}")
    _line("profile", f"{encoder.profile.name} ({_ORIGINS[encoder.origin]})   {encoder.frames} frames")
    show_conventions(encoder.remarks, encoder.conventions)


def show_warning(text: str) -> None:
    """Something that the result must be read with."""
    _line("warning", text, "yellow")


def show_skipped(skipped: Mapping[str, str]) -> None:
    """The first videos that could not be read, each with its reason, and how many there are. Nothing for none."""
    if not skipped:
        return
    for video_id, reason in list(skipped.items())[:_LISTED]:
        _line("skipped", f"{video_id}: {reason}")
    more = f" ({len(skipped) - _LISTED} more than listed)" if len(skipped) > _LISTED else ""
    one = len(skipped) == 1
    count, verb, whose = ("1 video", "is", "its") if one else (f"{len(skipped)} videos{more}", "are", "their")
    show_warning(f"{count} could not be read and {verb} left out with {whose} captions")


def show_evaluation(evaluation: "Evaluation") -> None:
    """Skipped videos, then one line for each direction. Recalls in percent."""
    show_skipped(evaluation.skipped)
    if evaluation.not_finite:
        show_warning(f"{evaluation.not_finite} embeddings are not finite; each counts against the model")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("direction", "R@1", "R@5", "R@10", "R-Sum", "MdR", "MnR", "queries", "candidates"):
        table.add_column(column, justify="left" if column == "direction" else "right", no_wrap=True)
    for label, one in evaluation.directions.items():
        recalls = (f"{value:.1f}" for value in (one.r1, one.r5, one.r10, one.r_sum, one.median_rank, one.mean_rank))
        table.add_row(escape(label), *recalls, str(one.queries), str(one.candidates))
    STDERR.print(table)
    if evaluation.best_caption is not None:
        _line("note", "video-to-text ranks a video's best caption among all captions of the other videos;")
        _line("", "by best caption: among the best caption of each other video, as CLIP4Clip has it for MSVD")


def show_file(path: Path) -> None:
    """One finished file."""
    _line("wrote", str(path))


def show_uses(bundle: str) -> None:
    """Show the other uses of a bundle, each as a command to copy."""
    show_next(command("tempme-export", "verify", bundle), command("tempme-bench", bundle))


def show_export(checkpoint: str, options: Mapping[str, "str | Path | None"]) -> None:
    """Show the command that makes a bundle of a checkpoint, with the options that have a value."""
    given = (word for name, value in options.items() if value is not None for word in (name, value))
    show_next(command("tempme-export", checkpoint, *given))


def progress() -> Progress:
    """Shows what goes on; nothing is told."""
    return live.listener({})


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Inside, a warning is one line; texts that are cut, which come batch by batch, are told once."""
    from tempme_export.media.token_ids import TextTruncatedWarning

    told = set()

    def show(message: Warning | str, category: type[Warning], *where: object) -> None:
        cut = issubclass(category, TextTruncatedWarning)
        text = "some captions are longer than the model reads; their ends are cut" if cut else str(message)
        if text not in told:
            told.add(text)
            show_warning(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", TextTruncatedWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield
