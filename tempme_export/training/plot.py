"""A run's curves as one picture."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from tempme_export.errors import BackendError
from tempme_export.files import write_file
from tempme_export.training.log import Row

_SMOOTHED = 0.9  # share of the past in the loss's running mean


def _running_mean(values: Sequence[float]) -> list[float]:
    """Exponential running mean, without the pull of a first value."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHED * total + (1 - _SMOOTHED) * value
        weight = _SMOOTHED * weight + (1 - _SMOOTHED)
        means.append(total / weight)
    return means


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Loss and learning rate over the steps, and R@1 of both directions where it was measured, as PNG.

    rows  of metrics.jsonl, at least one step
    Raises BackendError without matplotlib and ExportError when the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError(
            f"found no matplotlib, so {path.name} is not drawn. Run: pip install 'tempme-export[plot]'"
        ) from error
    steps = [row for row in rows if row["kind"] == "step"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    at, losses = [row["step"] for row in steps], [row["loss"] for row in steps]
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if evaluations else 1, squeeze=False)[0]
    panels[0].plot(at, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    panels[0].plot(at, _running_mean(losses), color="tab:blue", label="loss")
    panels[0].set(xlabel="step", ylabel="loss", ylim=(0, None))
    rate = panels[0].twinx()
    rate.plot(at, [row["lr"] for row in steps], color="tab:gray", linestyle=":", label="learning rate")
    rate.set(ylabel="learning rate", ylim=(0, None))
    panels[0].legend(handles=[*panels[0].get_lines()[1:], *rate.get_lines()], loc="upper right")
    if evaluations:
        for key, label in (("t2v_r1", "text to video"), ("v2t_r1", "video to text"), ("group_r1", "in groups")):
            if all(key in row for row in evaluations):
                panels[1].plot(
                    [row["step"] for row in evaluations], [row[key] for row in evaluations], marker="o", label=label
                )
        panels[1].set(xlabel="step", ylabel="R@1, %", ylim=(0, 100))
        panels[1].legend(loc="lower right")
    for panel in panels:
        panel.grid(alpha=0.3)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_file(path, picture.getvalue())
