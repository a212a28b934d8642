"""Output of `tempme-export`, line by line. Human text goes to stderr, data to stdout."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tempme_export.cli import live
from tempme_export.cli.terminal import STDERR as STDERR
from tempme_export.cli.terminal import show_line as _line
from tempme_export.cli.terminal import show_next, show_warning
from tempme_export.names import command
from tempme_export.progress import LogLine, Progress

if TYPE_CHECKING:
    from tempme_export.artifacts.artifact import Preview
    from tempme_export.artifacts.bundle import Bundle, Intact
    from tempme_export.encoder.conventions import Statement
    from tempme_export.encoder.recipe import Recipe
    from tempme_export.evaluation.agreement import Part, RetrievalComparison
    from tempme_export.evaluation.gate import Gate
    from tempme_export.evaluation.gate_data import GateData
    from tempme_export.parity.checks import ParityReport
    from tempme_export.parity.selftest import SelfTest
    from tempme_export.quantization.build import Quantization
    from tempme_export.quantization.calibration import Calibration
    from tempme_export.runtime.engine_facts import EngineFacts

_ORIGINS = {
    "asked": "as asked",
    "declared": "as the checkpoint's file says",
    "inferred": "inferred from the checkpoint's shapes",
}
_METRICS = {"R@1": "r1", "R@5": "r5", "R@10": "r10", "R-Sum": "r_sum", "MdR": "median_rank", "MnR": "mean_rank"}
_LISTED = 5  # skipped videos


def show_recipe(recipe: "Recipe") -> None:
    """Show what will be built: profile, token schedule, complexity."""
    from tempme_export.encoder.complexity import complexity

    profile, schedule, backbone = recipe.profile, recipe.schedule, recipe.backbone
    how = _ORIGINS[recipe.origin]
    _line("checkpoint", f"{recipe.checkpoint.source}   sha256 {recipe.checkpoint.sha256[:12]}")
    _line("profile", f"{profile.name} ({how})   {profile.frames} frames, backbone {backbone.name}")
    show_conventions(recipe.checkpoint.remarks, recipe.conventions)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("block", "clips", "tokens in", "merged across", "in attention", "merged within", "out"):
        table.add_column(column, justify="right")
    for b in schedule.blocks:
        row = (b.clips, b.tokens_in, b.r_cross, b.tokens_attention, b.r_intra, b.tokens_mlp)
        joined = f"{b.index} (joins {b.factor})" if b.factor > 1 else str(b.index)
        table.add_row(joined, *map(str, row))
    STDERR.print(table)
    cost = complexity(schedule, backbone)
    start = schedule.frames * schedule.tokens_per_frame
    _line(
        "schedule",
        f"{start} -> {schedule.final_clips * schedule.final_tokens} tokens   "
        f"{cost.gmacs:.2f} GMACs (the paper's GFLOPs), {cost.gflops:.2f} GFLOPs",
    )


def show_conventions(remarks: Sequence[str], conventions: "Iterable[Statement]") -> None:
    """Show what was decided while a checkpoint was read, and what its shapes cannot tell: each with who says it."""
    from tempme_export.encoder.conventions import in_words

    for remark in remarks:
        _line("note", remark)
    for label, text in in_words(conventions):
        _line(label, text)


def show_selftest(selftest: "SelfTest") -> None:
    """The inputs that parity is checked on."""
    _line(
        "self-test",
        f"{len(selftest.clips)} clips and {len(selftest.token_ids)} texts through the original path",
    )


def show_calibration(calibration: "Calibration") -> None:
    """Show the data that int8 takes its scales from, and what is wrong with it."""
    texts = f"{len(calibration.texts)} texts ({calibration.captions})"
    _line("calibration", f"{calibration.source}   {len(calibration.clips)} clips, {texts}")
    for video, reason in list(calibration.skipped.items())[:_LISTED]:
        _line("skipped", f"{video}: {reason}")
    for warning in calibration.warnings:
        show_warning(warning)


def show_quantization(quantization: "Quantization") -> None:
    """Show the products that stay in float, with the cost, and what this machine's processor makes of int8."""
    from tempme_export.runtime.processor import INT8_ADVICE, int8_products

    for name, tower in (("video", quantization.video), ("text", quantization.text)):
        kept, costs = tower.in_float, tower.sensitivities
        named = f"in float: {', '.join(kept)}" if kept else "none in float"
        cost = f"together they cost {tower.cost:.4f} of centred cosine; costliest {costs[0].product}"
        _line("int8", f"{name}: {len(costs) - len(kept)} of {len(costs)} in 8 bits, {named}; {cost}")
    _line("processor", INT8_ADVICE[int8_products()])


def show_intact(found: "Intact") -> None:
    """A bundle that nobody changed."""
    _line("files", f"{found.files} files, every byte as the manifest says")


def show_file(path: Path) -> None:
    """One finished artifact."""
    _line("wrote", f"{path.name:<14}{path.stat().st_size / 1e6:8.1f} MB")


def show_parity(reports: "Sequence[ParityReport]") -> None:
    """Every check in a line with its value and limit; the value is the tolerance that would just have passed.

    On a narrow terminal the details of a check that passed are cut; the manifest has them all.
    """
    for report in reports:
        verdict = f"   NOT RUN: {report.reason}" if report.reason else ""
        _line("parity", f"{report.artifact} on {report.backend}{verdict}")
        width = max((len(check.name) for check in report.checks), default=0)
        for check in report.checks:
            style, word = ("green", "PASS") if check.passed else ("red", "FAIL")
            limit = f"{'>=' if check.at_least else '<='} {check.limit:g}"
            text = f" {check.name:<{width}} {check.value:>8.3g} {limit:<8} {check.detail}"
            line = Text.assemble((word, style), text.rstrip())
            STDERR.print(line, no_wrap=check.passed, overflow="ellipsis" if check.passed else "fold")


def show_gate_data(gate: "GateData") -> None:
    """Show the data of the gate."""
    absent = f"   {len(gate.missing)} more videos have no file" if gate.missing else ""
    _line("gate", f"{gate.data.name}   {gate.videos} videos, {gate.captions} captions{absent}")
    for note in gate.data.notes:
        _line("note", note)


def show_gate(gate: "Gate") -> None:
    """Each artifact beside the original path, what its differences come from, and the verdict."""
    for video, reason in list(gate.skipped.items())[:_LISTED]:
        _line("skipped", f"{video}: {reason}")
    if gate.skipped:
        STDERR.print(f"{len(gate.skipped)} videos could not be read and are left out of the gate", style="yellow")
    for comparison in gate.comparisons:
        _show_retrieval(gate, comparison)
        _show_causes(comparison, gate.videos)
    show_parity(gate.reports)


def _show_retrieval(gate: "Gate", found: "RetrievalComparison") -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("gate", "", "original", found.artifact, "change"):
        table.add_column(column, justify="right" if column in ("original", found.artifact, "change") else "left")
    for direction, before in (gate.original or {}).items():
        after = found.metrics[direction]
        for label, field in _METRICS.items():
            old, new = getattr(before, field), getattr(after, field)
            table.add_row(escape(direction), label, f"{old:.2f}", f"{new:.2f}", f"{new - old:+.2f}")
    STDERR.print(table)
    for direction, overlap in found.top10_overlap.items():
        agreement = f"top-10 overlap {overlap:.4f}, rank correlation {found.rank_agreement[direction]:.6f}"
        _line("agreement", f"{direction}: {agreement}")
    cosines = ", ".join(f"{tower} {value:.6f}" for tower, value in found.centred_cosine.items())
    _line("agreement", f"smallest centred cosine: {cosines}")


def _show_causes(found: "RetrievalComparison", videos: int) -> None:
    def part(label: str, one: "Part") -> None:
        change = ", ".join(f"{name} {value:+.2f}" for name, value in one.r1_change.items())
        distance = f"1 - cosine {one.largest:.2g} at most, {one.mean:.2g} on average; " if one.videos else ""
        _line("cause", f"{label} {one.videos} of {videos} videos; {distance}R@1 by this alone: {change}")

    if found.decisions is None:
        _line("cause", f"{found.artifact} does not tell its decisions from drift")
    elif found.decisions.videos:
        where = f"{found.changed_tokens:.2%} of all tokens, first where the original decided by {found.largest_gap:.1e}"
        part(f"changed decisions ({where} or less) in", found.decisions)
    else:
        _line("cause", f"no decision changed in {videos} videos")
    part("numeric drift in the texts and", found.drift)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _batch(batch: tuple[int, int, int]) -> str:
    return f"batch {':'.join(map(str, batch))}"


def show_preview(preview: "Preview") -> None:
    """Show what would be built, and what is missing here to build it."""
    for label, text in preview.lines():
        _line(label, text)


def show_log_line(line: LogLine) -> None:
    """One line of a library's log."""
    _line(line.library, line.text)


def show_engine(facts: "EngineFacts") -> None:
    """Show the engine that was built, and the proof of its precision."""
    driver = f", driver {facts.driver}" if facts.driver else ""
    where = f"{facts.gpu} ({facts.capability}){driver}"
    _line("engine", f"TensorRT {facts.tensorrt}, {where}, {_batch(facts.batch)}   built in {facts.seconds:.0f} s")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in facts.shares.items())
    _line("precision", f"matrix products: {_counts(facts.products)}   layers: {shares}")
    _line("plugins", f"{facts.engine_plugins} layers: {_counts(facts.plugins)}   PTX for {facts.target}")
    _line("attention", f"{facts.attentions} fused")


def show_bundle(bundle: "Bundle") -> None:
    """The finished bundle's files."""
    total = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    names = ", ".join([*bundle.manifest["files"], "manifest.json"])
    _line("bundle", f"{bundle.path}   {total / 1e6:.1f} MB: {names}")
    if bundle.manifest.get("trace"):
        from tempme_export.artifacts.registry import exposing

        merges = [merge.assign_name for merge in bundle.schedule.merges]
        _line("merges", f"{exposing().file} also returns {len(merges)} merges, {merges[0]} to {merges[-1]}")


def show_repository(written: Sequence[Path]) -> None:
    """A model repository: the folder, and the models in it."""
    models = [path.parent for path in written if path.name == "config.pbtxt"]
    _line("repository", f"{models[0].parent}   models {', '.join(model.name for model in models)}")


SHOWS: Mapping[str, Callable[[Any], None]] = {
    "Intact": show_intact,
    "Recipe": show_recipe,
    "LogLine": show_log_line,
    "EngineFacts": show_engine,
    "SelfTest": show_selftest,
    "Calibration": show_calibration,
    "Quantization": show_quantization,
    "Written": lambda fact: show_file(fact.path),
    "Parity": lambda fact: show_parity(fact.reports),
    "GateData": show_gate_data,
    "Gate": show_gate,
    "Bundle": show_bundle,
}


def progress() -> Progress:
    """Shows what goes on, and every fact as it is told."""
    return live.listener(SHOWS)


def show_done(text: str) -> None:
    """A command did what was asked."""
    _line("done", text)


def show_uses(folder: Path, *, verified: bool = False) -> None:
    """Show the uses of a bundle, each as a command to copy; without its check where that was just done."""
    name = str(folder)
    plain = name.isprintable() and not set(name) & set("\"'\\")
    literal = f'"{name}"' if plain else ascii(name)
    show_next(
        command("python", "-ic", f"import tempme_export; model = tempme_export.load({literal})"),
        *([] if verified else [command("tempme-export", "verify", folder)]),
        command("tempme-bench", folder),
        command("tempme-eval", folder, "--data", "msrvtt:DIR"),
    )


def show_server(repository: Path) -> None:
    """Show the command that serves a model repository."""
    show_next(command("tritonserver", "--model-repository", repository))
