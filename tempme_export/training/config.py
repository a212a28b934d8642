"""What a training is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempme_export.errors import UsageError

PRECISIONS = ("auto", "fp32", "bf16")
STORES = ("fp32", "fp16")
TUNINGS = ("lora", "adapter", "prompt", "full")  # what training.encoder can train
RANKED = ("lora", "adapter")


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a run; the defaults are the paper's, for LoRA.

    out            folder of the results
    tune           what is trained, one of TUNINGS
    rank           of LoRA; of adapters the inner width
    batch          captions a step, over all processes
    rate           highest learning rate
    warmup         share of the steps in which it rises
    clip_norm      longest gradient
    cache          folder for decoded frames; None: videos are decoded in every epoch
    workers        processes that decode
    device         auto, cpu, cuda or cuda:N
    save_every     steps between two saved states, beside one after every epoch; None: only those
    max_minutes    save and stop after so long
    """

    out: Path
    tune: str = "lora"
    rank: int = 8
    epochs: int = 5
    batch: int = 128
    rate: float = 6e-4
    weight_decay: float = 0.2
    warmup: float = 0.1
    clip_norm: float = 1.0
    seed: int = 0
    workers: int = 2
    cache: Path | None = None
    precision: str = "auto"
    device: str = "auto"
    save_every: int | None = None
    resume: bool = False
    store: str = "fp32"
    max_minutes: float | None = None

    def check(self) -> None:
        """Raise UsageError for settings out of range, naming their options."""
        rules = (
            (self.tune in TUNINGS, f"--tune {self.tune!r} is not one of {', '.join(TUNINGS)}"),
            (self.rank >= 1, f"--rank {self.rank} is below 1"),
            (self.epochs >= 1, f"--epochs {self.epochs} is below 1"),
            (self.batch >= 2, f"--batch {self.batch} is below 2: a loss of contrasts needs two pairs"),
            (0 < self.rate < float("inf"), f"--lr {self.rate} is not a positive number"),
            (0 <= self.weight_decay < float("inf"), f"--weight-decay {self.weight_decay} is negative or not a number"),
            (0 <= self.warmup < 1, f"--warmup {self.warmup} is not a share of the steps, from 0 to below 1"),
            (0 < self.clip_norm < float("inf"), f"--clip-norm {self.clip_norm} is not a positive number"),
            (self.seed >= 0, f"--seed {self.seed} is negative"),
            (self.workers >= 0, f"--workers {self.workers} is negative"),
            (self.precision in PRECISIONS, f"--precision {self.precision!r} is not auto, fp32 or bf16"),
            (self.store in STORES, f"--store {self.store!r} is not fp32 or fp16"),
            (self.save_every is None or self.save_every >= 1, f"--save-every {self.save_every} is below 1"),
            (
                self.max_minutes is None or self.max_minutes > 0,
                f"--max-minutes {self.max_minutes} is not a positive number",
            ),
        )
        problems = [message for fine, message in rules if not fine]
        if problems:
            raise UsageError(f"{'; '.join(problems)}. See tempme-train --help.")

    def settings(self) -> dict[str, Any]:
        """The settings that the weights depend on, by the names of their options. Where and how fast it runs, and
        what is kept, may change when a run is resumed; these may not."""
        names = {
            "tune": self.tune,
            "epochs": self.epochs,
            "batch": self.batch,
            "lr": self.rate,
            "weight-decay": self.weight_decay,
            "warmup": self.warmup,
            "clip-norm": self.clip_norm,
            "seed": self.seed,
        }
        return {**names, "rank": self.rank} if self.tune in RANKED else names
