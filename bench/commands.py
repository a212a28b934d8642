"""One function for each thing that `tempme-bench` does: work, tables, files. Heavy packages are imported late."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live

from tempme_export.bench import paper
from tempme_export.bench.adapters import ADAPTER_CLAIMS
from tempme_export.bench.config import BenchmarkConfig, chosen_profile
from tempme_export.bench.counting.agreement import Counted, check_counts
from tempme_export.bench.tables.counts import counted_tables, paper_tables, resource_tables
from tempme_export.bench.tables.gpu import kernel_tables
from tempme_export.bench.tables.rows import bench_tables
from tempme_export.bench.tables.runs import change_tables, method_tables, stage_tables, sweep_tables
from tempme_export.bench.tables.table import Table
from tempme_export.bench.tables.terminal import say, show
from tempme_export.cli.terminal import show_again, show_next, write_json
from tempme_export.encoder.profile import load_profile
from tempme_export.errors import UsageError
from tempme_export.names import command

if TYPE_CHECKING:
    from tempme_export.artifacts.bundle import Bundle
    from tempme_export.bench.cases import Case

GRAPH = "graph"


@dataclass(frozen=True)
class Model:
    """A model as it was asked for: a bundle or checkpoint, or random weights of a profile."""

    source: str | None
    profile: str | None
    frames: int | None
    activation: str | None
    seed: int


def _console(*, stderr: bool) -> Console:
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    """A line that changes, on a terminal; nothing elsewhere. Drawn between samples, without a thread."""
    if not console.is_terminal:
        yield lambda _: None
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda text: live.update(text, refresh=True)


def _deliver(document: dict[str, Any], json: bool, tables: Iterable[Table]) -> None:
    """Tables, or the document, to stdout."""
    if json:
        write_json(document)
        return
    console = _console(stderr=False)
    for table in tables:
        show(console, table)


def count(
    profile: str | None,
    frames: int | None,
    by: str | None,
    json: bool,
    printed: Sequence[paper.Claim] = (*paper.CLAIMS, *ADAPTER_CLAIMS),
) -> None:
    """Show the paper's rows, and the profile's, counted by formula.

    by  `eager`: also on the running encoder, at its real size; `graph`: also in the ONNX graph exported for each

    Raises ParityError if a row that should reproduce does not, or where two ways to count disagree.
    """
    chosen = None if profile is None and frames is None else chosen_profile(profile, frames)
    claims = [*printed, *([] if chosen is None else [paper.profile_claim(chosen)])]
    rows = [paper.count(claim) for claim in claims]
    counted = [] if by is None else _counted(claims, by)
    document = {
        "tolerance": paper.TOLERANCE,
        "rows": [row.to_dict() for row in rows],
        "counted": [one.to_dict() for one in counted],
    }
    _deliver(document, json, [*paper_tables(rows), *counted_tables(counted)])
    paper.check(rows)
    check_counts(counted)
    show_next(command("tempme-bench", *([] if chosen is None else ["--profile", profile or chosen.name])))


def _counted(claims: Sequence[paper.Claim], by: str) -> list[Counted]:
    from tempme_export.bench.counting.claims import count_claim

    with _progress(_console(stderr=True)) as progress:
        counted = []
        for i, claim in enumerate(claims):
            progress(f"counting {claim.label}, {i + 1} of {len(claims)}")
            counted.append(count_claim(claim, graph=by == GRAPH))
    return counted


def compile_kernels(profile: str | None, frames: int | None, json: bool) -> None:
    """Compile the profile's kernels for every target and show what they take."""
    from tempme_export.bench.kernels.resources import compile_rows, triton_version

    chosen = chosen_profile(profile, frames)
    with _progress(_console(stderr=True)) as progress:
        rows = compile_rows(chosen, progress)
    document = {"profile": chosen.name, "triton": triton_version(), "rows": [row.to_dict() for row in rows]}
    _deliver(document, json, resource_tables(rows, f"{chosen.name}, triton {triton_version()}"))
    show_again("tempme-bench", without="--resources")


def time_kernels(
    profile: str | None, frames: int | None, batches: tuple[int, ...], dtypes: tuple[str, ...], json: bool
) -> None:
    """Time every fused call of one profile, or of those that are measured by default, and show what merging costs."""
    from tempme_export.bench.core.clocks import timer
    from tempme_export.bench.kernels import timing
    from tempme_export.bench.machine import machine

    asked = None if profile is None and frames is None else chosen_profile(profile, frames)
    timing.check_dtypes(dtypes)
    device = timing.require_gpu()
    profiles = [load_profile(name) for name in timing.PROFILES] if asked is None else [asked]
    with _progress(_console(stderr=True)) as progress:
        encoders = timing.drawn_encoders(profiles, batches, dtypes, device, progress)
        found = timing.time_encoders(encoders, timer(device, timing.PROTOCOL), progress)
    document = {**_on_gpu(), "machine": dataclasses.asdict(machine("cuda")), **found}
    _deliver(document, json, kernel_tables(found["kernels"], found["marginals"]))
    show_next(command("tempme-bench", "gpu-check", "gpu"))


def _on_gpu() -> dict[str, Any]:
    """The device and the versions that a measurement on it depends on."""
    from tempme_export.bench.gpu.state import gpu_state, versions

    facts = gpu_state()
    return {"gpu": None if facts is None else dataclasses.asdict(facts), "versions": versions()}


def compare(before: Path, after: Path, seed: int, json: bool) -> None:
    """Show what changed between two results folders, and whether that is more than chance."""
    from tempme_export.bench.comparing import compare_results

    report = compare_results(before, after, seed=seed)
    console = _console(stderr=True)
    for remark in report.remarks:
        say(console, remark)
    _deliver(report.to_dict(), json, change_tables(report))
    show_next(command("tempme-bench", "report", before, after, "--out", "page"))


def write_page(folder: Path, results: Sequence[Path], json: bool) -> None:
    """Write the page of results into a folder."""
    from tempme_export.bench.reporting.page import write_report
    from tempme_export.bench.reporting.read import read_results

    paths = write_report([read_results(path) for path in results], folder)
    _show_files(paths, paths[0], json)


def _show_files(paths: Sequence[Path], first: Path, json: bool) -> None:
    """The files that were written, and how to look at one."""
    _console(stderr=True).print(f"wrote {', '.join(map(str, paths))}", soft_wrap=True)
    if json:
        write_json({"files": [str(path) for path in paths]})
    show_next(command("python", "-m", "webbrowser", first.absolute().as_uri()))


def draw(model: Model, video: Path, out: Path, allow_damaged: bool, json: bool) -> None:
    """Draw which patches of a video became one token. A bundle is enough; its checkpoint may be gone."""
    from tempme_export.bench.visualize.pictures import draw_merges

    paths = draw_merges(_opened(model), video, out, allow_damaged).paths
    _show_files(paths, paths[-1], json)


def _opened(model: Model) -> "Case | Bundle":
    from tempme_export.artifacts.bundle import open_bundle, verify_files
    from tempme_export.bench.cases import open_case, random_case

    if model.source is None:
        if model.activation is not None:
            raise UsageError("--activation is of a checkpoint, and none was given. Leave it out.")
        return random_case(chosen_profile(model.profile, model.frames), model.seed)
    if Path(model.source).is_dir() and (model.profile, model.frames, model.activation) == (None, None, None):
        bundle = open_bundle(Path(model.source))
        verify_files(bundle)
        return bundle
    return open_case(model.source, model.profile, model.frames, model.activation)


def measure(config: BenchmarkConfig, out: Path | None, json: bool, *, strict: bool) -> bool:
    """Measure, write into a new folder, show; returns whether the run was interrupted.

    Raises ParityError for a candidate that computes something else and, with `strict`, UnstableError for a ratio
    that did not converge; both after everything has been written.
    """
    from tempme_export.bench.report import prepare_folder
    from tempme_export.bench.suites import measure as measure_suite

    if out is not None:
        prepare_folder(out)
    console = _console(stderr=True)
    tell = partial(console.print, soft_wrap=True)
    with _progress(console) as progress:
        report = measure_suite(config, stage=tell, progress=progress)
    for remark in report.remarks():
        say(console, remark)
    tables = [
        *bench_tables(report.rows),
        *method_tables(report.methods),
        *stage_tables(report.stages),
        *sweep_tables(report.fits, report.saturations),
    ]
    if out is not None:
        report.write(out)
        tell(f"wrote {out}")
    _deliver(report.to_dict(), json, tables)
    report.check(strict=strict)
    if out is None:
        show_again("tempme-bench", "--out", "results")
    else:
        show_next(command("tempme-bench", "report", out, "--out", "page"))
    return report.interrupted
