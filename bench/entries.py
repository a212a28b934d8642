"""Candidates of a comparison of methods: all over one model's weights, on one backend."""

from dataclasses import replace
from pathlib import Path

from tempme_export.bench.candidates import ORIGINAL, chosen_candidates
from tempme_export.bench.cases import Case
from tempme_export.bench.core.candidate import Candidate, Entry
from tempme_export.bench.core.protocol import Progress
from tempme_export.bench.methods.catalogue import ALL, Method, chosen
from tempme_export.bench.methods.encoders import encoder
from tempme_export.bench.methods.recipes import method_recipe
from tempme_export.encoder.complexity import complexity
from tempme_export.errors import UsageError
from tempme_export.runtime.pytorch import TorchRunner


def with_methods(
    case: Case,
    names: tuple[str, ...],
    backends: tuple[str, ...] | None,
    device: str,
    folder: Path,
    stage: Progress,
) -> tuple[list[Entry], dict[str, str]]:
    """Several methods over one model's weights on one backend, no merging first where it is among them; and why others
    are missing. Each must compute what the original path computes under the same method.

    names     methods, or `all`
    backends  the one that runs them; None for the original path
    Raises UsageError for several backends, for unknown methods and for those that were named and do not run here,
    BackendError where the backend is missing.
    """
    backend = _only(backends)
    entries: list[Entry] = []
    missing: dict[str, str] = {}
    for method in sorted(chosen(names), key=lambda one: one.key != "none"):
        try:
            entries.append(_with_method(case, method, backend, device, folder / method.key, stage))
        except UsageError as error:
            if ALL not in names:
                raise
            missing[method.key] = str(error)
    if not entries:
        raise UsageError(f"no method runs here: {'; '.join(missing.values())}")
    return entries, missing


def _only(backends: tuple[str, ...] | None) -> str:
    if backends is not None and len(backends) > 1:
        raise UsageError(f"--methods stand side by side on one backend, found {', '.join(backends)}. Choose one.")
    return ORIGINAL if backends is None else backends[0]


def _with_method(case: Case, method: Method, backend: str, device: str, folder: Path, stage: Progress) -> Entry:
    recipe = method_recipe(method, case.recipe)
    if backend != ORIGINAL and not method.exports:
        raise UsageError(f"{method.title} runs on the original path only, not on {backend}. Leave {method.key} out.")
    stage(f"loading {method.key} on {backend}")
    module = encoder(method, case.recipe, device)
    counter = None if method.count is complexity else method.count
    own = Case(recipe, precision=case.precision, method=method.key, own_schedule=module.schedule, counter=counter)
    original = Candidate(
        ORIGINAL, lambda one, artifact, device: TorchRunner(module, one.recipe, ORIGINAL, "video", device)
    ).open(own, device, folder)
    entry = original
    if backend != ORIGINAL:
        folder.mkdir()
        (candidate,) = chosen_candidates((backend,))[1:]
        entry = candidate.open(own, device, folder)
    return replace(entry, name=method.key, expect=original.embed)
