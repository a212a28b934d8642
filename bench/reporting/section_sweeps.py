"""A sweep over frames or batch sizes as a whole: fitted costs and saturation batches."""

from collections.abc import Mapping
from typing import Any

from tempme_export.bench.core.row import is_number
from tempme_export.bench.reporting.groups import FAILED, PASSED, UNJUDGED, UNNAMED
from tempme_export.bench.reporting.markup import (
    Column,
    Html,
    column_of,
    distance,
    number,
    table,
)
from tempme_export.bench.reporting.read import Results
from tempme_export.bench.reporting.section import (
    DISTANCE,
    mark,
)


def _worst(results: Results, one: Mapping[str, Any]) -> list[str]:
    """1 - cosine and parity of the rows that an entry is of: the worst of them."""
    keys = [key for key in ("candidate", "method", "frames", "batch") if one.get(key) is not None]
    own = [row for row in results.rows if all(getattr(row, key) == one[key] for key in keys)]
    far = max((row.one_minus_cosine for row in own if row.one_minus_cosine is not None), default=None)
    passed = UNJUDGED if not own else PASSED if all(row.parity for row in own) else FAILED
    return [distance(far), mark(passed, good=passed == PASSED)]


def fit_table(results: Results) -> Html:
    columns = [
        *(Column("candidate", figures=False), Column("of", figures=False), Column("cost", figures=False)),
        *(Column("curve, with 95\N{NO-BREAK SPACE}% intervals", figures=False), Column("R\u00b2"), Column("points")),
        *(Column(DISTANCE), Column("parity", figures=False)),
    ]
    rows = []
    for fit in results.entries("fits"):
        fixed = [
            f"{fit[key]} frames" if key == "frames" else f"batch {fit[key]}"
            for key in ("frames", "batch")
            if fit.get(key)
        ]
        rows.append(
            [
                str(fit["candidate"]),
                ", ".join([str(fit.get("family") or UNNAMED), *fixed]),
                _COSTS.get(fit["quantity"], str(fit["quantity"])),
                _curve(fit),
                number(fit.get("r2"), 4),
                str(len(fit["x"])),
                *_worst(results, fit),
            ]
        )
    return table(f"Fitted costs, x being frames or videos per call, from {results.source}", columns, rows)


_COSTS = {"p50_ms": "ms of a call", "encode_mb": "MB of a call", "gmacs": "GMACs of a video"}


def _curve(fit: Mapping[str, Any]) -> str:
    """The curve, each coefficient with its interval; the reason where there is none."""
    if fit["form"] == "none":
        return f"none: {fit.get('reason') or 'no reason given'}"
    terms = []
    for power, value in enumerate(fit["coefficients"]):
        low, high = (bounds[power] if power < len(bounds) else None for bounds in (fit["low"], fit["high"]))
        within = f" ({low:.3g} to {high:.3g})" if is_number(low) and is_number(high) else ""
        times = ("", f" {fit['against']}", f" {fit['against']}\u00b2")[power]
        terms.append(f"{value:.3g}{within}{times}".replace("-", "\N{MINUS SIGN}"))
    return " + ".join(terms)


def saturation_table(results: Results) -> Html:
    saturations = results.entries("saturations")
    columns = [
        *(Column("candidate", figures=False), Column("profile", figures=False), Column("batch"), Column("videos/s")),
        *(Column("best batch"), Column("videos/s"), Column(DISTANCE), Column("parity", figures=False)),
    ]
    near, best = (column_of([one[key] for one in saturations]) for key in ("videos_per_s", "best_videos_per_s"))
    rows = [
        [
            str(one["candidate"]),
            str(one.get("profile") or UNNAMED),
            f"{one['batch']}{' or more' if one.get('at_edge') else ''}",
            near[i],
            str(one["best_batch"]),
            best[i],
            *_worst(results, one),
        ]
        for i, one in enumerate(saturations)
    ]
    within = max((one["within_percent"] for one in saturations if is_number(one.get("within_percent"))), default=None)
    near_best = "near" if within is None else f"within {within:g} % of"
    caption = (
        f"Saturation batch: the smallest whose videos/s is {near_best} the best of the sweep, from {results.source}"
    )
    return table(caption, columns, rows)
