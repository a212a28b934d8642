"""Data and a recipe -> a trained checkpoint: the run from its first step to its last, through any interruption."""

import random
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tempme_export.data.annotations import RetrievalData
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import BackendError, ExportError, InputError, sentence
from tempme_export.media.preprocess import preprocess_for
from tempme_export.progress import SILENT, Note, Progress, Step
from tempme_export.training.augment import RandAugment
from tempme_export.training.batches import share
from tempme_export.training.config import TrainConfig
from tempme_export.training.distributed import World, join_world
from tempme_export.training.encoder import TrainableModel
from tempme_export.training.events import Evaluated, LeftOut, Opened, Saved, Started, Trains
from tempme_export.training.files import save_model
from tempme_export.training.folder import (
    BEST,
    CURVES,
    FINAL,
    LAST,
    METRICS,
    SKIPPED,
    TABLE,
    check_room,
    make_folder,
)
from tempme_export.training.log import MetricsLog, Row, read_rows
from tempme_export.training.optimizer import clamp_scale, make_optimizer
from tempme_export.training.plot import draw_curves
from tempme_export.training.prefetch import prefetch
from tempme_export.training.run import TrainResult, deal
from tempme_export.training.schedule import rate_at
from tempme_export.training.skipped import Skipped, SkippedLog
from tempme_export.training.split import Batch, Split, fingerprint, open_split, tokenizer_for
from tempme_export.training.state import (
    Best,
    Position,
    State,
    check_same,
    load_state,
    random_states,
    restore,
    save_state,
    set_random_states,
    trained,
)
from tempme_export.training.step import Outcome, Stepper, resolve_precision
from tempme_export.training.validate import Scores, evaluate, row_of

_TRAIN_DATA, _VAL_DATA = "train data", "val data"  # settings that are known late


class Run:
    """One run in one process. Every process takes the same path; only the first prints and writes."""

    def __init__(
        self,
        config: TrainConfig,
        recipe: Recipe,
        train_data: RetrievalData,
        val_data: RetrievalData | None,
        world: World,
        progress: Progress,
    ) -> None:
        self.started = time.monotonic()
        self.config, self.recipe, self.world = config, recipe, world
        self.progress = progress if world.first else SILENT
        self.files = {name: config.out / name for name in (LAST, BEST, FINAL, METRICS, TABLE, CURVES, SKIPPED)}
        precision = resolve_precision(config.precision, world.device)
        settings: dict[str, Any] = {
            **config.settings(),
            "precision": precision,
            "init": recipe.checkpoint.sha256[:16],
            "profile": recipe.profile.to_dict(),
            "activation": recipe.backbone.activation,
        }
        world.on_first(lambda: make_folder(config))
        saved = load_state(self.files[LAST]) if config.resume else None
        if saved is not None:  # before the videos are looked at, which may take long
            asked = {name: value for name, value in saved.settings.items() if name not in (_TRAIN_DATA, _VAL_DATA)}
            check_same(asked, settings, self.files[LAST])

        self.skipped = SkippedLog(self.files[SKIPPED])
        self.train = self._open("train", train_data)
        self.val = None if val_data is None else self._open("val", val_data)
        self.deck, self.length = deal(config, self.train.owner, self.train.token_ids)
        settings[_TRAIN_DATA] = fingerprint(self.train.data)
        settings[_VAL_DATA] = None if self.val is None else fingerprint(self.val.data)
        self.settings = settings
        self._check_agreement()

        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(config.seed % 2**32)
        tune: Any = config.tune
        model = TrainableModel(recipe, tune, config.rank, config.seed, config.train_temperature)
        self.model = model.to(world.device)
        self.optimizer = make_optimizer(
            self.model, config.rate, config.weight_decay, config.decay, config.betas, config.eps
        )
        self.stepper = self.make_stepper(precision)
        world.on_first(lambda: check_room(config, self.model))
        self.position, self.best = Position(), None
        if saved is not None:
            check_same(saved.settings, settings, self.files[LAST])
            restore(saved, self.model, self.optimizer)
            set_random_states(saved.rng[world.rank % len(saved.rng)], world.device)
            self.position, self.best = saved.position, saved.best
            if self.position.step:  # a frozen scale is not saved
                clamp_scale(self.model.logit_scale)
        self.saved = self.position.step
        self._open_logs()
        self.progress.tell(Trains(self.model.counts()))
        self.progress.tell(Started(self.length, self.position))
        if saved is None:
            self._save()

    def make_stepper(self, precision: str) -> Stepper:
        preprocess = preprocess_for(self.recipe)
        return Stepper(self.model, self.optimizer, preprocess, self.world, precision, self.config.clip_norm)

    def _open(self, name: str, data: RetrievalData) -> Split:
        split, skipped = open_split(name, data, self.recipe, self.world, self.config, self.progress)
        self.skipped.add(skipped)
        self.progress.tell(Opened(split, skipped))
        return split

    def _check_agreement(self) -> None:
        """Raise InputError when the processes were given different things to do."""
        for rank, settings in enumerate(self.world.gather_objects(self.settings)):
            if settings != self.settings:
                raise InputError(
                    f"process {rank} and process {self.world.rank} found different settings, data or initial weights: "
                    f"{settings} and {self.settings}. Start every process with the same command and the same files."
                )

    def _open_logs(self) -> None:
        if not self.world.first:
            return
        self.log = MetricsLog(self.files[METRICS], self.position.step)
        self.skipped.begin(self.position.step)

    def _skip(self, skipped: list[Skipped]) -> None:
        """Record videos that failed during the run, each once."""
        if new := self.skipped.add(skipped):
            self.progress.tell(LeftOut(new))

    def _save(self) -> None:
        """Write last.pt; every process gives its random states."""
        rng = self.world.gather_objects(random_states(self.world.device))
        if self.world.first:
            parameters = {name: p.detach() for name, p in trained(self.model).items()}
            optimizer = self.optimizer.state_dict()
            self.write_state(State(self.settings, parameters, optimizer, self.position, self.best, rng))
            self.progress.tell(Saved(self.position))
        self.saved = self.position.step

    def write_state(self, state: State) -> None:
        save_state(self.files[LAST], state)

    def _save_model(self, name: str) -> None:
        if self.world.first:
            self.write_model(self.files[name])

    def write_model(self, path: Path) -> None:
        save_model(path, self.model.state(), self.recipe, self.config.store)

    def _timed_out(self) -> bool:
        """True where the first process finds that the time is up."""
        limit = self.config.max_minutes
        if limit is None:
            return False
        return self.world.on_first(lambda: time.monotonic() - self.started > 60 * limit)

    def _step(self, training: Step, batch: Batch, rate: float, waited: float, began: float) -> None:
        """Train on one batch and write its line. Raises ExportError where the run diverged."""
        step, device = self.position.step + 1, self.world.device
        pixels, token_ids, valid = (t.to(device, non_blocking=True) for t in batch[:3])
        outcome = self.stepper(pixels, token_ids, valid, rate)
        if outcome.pairs < self.config.batch:
            told = self.world.gather_objects(batch.failed)
            failed = {video: reason for part in told for video, reason in part.items()}
            self._skip([self.train.skipped(video, failed[video], step) for video in sorted(failed)])
        self._check_outcome(outcome, step, rate)
        within = self.position.within + 1
        self.position = Position(step, self.position.epoch, within)
        seconds = time.monotonic() - began
        row = {
            "kind": "step",
            "step": step,
            "epoch": self.position.epoch + 1,
            "loss": outcome.loss,
            "lr": rate,
            "grad_norm": outcome.gradient_norm,
            "temperature": outcome.temperature,
            "pairs": outcome.pairs,
            "samples_per_s": outcome.pairs / seconds,
            "data_wait": waited / seconds,
        }
        if self.world.first:
            self.log.add(row)
        speed, waiting = row["samples_per_s"], row["data_wait"]
        training.advance(step, f"loss {outcome.loss:.3f}, {speed:.0f} pairs/s, waiting {waiting:.0%}")

    def _check_outcome(self, outcome: Outcome, step: int, rate: float) -> None:
        where = f"step {step} of {self.length.steps} (epoch {self.position.epoch + 1}, learning rate {rate:.3g})"
        if outcome.pairs == 0:
            skipped = self.skipped.found
            first = skipped[-1].reason if skipped else "no reason is on record"
            raise InputError(
                f"{where}: no video of the batch could be read, the last because: {sentence(first)} "
                "Look after the videos, then --resume."
            )
        if not outcome.finite:
            raise ExportError(
                f"the training diverged at {where}: loss {outcome.loss}, gradient norm {outcome.gradient_norm}. "
                f"{self.files[LAST]} keeps the last good state, after step {self.saved}. Start anew with a lower --lr, "
                "a longer --warmup or, where it was bf16, --precision fp32."
            )

    def _epoch(self, training: Step) -> bool:
        """Train on what is left of the epoch. False where the time was up before its end."""
        config, world, epoch = self.config, self.world, self.position.epoch
        dealt = self.deck.epoch(epoch)[self.position.within :]
        shares = [share(batch, world.rank, world.size) for batch in dealt]
        change_of = None if config.augment == "none" else partial(RandAugment, config.seed, epoch)
        feed = prefetch(self.train.batches(shares, world.device, change_of))
        with closing(feed):
            for left in range(len(shares), 0, -1):
                began = time.monotonic()
                batch = next(feed)
                waited = time.monotonic() - began
                rate = rate_at(
                    self.position.step, self.length.steps, config.warmup, config.rate, config.warmup_from_zero
                )
                self._step(training, batch, rate, waited, began)
                if left == 1:
                    break
                if self._timed_out():
                    self._save()
                    return False
                if config.save_every is not None and self.position.step % config.save_every == 0:
                    self._save()
        return True

    def _end_epoch(self) -> None:
        """Evaluate, keep the best, save."""
        step, epochs = self.position.step, self.position.epoch + 1
        if self.val is None:
            self._save_model(BEST)
        else:
            (forth, back), groups, skipped = self.validate(self.val, step)
            self._skip(skipped)
            row: Row = {"kind": "evaluation", "step": step, "epoch": epochs}
            row |= row_of(forth, "t2v") | row_of(back, "v2t")
            row |= {} if groups is None else row_of(groups, "group")
            better = self.best is None or forth.r1 > self.best.r1
            if self.world.first:
                self.log.add(row)
            self.progress.tell(Evaluated(row, better))
            if better:
                self.best = Best(forth.r1, epochs)
                self._save_model(BEST)
        self.position = Position(step, epochs, 0)
        self._save()

    def validate(self, val: Split, step: int) -> Scores:
        return evaluate(self.stepper, val, step)

    def draw(self) -> None:
        draw_curves(read_rows(self.files[METRICS]), self.files[CURVES])

    def _finish(self) -> None:
        self._save_model(FINAL)
        if not self.world.first:
            return
        self.log.write_table(self.files[TABLE])
        try:
            self.draw()
        except BackendError as error:
            self.progress.tell(Note(str(error)))

    def go(self) -> TrainResult:
        """Train to the end, or until the time is up."""
        finished = True
        with self.progress.step("training", self.length.steps, "steps", self.position.step) as training:
            while finished and self.position.epoch < self.config.epochs:
                finished = self._epoch(training)
                if finished:
                    self._end_epoch()
                    finished = self.position.epoch == self.config.epochs or not self._timed_out()
        if finished:
            self._finish()
        self.world.gather_objects(None)  # every file is there when any process returns
        written = tuple(name for name, path in self.files.items() if path.exists())
        return TrainResult(
            out=self.config.out,
            finished=finished,
            steps=self.position.step,
            total=self.length.steps,
            best=self.best,
            files=written,
            skipped=tuple(self.skipped.found),
            seconds=time.monotonic() - self.started,
        )


def train(
    config: TrainConfig,
    recipe: Recipe,
    train_data: RetrievalData,
    val_data: RetrievalData | None = None,
    progress: Progress = SILENT,
) -> TrainResult:
    """Train the recipe's model on captioned videos and leave checkpoints in `config.out`.

    recipe    the initial checkpoint with its profile; its backbone has a tokenizer
    val_data  evaluated after every epoch; the best epoch by text-to-video R@1 becomes best.pth, the last one without
    progress  hears of the steps and of the events of `training.events`

    Files: best.pth and final.pth (checkpoints), last.pt (state), metrics.jsonl, metrics.parquet, curves.png,
    skipped.jsonl. The same settings, data and machine give the same weights, interrupted or not. Under torchrun
    every process calls this; the first one writes.

    Raises UsageError for settings out of range, InputError for data that cannot be trained on, a folder that holds
    another run or a resumed run with other settings or data, ProfileError and CheckpointError for the recipe,
    BackendError for a device or precision that is not there, ExportError for a run that diverged or a file that could
    not be written.
    """
    config.check()
    tokenizer_for(recipe)
    with join_world(config.device) as world:
        return Run(config, recipe, train_data, val_data, world, progress).go()
