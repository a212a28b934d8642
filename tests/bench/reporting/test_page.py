import html.parser
import itertools
import json
import re

import pytest

from tempme_export.bench import paper
from tempme_export.bench.reporting.page import PAGE, write_report
from tempme_export.bench.reporting.read import Results, read_results
from tempme_export.errors import ExportError, UsageError

pytest.importorskip("matplotlib")

VOID = {"meta", "img", "link", "br", "source"}
EMPTY = {"schema": 3, "rows": []}


class Parsed(html.parser.HTMLParser):
    """Checks nesting, and collects tags with attributes and what stands between them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(self.words).replace("\xa0", " ")


@pytest.fixture(scope="module")
def report(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return folder, write_report([read_results(one) for one in folders], folder)


@pytest.fixture(scope="module")
def parsed(report):
    return Parsed((report[0] / PAGE).read_text(encoding="utf-8"))


def test_the_page_and_its_pictures_are_written(report):
    folder, written = report
    assert written[0] == folder / PAGE
    assert sorted(written) == sorted(folder.iterdir())
    names = {path.name for path in written}
    assert {"videos_per_s.png", "gflops_videos_per_s.png", "tokens_per_block.png", "stages.png"} <= names
    assert {"cost_frames.png", "time_frames.png", "videos_per_s_2.png"} <= names


def test_it_needs_nothing_but_itself(report, parsed):
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "#").startswith(("data:image/png;base64,", "#"))
    text = (report[0] / PAGE).read_text(encoding="utf-8")
    assert re.findall(r"url\(|@import|https?://", text) == []
    assert any("default-src 'none'" in meta.get("content", "") for meta in parsed.all("meta"))


def test_it_is_accessible(parsed):
    assert parsed.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in parsed.all("meta"))
    assert all(len(image["alt"]) > 20 for image in parsed.all("img")) and parsed.all("img")
    assert all(head.get("scope") in ("col", "row") for head in parsed.all("th"))
    assert len(parsed.all("caption")) == len([table for table in parsed.all("table") if table.get("class") != "facts"])
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_link_leads_somewhere(parsed):
    anchors = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    assert {link["href"][1:] for link in parsed.all("a")} <= set(anchors)
    assert {"run-1", "run-2", "run-3"} <= set(anchors)


def test_every_speed_has_its_accuracy_beside_it(report):
    text = (report[0] / PAGE).read_text(encoding="utf-8").replace("\xa0", " ")
    tables = re.findall(r"<table>.*?</table>", text)
    heads = [re.findall(r'<th scope="col"[^>]*>(.*?)</th>', table) for table in tables]
    speeds = [
        head
        for head in heads
        if any(one in ("videos/s", "p50 ms", "p90 ms", "ms of a video", "device ms") for one in head)
    ]
    assert len(speeds) >= 10
    assert [head for head in speeds if not {"1 \N{MINUS SIGN} cos", "accuracy"} & set(head)] == []


def test_what_is_wrong_stands_near_its_figure(report):
    text = (report[0] / PAGE).read_text(encoding="utf-8")
    section = text[text.index("vit-b-32-12f: backends") : text.index("vit-b-16-12f: methods")]
    for words in (
        "torch: NOT CONVERGED",
        "Do not rely",
        "missing: tensorrt",
        "failed parity: pt2",
        "42 samples, fewer",
    ):
        assert words in section
    first = text[text.index("vit-b-32-8f: backends") : text.index("vit-b-32-12f: backends")]
    assert "builds and runs no TensorRT" in first and "the limit 1e-05" in first


def test_every_number_can_be_traced(parsed):
    for words in (
        *("tempme-bench --frames 8,12 --batch 1,4 --out one", "tempme-bench --mode end-to-end"),
        *("Example CPU 8-Core", "torch 2.15.0", "0123456789abcdef0123456789abcdef01234567", "ab" * 32),
        *("random weights, seed 0", "2026-03-04T05:06:07+00:00", "one/bench.json"),
    ):
        assert words in parsed.text


def test_the_same_results_give_the_same_page(folders, tmp_path):
    results = [read_results(one) for one in folders]
    pages = [write_report(results, tmp_path / name)[0].read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]


def test_words_from_data_stay_words(bench, candidates, tmp_path):
    evil = "</td><script>alert('x')</script>\"&"
    one = bench(evil)
    one.compare("vit-b-32-12f", candidates())
    for row in one.document["rows"]:
        row |= {"weights": evil, "cpu": evil, "commit": evil, "precision": evil, "time": evil}
    one.document["rows"][1]["candidate"] = one.document["comparisons"][0]["order"][1] = evil
    one.document["missing"] = {evil: evil}
    one.document["failed"] = {evil: evil}
    one.document["notes"] = [evil]
    one.document["comparisons"][0]["notes"] = [evil]
    one.document["tokens"][0]["method"] = evil
    text = write_report([Results.of(one.document, source=evil)], tmp_path)[0].read_text(encoding="utf-8")
    assert "<script" not in text and Parsed(text).text.count(evil) > 10


def test_without_measurements_the_page_still_counts(tmp_path):
    text = Parsed(write_report([Results.of(EMPTY)], tmp_path / "new" / "folder")[0].read_text(encoding="utf-8")).text
    for words in (
        "no end-to-end run in these results",
        "no token counts",
        "no speeds of encoders",
        "nothing was measured",
    ):
        assert words in text
    assert "282.76" in text and "Counted, ViT-B/32" not in text


def test_rows_with_nothing_but_what_they_must_have_are_shown(bench, candidates, tmp_path):
    one = bench("c")
    one.compare("vit-b-32-12f", candidates())
    needed = ("candidate", "frames", "batch", "videos_per_s")
    one.document["rows"] = [{key: row[key] if key in needed else None for key in row} for row in one.document["rows"]]
    text = Parsed(write_report([Results.of(one.document)], tmp_path)[0].read_text(encoding="utf-8")).text
    assert "none can be relied upon" in text and "not judged" in text and "not compared" in text


def test_given_counts_stand_in_place_of_the_claims(tmp_path):
    row = paper.count(next(claim for claim in paper.CLAIMS if claim.label == "ToMe B/16"))
    text = write_report([Results.of(EMPTY)], tmp_path, complexity=[row])[0].read_text(encoding="utf-8")
    assert "144.38" in text and "121.41" not in text


def test_an_earlier_report_is_replaced_with_its_pictures(folders, tmp_path):
    write_report([read_results(one) for one in folders], tmp_path)
    assert (tmp_path / "stages.png").exists()
    (tmp_path / "holiday.png").write_bytes(b"mine")
    written = write_report([Results.of(EMPTY)], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*(path.name for path in written), "holiday.png"}
    assert (tmp_path / "holiday.png").read_bytes() == b"mine"


@pytest.mark.parametrize("name", [PAGE, "cost_frames.png"])
def test_a_file_of_somebody_else_is_not_overwritten(tmp_path, name):
    (tmp_path / name).write_bytes(b"<html>mine</html>")
    with pytest.raises(UsageError, match=rf"holds {name}, not written by this command.*Name another folder"):
        write_report([Results.of(EMPTY)], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"<html>mine</html>"


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_report([Results.of(EMPTY)], tmp_path / "file")


def test_a_write_that_fails_leaves_the_earlier_report_whole(tmp_path, largest_file):
    before = {path: path.read_bytes() for path in write_report([Results.of(EMPTY)], tmp_path)}
    with largest_file(1000), pytest.raises(ExportError, match="could not be written"):
        write_report([Results.of(EMPTY)], tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_matplotlib_nothing_is_written(tmp_path, run_python, not_installed):
    said = run_python(
        f"""
        from pathlib import Path

        from tempme_export.bench.reporting.page import write_report
        from tempme_export.bench.reporting.read import Results
        from tempme_export.errors import BackendError

        try:
            write_report([Results.of({EMPTY!r})], Path({str(tmp_path / "new")!r}))
        except BackendError as error:
            print(error)
        """,
        packages={"matplotlib": not_installed("matplotlib")},
    )
    assert "matplotlib" in said and "pip install 'tempme-export[plot]'" in said
    assert not (tmp_path / "new").exists()


PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images], shown = images.filter(one => one.offsetParent !== null);
  const wide = [...document.querySelectorAll("body *")].filter(one => !one.closest(".scroll")
    && one.getBoundingClientRect().right > innerWidth + 0.5);
  const tables = [...document.querySelectorAll(".scroll")];
  const found = JSON.stringify({inner: innerWidth, scroll: document.documentElement.scrollWidth,
    images: images.length, shown: shown.length, blank: images.filter(one => one.naturalWidth === 0).length,
    beyond: wide.length, tables: tables.filter(one => one.scrollWidth > one.clientWidth).length});
  parent.postMessage(found, "*");
});
</script>"""


def probe(report, tmp_path, browse, width):
    """What a browser says of a copy of the page that reports on itself, in a frame of that width: a window of its own
    may not be as narrow as a phone."""
    text = (report[0] / PAGE).read_text(encoding="utf-8")
    copy, around = tmp_path / "probe.html", tmp_path / "around.html"
    policy = '<meta http-equiv="Content-Security-Policy"'
    assert text.count(policy) == 1
    copy.write_text(re.sub(policy + "[^>]*>", "", text).replace("</body>", PROBE + "</body>"), encoding="utf-8")
    around.write_text(
        "<script>onmessage = one => { document.title = one.data; };</script>"
        f'<iframe src="{copy.name}" width="{width}" height="900" style="border: 0"></iframe>'
    )
    shown = browse(around, "--dump-dom", "--virtual-time-budget=10000")
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", shown)[1]))


@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_every_picture_and_nothing_overflows(report, tmp_path, browse, width):
    found = probe(report, tmp_path, browse, width)
    assert found["inner"] == width
    assert found["scroll"] <= width and found["beyond"] == 0
    assert found["blank"] == 0 and found["images"] == 2 * found["shown"] > 10
    if width == 360:
        assert found["tables"] > 5


@pytest.mark.parametrize("width", [360, 1200])
def test_a_screenshot_is_a_page_on_white(report, tmp_path, browse, width):
    import numpy as np
    from PIL import Image

    shot = tmp_path / "shot.png"
    browse(report[0] / PAGE, f"--screenshot={shot}", f"--window-size={width},2400")
    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.shape == (2400, width)
    assert (pixels > 250).mean() > 0.7 and (pixels < 100).mean() > 0.005
    assert all((band < 200).any() for band in np.array_split(pixels, 6))


def test_it_prints_on_a4(report, tmp_path, browse):
    printed = tmp_path / "page.pdf"
    browse(report[0] / PAGE, f"--print-to-pdf={printed}", "--no-pdf-header-footer")
    content = printed.read_bytes()
    assert content.startswith(b"%PDF-")
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content)
    assert 5 < len(boxes) < 40
    assert all(abs(float(w) - 595.3) < 1 and abs(float(h) - 841.9) < 1 for w, h in boxes)
