"""Configuration of a training run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempme_export.errors import UsageError

PRECISIONS = ("auto", "fp32", "bf16")
STORES = ("fp32", "fp16")
TUNINGS = ("lora", "adapter", "prompt", "full")  # what training.encoder can train
RANKED = ("lora", "adapter")
DECAYS = ("all", "matrices")  # what training.optimizer can decay
AUGMENTS = ("randaugment", "none")


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a run; the defaults are those that TempMe is trained with, for LoRA.

    out                folder of the results
    tune               what is trained, one of TUNINGS
    rank               of LoRA; of adapters the inner width
    train_temperature  whether the temperature trains too
    batch              captions a step, over all processes
    rate               highest learning rate
    decay              what the weight decay applies to, one of DECAYS
    betas, eps         of AdamW
    warmup             share of the steps in which the rate rises
    warmup_from_zero   whether the first of them has rate 0, or the first share of the rise
    clip_norm          longest gradient
    augment            what happens to training frames before they are resized, one of AUGMENTS
    cache              folder for decoded frames; None: videos are decoded in every epoch
    allow_damaged      take damaged pictures as the decoder shows them
    workers            processes that decode
    device             auto, cpu, cuda or cuda:N
    save_every         steps between two saved states, beside one after every epoch; None: only those
    max_minutes        save and stop after so long
    """

    out: Path
    tune: str = "lora"
    rank: int = 8
    train_temperature: bool = False
    epochs: int = 5
    batch: int = 128
    rate: float = 6e-4
    weight_decay: float = 0.2
    decay: str = "all"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: float = 0.1
    warmup_from_zero: bool = True
    clip_norm: float = 1.0
    augment: str = "randaugment"
    seed: int = 42
    workers: int = 2
    cache: Path | None = None
    allow_damaged: bool = False
    precision: str = "auto"
    device: str = "auto"
    save_every: int | None = None
    resume: bool = False
    store: str = "fp32"
    max_minutes: float | None = None

    def check(self) -> None:
        """Raise UsageError for settings out of range, naming their options."""
        rules = (
            (self.tune in TUNINGS, f"--tune: found {self.tune!r}, expected one of {', '.join(TUNINGS)}"),
            (self.rank >= 1, f"--rank {self.rank} is below 1"),
            (self.epochs >= 1, f"--epochs {self.epochs} is below 1"),
            (self.batch >= 2, f"--batch {self.batch} is below 2: a loss of contrasts needs two pairs"),
            (0 < self.rate < float("inf"), f"--lr {self.rate} is not a positive number"),
            (0 <= self.weight_decay < float("inf"), f"--weight-decay {self.weight_decay} is negative or not a number"),
            (self.decay in DECAYS, f"--decay: found {self.decay!r}, expected one of {', '.join(DECAYS)}"),
            (
                all(0 <= beta < 1 for beta in self.betas),
                f"--betas {self.betas[0]} {self.betas[1]} are not both from 0 to below 1",
            ),
            (0 < self.eps < float("inf"), f"--eps {self.eps} is not a positive number"),
            (0 <= self.warmup < 1, f"--warmup {self.warmup} is not a share of the steps, from 0 to below 1"),
            (0 < self.clip_norm < float("inf"), f"--clip-norm {self.clip_norm} is not a positive number"),
            (self.augment in AUGMENTS, f"--augment: found {self.augment!r}, expected one of {', '.join(AUGMENTS)}"),
            (
                self.augment == "none" or self.cache is None,
                f"--cache keeps frames that are resized and cropped, and --augment {self.augment} changes them before "
                "that: leave --cache out, or add --augment none",
            ),
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
            "train-temperature": self.train_temperature,
            "lr": self.rate,
            "weight-decay": self.weight_decay,
            "decay": self.decay,
            "betas": list(self.betas),
            "eps": self.eps,
            "warmup": self.warmup,
            "warmup-from-zero": self.warmup_from_zero,
            "clip-norm": self.clip_norm,
            "augment": self.augment,
            "seed": self.seed,
        }
        return {**names, "rank": self.rank} if self.tune in RANKED else names
