"""Results -> one HTML page that needs nothing but itself, and its charts as PNG files beside it."""

from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path

from tempme_export.bench import paper
from tempme_export.bench.reporting.charts import SOFTWARE
from tempme_export.bench.reporting.groups import Origin, groups, origins
from tempme_export.bench.reporting.markup import Html, element, join
from tempme_export.bench.reporting.read import Results
from tempme_export.bench.reporting.section import Absent, Pictures, Section
from tempme_export.bench.reporting.section_frames import frames
from tempme_export.bench.reporting.section_origin import origin_section
from tempme_export.bench.reporting.section_paper import paper as paper_section
from tempme_export.bench.reporting.section_speed import operations, speed, summary
from tempme_export.bench.reporting.section_stages import stages
from tempme_export.bench.reporting.section_tokens import tokens
from tempme_export.errors import UsageError
from tempme_export.files import write_file

PAGE = "report.html"
GENERATOR = "tempme-bench report"
_STYLE = "report.css"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_TITLE = "Token-merged video encoders, measured"


def write_report(
    results: Sequence[Results], folder: Path, *, complexity: Sequence[paper.PaperRow] | None = None
) -> list[Path]:
    """Write report.html and its charts into `folder`, which is made where it is not there; returns their paths.

    complexity  counts beside the paper's figures; those of `paper.CLAIMS` where it is None

    Each file is whole or not there, and the page comes last. An earlier report is replaced, its charts that this one
    does not have are removed. Raises BackendError without matplotlib and UsageError where the folder cannot be
    written, or holds a file of these names that is no report's.
    """
    counted = [paper.count(claim) for claim in paper.CLAIMS] if complexity is None else complexity
    pictures = Pictures()
    page = render(results, pictures, counted)
    files = {**pictures.files, PAGE: page.encode("utf-8")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder, files)
        for name, content in files.items():
            write_file(folder / name, content)
        for stale in sorted(folder.glob("*.png")):
            if stale.name not in files and _is_own(stale):
                with suppress(OSError):  # the report is complete
                    stale.unlink()
    except OSError as error:
        raise UsageError(f"the page's folder {folder} cannot be written: {error}. Name a folder that can.") from error
    return [folder / PAGE, *(folder / name for name in pictures.files)]


def render(results: Sequence[Results], pictures: Pictures, counted: Sequence[paper.PaperRow]) -> str:
    """The page. The same results give the same bytes: nothing of the moment it is made enters."""
    runs = origins(results)
    compared = groups(results, runs)
    parts = [
        summary(compared),
        speed(compared, pictures),
        operations(compared, pictures),
        tokens(results, runs, pictures),
        stages(results, runs, pictures),
        frames(results, compared, pictures),
        paper_section(counted, compared),
        origin_section(runs),
    ]
    shown = [part for part in parts if isinstance(part, Section)]
    absent = [part for part in parts if isinstance(part, Absent)]
    body = element(
        "body",
        element("header", element("h1", _TITLE), element("p", _subtitle(results, runs), class_="lead")),
        element(
            "nav",
            element("ul", *(element("li", element("a", part.title, href=f"#{part.anchor}")) for part in shown)),
            aria_label="Contents",
        ),
        element(
            "main",
            *(element("section", element("h2", part.title), part.body, id=part.anchor) for part in shown),
            *([_absent(absent)] if absent else []),
        ),
        element(
            "footer",
            element(
                "p",
                "Written by tempme-bench report. A speed counts only beside its accuracy; what has not converged, is "
                "missing or failed parity is named where its figure stands or would stand.",
            ),
        ),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=GENERATOR),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", _TITLE),
        element("style", Html(resources.files(__package__).joinpath(_STYLE).read_text(encoding="utf-8"))),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _subtitle(results: Sequence[Results], runs: Sequence[Origin]) -> Html:
    """The documents that the page is made of, and the machines they were measured on."""
    machines = list(dict.fromkeys(origin.machine for origin in runs))
    documents = "1 results document" if len(results) == 1 else f"{len(results)} results documents"
    measured = [" measured on ", join(machines, "; ")] if machines else []
    return join([documents, *measured, "."])


def _absent(parts: Sequence[Absent]) -> Html:
    items = [element("li", element("strong", part.title), f": {part.reason}") for part in parts]
    return element("section", element("h2", "Not on this page"), element("ul", *items), id="absent")


def _is_own(path: Path) -> bool:
    """True for a file that this tool wrote, by the mark it leaves near the beginning of each."""
    with path.open("rb") as stream:
        start = stream.read(4096)
    if path.suffix == ".png":
        return f"Software\0{SOFTWARE}".encode() in start
    return element("meta", name="generator", content=GENERATOR).encode() in start


def _refuse_foreign(folder: Path, names: Sequence[str] | dict[str, bytes]) -> None:
    """Raise UsageError for a file in the way that this tool did not write."""
    foreign = [name for name in names if (folder / name).exists() and not _is_own(folder / name)]
    if foreign:
        raise UsageError(
            f"the page's folder {folder} holds {', '.join(foreign)}, not written by this command, expected a new "
            "folder, or one with an earlier report. Name another folder, or move that away."
        )
