"""The origin of every number: commands, machines, versions, artifacts."""

from collections.abc import Sequence

from tempme_export.bench.reporting.groups import Origin, value_of
from tempme_export.bench.reporting.markup import Html, element, join
from tempme_export.bench.reporting.section import Absent, Section

_VERSIONS = ("python", "torch", "onnxruntime", "openvino", "tensorrt")


def origin_section(runs: Sequence[Origin]) -> Section | Absent:
    """One entry for each origin."""
    if not runs:
        return Absent("Where the numbers come from", "nothing was measured in these results.")
    return Section("origin", "Where the numbers come from", join([_entry(origin) for origin in runs]))


def _entry(origin: Origin) -> Html:
    times = sorted({str(time) for time in origin.values("time")})
    loads = sorted(origin.values("load_average"))
    artifacts = dict.fromkeys(
        (str(value_of(row, "candidate")), str(value_of(row, "precision")), str(value_of(row, "artifact_sha256")))
        for row in origin.rows
        if value_of(row, "artifact_sha256")
    )
    gpu = origin.fact("gpu")
    facts: list[tuple[str, str]] = [
        ("command", _code(origin.fact("command"))),
        ("weights", origin.fact("weights") or "not said"),
        (
            "processor",
            f"{origin.fact('cpu') or 'not said'}, {origin.fact('threads') or 'unknown'} threads per operator",
        ),
        ("device", (origin.fact("device") or "not said") + ("" if gpu is None else f": {gpu}")),
        ("driver", origin.fact("driver") or "none"),
        ("versions", ", ".join(f"{name} {origin.fact(name)}" for name in _VERSIONS if origin.fact(name)) or "not said"),
        ("commit", _code(origin.fact("commit"))),
        ("measured", " to ".join(dict.fromkeys((times[0], times[-1]))) if times else "not said"),
        ("load average", " to ".join(dict.fromkeys((f"{loads[0]:.2f}", f"{loads[-1]:.2f}"))) if loads else "not said"),
        ("results", _code(origin.results.source)),
    ]
    facts += [
        (f"artifact of {name}, {precision}", join(["sha256 ", _code(digest)])) for name, precision, digest in artifacts
    ]
    rows = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in facts]
    return element(
        "section",
        element("h3", f"Run {origin.number}"),
        element("table", element("tbody", *rows), class_="facts"),
        id=origin.anchor,
    )


def _code(text: str | None) -> Html:
    return element("code", text) if text else Html("not said")
