"""`tempme-bench`: arguments -> counts or measurements -> tables and files -> exit code."""

import dataclasses
import json as json_format
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tempme_export.bench import paper
from tempme_export.bench.tables import bench_tables, kernel_tables, paper_tables, resource_tables, show
from tempme_export.console import show_error
from tempme_export.errors import ProfileError, TempMeExportError, UsageError
from tempme_export.profile import Profile, load_profile, shipped_profiles

if TYPE_CHECKING:
    from tempme_export.bench.run import Request

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

DEFAULT_FRAMES = 12
_STDOUT = "-"
_COUNTING = {"complexity", "profile", "frames", "json"}
_COMPILING = {"kernels", "resources", "profile", "frames", "json"}
_TIMING_KERNELS = {"kernels", "profile", "frames", "batch", "dtype", "json"}
_MODEL, _PROTOCOL, _RESULTS = "What to measure", "How to measure", "Results"


def _option(panel: str, text: str, metavar: str | None = None, name: str | None = None) -> Any:
    return typer.Option(*[name] if name else [], help=text, metavar=metavar, rich_help_panel=panel)


@app.command()
def bench(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Argument(metavar="BUNDLE|CKPT", help="With neither, weights are drawn at random.")
    ] = None,
    profile: Annotated[str | None, _option(_MODEL, "A shipped profile, or a .toml file.", "P")] = None,
    frames: Annotated[
        int | None,
        _option(_MODEL, f"Without a profile, ViT-B/32 of N frames; {DEFAULT_FRAMES} by default.", "N"),
    ] = None,
    backends: Annotated[
        str | None, _option(_MODEL, "Measured beside the original path; all by default.", "A,B")
    ] = None,
    batch: Annotated[str, _option(_MODEL, "Videos per call, several with commas.", "N,N")] = "1",
    device: Annotated[str, _option(_MODEL, "cpu, cuda or cuda:N.", "D")] = "cpu",
    seconds: Annotated[float, _option(_PROTOCOL, "Measure each backend at least so long.", "S")] = 10.0,
    samples: Annotated[int, _option(_PROTOCOL, "Measure each backend at least so often.", "N")] = 200,
    seed: Annotated[int, _option(_PROTOCOL, "Of inputs, random weights and bootstrap.", "N")] = 0,
    strict: Annotated[bool, _option(_PROTOCOL, "Exit with 7 if one did not settle.", name="--strict")] = False,
    complexity: Annotated[
        bool, _option(_RESULTS, "Count operations beside the paper's; measure nothing.", name="--complexity")
    ] = False,
    kernels: Annotated[bool, _option(_RESULTS, "Time the kernels alone; needs a GPU.", name="--kernels")] = False,
    dtype: Annotated[
        str | None, _option(_RESULTS, "With --kernels: of the tokens, bf16 by default.", "fp32,fp16,bf16")
    ] = None,
    resources: Annotated[
        bool,
        _option(_RESULTS, "With --kernels: compile them, and show what they take; no GPU.", name="--resources"),
    ] = False,
    json: Annotated[
        str | None, _option(_RESULTS, "One JSON document; - to stdout instead of tables.", "FILE|-")
    ] = None,
    out: Annotated[Path | None, _option(_RESULTS, "New Parquet and JSON files in this folder.", "DIR")] = None,
) -> None:
    """Videos/s, operations and tokens of every backend beside the original PyTorch path.

    Exit codes: 0 done, 2 usage, 3 checkpoint, profile or bundle, 4 backend or device missing, 5 parity failed,
    6 build failed, 7 unstable with --strict.
    """
    if json not in (None, _STDOUT) and not Path(json).absolute().parent.is_dir():
        raise UsageError(f"--json {json} cannot be written: {Path(json).parent} is not a folder.")
    if resources and not kernels:
        raise UsageError("--resources shows what kernels take. Write: tempme-bench --kernels --resources")
    if dtype is not None and not kernels:
        raise UsageError("--dtype is that of timed kernels. Write: tempme-bench --kernels --dtype ...")
    if complexity:
        _refuse_other_options(context, "--complexity measures nothing", _COUNTING)
        chosen = None if profile is None and frames is None else _profile(profile, frames)
        _count(chosen, json)
    elif resources:
        _refuse_other_options(context, "--resources compiles and measures nothing", _COMPILING)
        _compile(_profile(profile, frames), json)
    elif kernels:
        _refuse_other_options(context, "--kernels times kernels alone", _TIMING_KERNELS)
        batches = tuple(_positive("batch", item) for item in _listed("batch", batch))
        dtypes = tuple(_listed("dtype", "bf16" if dtype is None else dtype))
        _time_kernels(None if profile is None and frames is None else _profile(profile, frames), batches, dtypes, json)
    else:
        names = None if backends is None else tuple(_listed("backends", backends))
        batches = tuple(_positive("batch", item) for item in _listed("batch", batch))

        from tempme_export.bench.run import Request
        from tempme_export.bench.timing import Protocol

        request = Request(
            backends=names,
            batches=batches,
            device=device,
            protocol=Protocol(seconds=seconds, samples=samples, seed=seed),
            command=shlex.join(["tempme-bench", *sys.argv[1:]]),
        )
        _measure(source, profile, frames, request, strict=strict, json=json, out=out)


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


def _profile(profile: str | None, frames: int | None) -> Profile:
    """The profile asked for by name, path or frame count. Raises ProfileError where there is none."""
    if profile is None:
        name = f"vit-b-32-{DEFAULT_FRAMES if frames is None else frames}f"
        if name not in shipped_profiles():
            raise ProfileError(
                f"no shipped profile has {frames} frames on ViT-B/32. Write one and give it with --profile, "
                f"or choose of: {', '.join(shipped_profiles())}."
            )
        return load_profile(name)
    loaded = load_profile(profile)
    if frames not in (None, loaded.frames):
        raise UsageError(f"profile {loaded.name} has {loaded.frames} frames, --frames says {frames}. Leave out one.")
    return loaded


def _console(*, stderr: bool) -> Console:
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def _deliver(document: dict[str, Any], json: str | None, tables: Iterable[Table]) -> None:
    """Tables to stdout and the document to its file, or the document alone to stdout."""
    text = json_format.dumps(document, indent=2)
    if json == _STDOUT:
        typer.echo(text)
        return
    console = _console(stderr=False)
    for table in tables:
        show(console, table)
    if json is not None:
        try:
            Path(json).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--json {json} cannot be written: {error}.") from error


def _count(profile: Profile | None, json: str | None) -> None:
    """Show the paper's rows, and the profile's. Raises ParityError if one that should reproduce does not."""
    claims = [*paper.CLAIMS, *([] if profile is None else [paper.profile_claim(profile)])]
    rows = [paper.count(claim) for claim in claims]
    document = {"tolerance": paper.TOLERANCE, "rows": [row.to_dict() for row in rows]}
    _deliver(document, json, paper_tables(rows))
    paper.check(rows)


def _compile(profile: Profile, json: str | None) -> None:
    """Compile the profile's kernels for every target and show what they take."""
    from tempme_export.bench.resources import compile_rows, triton_version

    console = _console(stderr=True)
    with _progress(console) as progress:
        rows = compile_rows(profile, progress)
    document = {"profile": profile.name, "triton": triton_version(), "rows": [row.to_dict() for row in rows]}
    _deliver(document, json, resource_tables(rows, f"{profile.name}, triton {triton_version()}"))


def _time_kernels(profile: Profile | None, batches: tuple[int, ...], dtypes: tuple[str, ...], json: str | None) -> None:
    """Time every fused call of one profile, or of those that are measured by default, and show what merging costs."""
    from tempme_export.bench.gpu_timing import Effort
    from tempme_export.bench.kernel_timing import PROFILES, KernelRequest, check_dtypes, require_gpu, time_kernels
    from tempme_export.bench.machine import machine

    check_dtypes(dtypes)
    device = require_gpu()
    profiles = tuple(load_profile(name) for name in PROFILES) if profile is None else (profile,)
    console = _console(stderr=True)
    with _progress(console) as progress:
        report = time_kernels(KernelRequest(profiles, batches, dtypes, device, Effort()), progress)
    document = {**_on_gpu(), "machine": dataclasses.asdict(machine()), **report.to_dict()}
    _deliver(document, json, kernel_tables(document["kernels"], document["marginals"]))


def _on_gpu() -> dict[str, Any]:
    """The device and the versions that a measurement on it depends on."""
    from tempme_export.bench.gpu_facts import gpu_facts, versions

    facts = gpu_facts()
    return {"gpu": None if facts is None else dataclasses.asdict(facts), "versions": versions()}


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    """A line that changes, on a terminal; nothing elsewhere. Drawn between samples, without a thread."""
    if not console.is_terminal:
        yield lambda _: None
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda text: live.update(text, refresh=True)


def _measure(
    source: str | None,
    profile: str | None,
    frames: int | None,
    request: "Request",
    *,
    strict: bool,
    json: str | None,
    out: Path | None,
) -> None:
    """Measure, show, write; then raise ParityError or, with `strict`, UnstableError where it applies."""
    from tempme_export.bench.cases import open_case, random_case
    from tempme_export.bench.report import prepare_folder
    from tempme_export.bench.run import run

    if out is not None:
        prepare_folder(out)
    console = _console(stderr=True)
    say = partial(console.print, soft_wrap=True)
    if source is None:
        chosen = _profile(profile, frames)
        say("no bundle or checkpoint was given: drawing random weights")
        case = random_case(chosen, request.protocol.seed)
    else:
        case = open_case(source, profile, frames)
    say(f"{case.profile.name}: {case.profile.frames} frames, {case.weights}")
    with _progress(console) as progress:
        report = run(case, request, stage=say, progress=progress)
    for line in report.remarks():
        say(line)
    _deliver(report.to_dict(), json, bench_tables(report.rows))
    if out is not None:
        report.write(out)
    report.check(strict=strict)


def main() -> None:
    """Entry point. A user's error is one message and its exit code; anything else keeps its traceback."""
    try:
        app()
    except TempMeExportError as error:
        show_error(error)
        raise SystemExit(error.exit_code) from None
