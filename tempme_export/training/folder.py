"""The folder of a run: its files, whether another run's are in the way, and whether they fit on the disk."""

from tempme_export.data.disk import Disk
from tempme_export.errors import ExportError, InputError
from tempme_export.training.config import TrainConfig
from tempme_export.training.encoder import TrainableModel
from tempme_export.training.state import trained

LAST, BEST, FINAL = "last.pt", "best.pth", "final.pth"
METRICS, TABLE, CURVES, SKIPPED = "metrics.jsonl", "metrics.parquet", "curves.png", "skipped.jsonl"


def check_folder(config: TrainConfig) -> None:
    """Raise InputError when the results of another run would be overwritten, or `out` is no folder."""
    out = config.out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file, expected a folder, which need not exist.")
    found = [name for name in (LAST, BEST, FINAL, METRICS) if (out / name).exists()]
    if found and not config.resume:
        raise InputError(
            f"--out {out} holds a run already ({', '.join(found)}). Add --resume, or choose another folder."
        )


def bytes_needed(config: TrainConfig, model: TrainableModel) -> int:
    """Disk space of the saved state and the checkpoints, a new file beside an old one."""
    values = sum(tensor.numel() for tensor in model.state_dict().values())
    training = sum(parameter.numel() for parameter in trained(model).values())
    return 2 * 3 * 4 * training + 3 * values * (2 if config.store == "fp16" else 4)


def check_room(config: TrainConfig, model: TrainableModel, disk: Disk | None = None) -> None:
    """Raise ExportError when the folder's disk cannot hold what a run writes."""
    needed = bytes_needed(config, model)
    present = sum(path.stat().st_size for path in config.out.iterdir() if path.name in (LAST, BEST, FINAL))
    free = (disk or Disk()).free(config.out)
    if free + present < needed:
        raise ExportError(
            f"--out {config.out}: found {free / 1e6:.0f} MB free on its disk, expected {(needed - present) / 1e6:.0f} "
            "MB for the saved states and checkpoints. Make room or choose another folder."
        )


def make_folder(config: TrainConfig) -> None:
    check_folder(config)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"--out {config.out} cannot be made ({error.strerror}). Choose another folder.") from error
