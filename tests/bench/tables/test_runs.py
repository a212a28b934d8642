from rich.console import Console

from tempme_export.bench.tables.runs import method_tables, stage_tables, sweep_tables
from tempme_export.bench.tables.terminal import show


def shown(tables, width=100):
    console = Console(width=width)
    with console.capture() as capture:
        for table in tables:
            show(console, table)
    return capture.get()


FIT = {
    "candidate": "ort",
    "quantity": "p50_ms",
    "against": "batch",
    "form": "linear",
    "coefficients": (1.5, 20.0),
    "low": (1.0, 19.0),
    "high": (2.0, 21.0),
    "r2": 0.9991,
    "x": (1.0, 2.0, 4.0),
    "reason": None,
}
SATURATION = {
    "candidate": "ort",
    "profile": "tiny",
    "batch": 4,
    "at_edge": True,
    "videos_per_s": 9.5,
    "best_batch": 4,
    "best_videos_per_s": 9.75,
}


def test_a_fit_is_a_formula_with_half_its_intervals():
    text = shown(sweep_tables([FIT, {**FIT, "form": "none", "candidate": "torch", "reason": "2 points"}], []))
    assert "(1.5 +- 0.5) + (20 +- 1) x batch" in text and "0.9991" in text and "ms of a call" in text
    assert "none: 2 points" in text


def test_saturation_at_the_edge_may_lie_beyond_it():
    assert "4 or more" in shown(sweep_tables([], [SATURATION]))
    assert "or more" not in shown(sweep_tables([], [{**SATURATION, "at_edge": False}]))
    assert "within 3 % of" in shown(sweep_tables([], [{**SATURATION, "within_percent": 3.0}]))


def test_nothing_to_show():
    assert list(sweep_tables([], [])) == list(method_tables([])) == list(stage_tables([])) == []


def test_a_method_without_figures_says_why_and_folds():
    method = {
        "key": "sta",
        "gmacs": None,
        "paper_gflops": 35.7,
        "tokens": None,
        "paper_tokens": None,
        "videos_per_s": None,
        "paper_videos_per_s": None,
        "reason": "because " * 30,
    }
    text = shown(method_tables([method]), width=400)
    assert "35.7" in text and text.count("because") == 30
    assert max(map(len, text.splitlines())) <= 100


def test_stages_name_the_limit():
    table = {
        "candidate": "ort",
        "batch": 1,
        "limit": "decode",
        "sequential_videos_per_s": 2.0,
        "overlapped_videos_per_s": 3.0,
        "rows": [{"stage": "decode", "p50_ms": 333.3, "p90_ms": 400.0, "share": 0.667, "videos_per_s": 3.0}],
    }
    text = shown(stage_tables([table]))
    assert "decode, the limit" in text and " 66.7 " in text and " 333.30 " in text
    rates = {" ".join(line.split()[3:-4]): line.split()[-1] for line in text.splitlines() if ", batch 1" in line}
    whole = {"whole way, one after the other": "2.00", "whole way, overlapped, at most": "3.00"}
    assert rates == {"decode, the limit": "3.00", **whole}
