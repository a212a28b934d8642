from rich.console import Console

from tempme_export.bench.terminal.suites import fit_tables, method_tables, stage_tables


def shown(tables, width=100):
    console = Console(width=width, record=True, file=None)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
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
    text = shown(fit_tables([FIT, {**FIT, "form": "none", "candidate": "torch", "reason": "2 points"}], []))
    assert "(1.5 +- 0.5) + (20 +- 1) x batch" in text and "0.9991" in text
    assert "torch" not in text


def test_saturation_at_the_edge_may_lie_beyond_it():
    assert "4 or more" in shown(fit_tables([], [SATURATION]))
    assert "or more" not in shown(fit_tables([], [{**SATURATION, "at_edge": False}]))


def test_nothing_to_show():
    assert list(fit_tables([{**FIT, "form": "none"}], [])) == list(method_tables([])) == list(stage_tables([])) == []


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
    assert "the limit is decode" in text and "67 %" in text and "333.30" in text
