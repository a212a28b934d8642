"""What stands beside each other in a comparison: one model on several backends, or several methods on one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.bench.adapters import counter_for
from tempme_export.bench.backends import ORIGINAL, Loaded, chosen_backends, load, load_all, ready
from tempme_export.bench.cases import Case
from tempme_export.bench.methods.catalogue import ALL, Method, chosen
from tempme_export.bench.methods.encoders import encoder
from tempme_export.bench.methods.recipes import method_recipe
from tempme_export.bench.paper import Counter
from tempme_export.bench.timing import Progress
from tempme_export.encoder.complexity import Complexity, complexity
from tempme_export.encoder.recipe import Recipe
from tempme_export.encoder.schedule import MergePolicy, Schedule
from tempme_export.errors import UsageError
from tempme_export.runtime.pytorch import TorchRunner

Embed = Callable[[NDArray[np.float32]], NDArray[Any]]


@dataclass(frozen=True)
class Contender:
    """One thing that is timed beside others.

    name     in tables and files
    method   what merges: a method's key
    plan     the token counts it must have, and `counted` the operations they cost
    expect   the embeddings it must give: the original path of the same method
    """

    name: str
    method: str
    recipe: Recipe
    plan: Schedule
    counted: Complexity
    loaded: Loaded
    expect: Embed


def method_of(merge: MergePolicy) -> str:
    """The method that a merge policy is, in one word: none, tome or tempme."""
    if merge.clip_layers:
        return "tempme"
    return "tome" if merge.image_r else "none"


def _formula(recipe: Recipe) -> Counter:
    """What its operations are counted by. Raises ProfileError where there is no formula for its additions."""
    return counter_for(recipe.checkpoint.facts, recipe.checkpoint.source)


def on_backends(
    case: Case, names: tuple[str, ...] | None, device: str, folder: Path, stage: Progress
) -> tuple[list[Contender], dict[str, str]]:
    """One model on several backends, the original path first; and why others are missing.

    names  those that must be there; None for all
    Raises UsageError for unknown names, BackendError where the original path or one that was named is missing.
    """
    chosen = chosen_backends(names)
    loaded, missing = load_all(chosen, case, device, folder, named=names is not None, stage=stage)
    counted = _formula(case.recipe)(case.recipe.plan, case.recipe.backbone)
    contenders = [
        Contender(
            name=name,
            method=method_of(case.profile.merge),
            recipe=case.recipe,
            plan=case.recipe.plan,
            counted=counted,
            loaded=one,
            expect=loaded[ORIGINAL].embed,
        )
        for name, one in loaded.items()
    ]
    return contenders, missing


def with_methods(
    case: Case,
    names: tuple[str, ...],
    backends: tuple[str, ...] | None,
    device: str,
    folder: Path,
    stage: Progress,
) -> tuple[list[Contender], dict[str, str]]:
    """Several methods over one model's weights on one backend, no merging first where it is among them; and why others
    are missing. Each must compute what the original path computes under the same method.

    names     methods, or `all`
    backends  the one that runs them; None for the original path
    Raises UsageError for several backends, for unknown methods and for those that were named and do not run here,
    BackendError where the backend is missing.
    """
    backend = _only(backends)
    loaded: list[Contender] = []
    missing: dict[str, str] = {}
    for method in sorted(chosen(names), key=lambda one: one.key != "none"):
        try:
            loaded.append(_with_method(case, method, backend, device, folder / method.key, stage))
        except UsageError as error:
            if ALL not in names:
                raise
            missing[method.key] = str(error)
    if not loaded:
        raise UsageError(f"no method runs here: {'; '.join(missing.values())}")
    return loaded, missing


def _only(backends: tuple[str, ...] | None) -> str:
    if backends is not None and len(backends) > 1:
        raise UsageError(f"--methods stand side by side on one backend, found {', '.join(backends)}. Choose one.")
    return ORIGINAL if backends is None else backends[0]


def _with_method(case: Case, method: Method, backend: str, device: str, folder: Path, stage: Progress) -> Contender:
    recipe = method_recipe(method, case.recipe)
    if backend != ORIGINAL and not method.exports:
        raise UsageError(f"{method.title} runs on the original path only, not on {backend}. Leave {method.key} out.")
    stage(f"loading {method.key} on {backend}")
    module = encoder(method, case.recipe, device)
    count = _formula(recipe) if method.count is complexity else method.count
    loaded = original = ready(ORIGINAL, lambda: TorchRunner(module, recipe, ORIGINAL, "video", device))
    if backend != ORIGINAL:
        folder.mkdir()
        loaded = load(backend, Case(recipe, precision=case.precision), device, folder)
    return Contender(
        name=method.key,
        method=method.key,
        recipe=recipe,
        plan=module.plan,
        counted=count(module.plan, recipe.backbone),
        loaded=loaded,
        expect=original.embed,
    )
