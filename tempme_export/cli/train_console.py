"""Output of `tempme-train`, line by line. Human text goes to stderr, data to stdout."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tempme_export.cli import live
from tempme_export.cli.console import STDERR
from tempme_export.cli.terminal import show_again, show_next
from tempme_export.cli.terminal import show_line as _line
from tempme_export.names import command
from tempme_export.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from tempme_export.training.events import Evaluated, Opened
    from tempme_export.training.memory import MemoryAccount
    from tempme_export.training.preview import Preview
    from tempme_export.training.run import RunLength, TrainResult
    from tempme_export.training.skipped import Skipped
    from tempme_export.training.state import Position

_LISTED = 10  # skipped videos


def show_note(text: str) -> None:
    """Something to know that stops nothing."""
    _line("note", text, "yellow")


def show_error(error: Exception, rank: int) -> None:
    """One refusal; of which process, where it is not the first."""
    who = f"process {rank}: " if rank else ""
    STDERR.print(f"error: {who}{error}", style="red", markup=False, soft_wrap=True)


def show_skipped(skipped: "Sequence[Skipped]") -> None:
    """The first videos that could not be read, each with its reason, and how many there are. Nothing for none."""
    if not skipped:
        return
    for one in skipped[:_LISTED]:
        _line("skipped", f"{one.split} {one.video}: {one.reason}")
    more = f", {len(skipped) - _LISTED} more than shown" if len(skipped) > _LISTED else ""
    show_note(f"{len(skipped)} videos could not be read and are left out{more}; skipped.jsonl lists them")


def _show_data(found: "Opened") -> None:
    split, skipped = found.split, found.skipped
    _line(f"{split.name} data", f"{split.data.name}   {len(split.data.paths)} videos, {len(split.token_ids)} captions")
    for note in split.data.notes:
        show_note(note)
    show_skipped(skipped)
    if split.cut:
        show_note(
            f"some captions are longer than the {split.token_ids.shape[1]} tokens of the model; their ends are cut"
        )


def _show_model(counts: dict[str, int]) -> None:
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    _line("trains", f"{sum(counts.values()):,} parameters: {parts}")


def show_length(length: "RunLength", position: "Position") -> None:
    """Show the length of a run."""
    epochs = len(length.lengths)
    left_out = f"; at most {length.dropped} captions sit out an epoch" if length.dropped else ""
    _line("run", f"{length.steps} steps in {epochs} epochs, batches of {length.batch}{left_out}")
    if position.step:
        _line("resumed", f"after step {position.step}, in epoch {min(position.epoch + 1, epochs)} of {epochs}")


def _show_memory(found: "MemoryAccount") -> None:
    parts = {
        "kept for the backward pass": found.saved,
        "weights": found.frozen + found.trained,
        "AdamW": found.optimizer,
        "input": found.inputs,
        "in between": found.temporary,
    }
    said = ", ".join(f"{n_bytes / 1e9:.3g} {name}" for name, n_bytes in parts.items())
    _line("memory", f"about {found.peak / 1e9:.3g} GB on the device, {found.batch} pairs in {found.precision}: {said}")


def show_preview(found: "Preview", out: "Path") -> None:
    """Show the findings of --dry-run."""
    from tempme_export.training.state import Position

    _show_model(found.counts)
    show_length(found.length, Position())
    _show_memory(found.memory)
    for name, count in found.missing.items():
        if count:
            show_note(f"{count} {name} videos are not there and would be left out")
    cache = f", its cache about {found.on_cache / 1e6:.0f} MB" if found.on_cache else ""
    _line("done", f"dry run: nothing written. {out} would take up to {found.disk / 1e6:.0f} MB{cache}")
    show_again("tempme-train", without="--dry-run")


def _show_evaluation(found: "Evaluated") -> None:
    row = found.row
    groups = f"   in groups {row['group_r1']:.1f}" if "group_r1" in row else ""
    _line(
        f"epoch {row['epoch']}",
        f"text-to-video R@1 {row['t2v_r1']:.1f}, R@5 {row['t2v_r5']:.1f}, R@10 {row['t2v_r10']:.1f}   "
        f"video-to-text R@1 {row['v2t_r1']:.1f}{groups}{'   best so far' if found.better else ''}",
    )


def show_stopped(where: str) -> None:
    """Show that a run can be resumed, and by what command; torchrun's own is not known here."""
    _line("stopped", f"{where}; the same command with --resume goes on")
    if "WORLD_SIZE" not in os.environ:
        show_again("tempme-train", "--resume", without="--resume")


def show_result(result: "TrainResult") -> None:
    """Show the results of a run, and what to do next."""
    seconds = f"{result.seconds:.0f} s"
    if not result.finished:
        show_stopped(f"after step {result.steps} of {result.total}, {seconds}")
        return
    best = "" if result.best is None else f"   best R@1 {result.best.r1:.1f} after epoch {result.best.epochs}"
    _line("done", f"{result.total} steps in {seconds}{best}")
    _line("wrote", f"{result.out}: {', '.join(result.files)}")
    if result.model is not None:
        show_next(command("tempme-export", result.model))


SHOWS: Mapping[str, Callable[[Any], None]] = {
    "Opened": _show_data,
    "Trains": lambda fact: _show_model(fact.counts),
    "Started": lambda fact: show_length(fact.length, fact.position),
    "LeftOut": lambda fact: show_skipped(fact.videos),
    "Evaluated": _show_evaluation,
    "Note": lambda fact: show_note(fact.text),
    "Saved": lambda fact: None,
}


def progress() -> Progress:
    """Shows what goes on, and every fact as it is told."""
    return live.listener(SHOWS)
