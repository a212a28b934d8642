"""The origin of every number: commands, machines, versions, artifacts."""

from collections.abc import Sequence

from tempme_export.bench.core.row import VERSIONS
from tempme_export.bench.reporting.groups import Origin, value_of
from tempme_export.bench.reporting.markup import Html, element, join
from tempme_export.bench.reporting.section import Absent, Section

_UNSAID = "not said"


def origin_section(runs: Sequence[Origin]) -> Section | Absent:
    """One entry for each origin."""
    if not runs:
        return Absent("Where the numbers come from", "nothing was measured in these results.")
    return Section("origin", "Where the numbers come from", join([_entry(origin) for origin in runs]))


def _entry(origin: Origin) -> Html:
    def span(column: str, form: str = "") -> str:
        """The smallest and the largest of a column."""
        values = sorted(origin.values(column))
        return " to ".join(dict.fromkeys(format(value, form) for value in (*values[:1], *values[-1:]))) or _UNSAID

    artifacts = dict.fromkeys(
        tuple(str(value_of(row, column)) for column in ("candidate", "precision", "artifact_sha256"))
        for row in origin.rows
        if value_of(row, "artifact_sha256")
    )
    facts: list[tuple[str, str]] = [
        ("command", _code(origin.fact("command"))),
        ("weights", origin.fact("weights") or _UNSAID),
        ("processor", f"{origin.fact('cpu') or _UNSAID}, {origin.fact('threads') or 'unknown'} threads per operator"),
        ("device", ": ".join(filter(None, (origin.fact("device") or _UNSAID, origin.fact("gpu"))))),
        ("driver", origin.fact("driver") or "none"),
        ("versions", ", ".join(f"{name} {origin.fact(name)}" for name in VERSIONS if origin.fact(name)) or _UNSAID),
        ("commit", _code(origin.fact("commit"))),
        ("measured", span("time")),
        ("load average", span("load_average", ".2f")),
        ("results", _code(origin.results.source)),
        *((f"artifact of {name}, {type_}", join(["sha256 ", _code(digest)])) for name, type_, digest in artifacts),
    ]
    rows = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in facts]
    return element(
        "section",
        element("h3", f"Run {origin.number}"),
        element("table", element("tbody", *rows), class_="facts"),
        id=origin.anchor,
    )


def _code(text: str | None) -> Html:
    return element("code", text) if text else Html(_UNSAID)
