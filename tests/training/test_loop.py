"""Whole runs: what they leave behind, that they learn, and that no interruption changes their weights."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from contextlib import ExitStack
from typing import get_args

import numpy as np
import polars as pl
import pytest
import torch

from tempme_export.data.clip import Clip
from tempme_export.data.disk import Disk
from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.encoder.recipe import prepare
from tempme_export.errors import BackendError, ExportError, InputError, ProfileError, UsageError
from tempme_export.evaluation.metrics import Retrieval, retrieval
from tempme_export.media.preprocess import preprocess_for
from tempme_export.progress import SILENT, Note
from tempme_export.training import config as config_module
from tempme_export.training import loop, plot
from tempme_export.training.config import TrainConfig
from tempme_export.training.distributed import World
from tempme_export.training.encoder import Tune
from tempme_export.training.events import Evaluated, LeftOut, Opened, Saved, Started, Trains
from tempme_export.training.folder import check_room
from tempme_export.training.log import read_rows
from tempme_export.training.loop import Run
from tempme_export.training.loss import contrastive_loss
from tempme_export.training.optimizer import make_optimizer
from tempme_export.training.preview import preview
from tempme_export.training.split import open_split
from tempme_export.training.state import Position, load_state
from tempme_export.training.step import Stepper, resolve_precision
from tempme_export.training.validate import evaluate

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache, recipe, data, val, recording):
    """One run from its first step to its last; its result and what it told. Do not write there."""
    told = recording()
    config = TrainConfig(
        out=tmp_path_factory.mktemp("whole") / "out",
        epochs=2,
        batch=4,
        rank=2,
        workers=0,
        cache=cache,
        augment="none",
        device="cpu",
        rate=1e-3,
        save_every=2,
    )
    return loop.train(config, recipe, data, val, told), told


TEMPERATURE = 2**-20  # relative rounding of one: of its logarithm, up to 4.6, half of 2^-21, and of the power


class TestStep:
    def stepper(self, recipe, trainable, **changes):
        model = trainable(recipe, "lora", rank=2)
        settings = {"world": ALONE, "precision": "fp32", "clip_norm": 1.0, **changes}
        return Stepper(model, make_optimizer(model, 1e-3, 0.2), preprocess_for(recipe), **settings)

    def batch(self, pixels_of, rows=3):
        token_ids = torch.zeros(rows, 12, dtype=torch.int64)
        token_ids[:, :3] = torch.tensor([[49406, 300 + row, 49407] for row in range(rows)])
        return pixels_of(rows), token_ids, torch.ones(rows, dtype=torch.bool)

    def test_the_outcome_is_of_the_weights_before(self, recipe, trainable, pixels_of, logit_error):
        stepper = self.stepper(recipe, trainable)
        pixels, token_ids, valid = self.batch(pixels_of)
        with torch.no_grad():
            frames = torch.stack([torch.from_numpy(preprocess_for(recipe).normalise(p.numpy())) for p in pixels])
            video, text = stepper.model.video(frames), stepper.model.text(token_ids)
            expected = contrastive_loss(text, video, stepper.model.logit_scale.exp())
            tau = float(torch.exp(-stepper.model.logit_scale))
        outcome = stepper(pixels, token_ids, valid, 1e-3)
        assert outcome.loss == pytest.approx(float(expected), abs=2 * logit_error)
        assert outcome.temperature == tau and outcome.pairs == 3 and outcome.finite

    def test_the_gradient_is_cut_to_its_longest(self, recipe, trainable, pixels_of):
        stepper = self.stepper(recipe, trainable, clip_norm=1e-3)
        outcome = stepper(*self.batch(pixels_of), 1e-3)
        after = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in stepper.parameters if p.grad is not None))
        assert outcome.gradient_norm > 0.01
        # torch adds 1e-6 to the length that it divides by; the squares' roundings are independent.
        rounding = 2**-23 * math.sqrt(sum(p.numel() for p in stepper.parameters))
        assert after == pytest.approx(1e-3, rel=1e-6 / outcome.gradient_norm + rounding)

    def test_the_rate_is_that_of_the_step(self, recipe, trainable, pixels_of):
        """The first step of Adam moves a value by at most the rate; what is zero has nothing to decay."""
        stepper = self.stepper(recipe, trainable)
        stepper(*self.batch(pixels_of), 0.25)
        moved = max(
            float(p.detach().abs().max()) for name, p in stepper.model.named_parameters() if name.endswith("LoRA_b")
        )
        assert 0.2 < moved <= 0.25 * (1 + 2**-20), "a few roundings"

    def test_the_temperature_is_clamped(self, recipe, trainable, pixels_of):
        stepper = self.stepper(recipe, trainable)
        stepper.model.logit_scale.data.fill_(5.5)
        stepper(*self.batch(pixels_of), 1e-3)
        assert float(stepper.model.logit_scale.detach()) == pytest.approx(math.log(100), abs=2**-22)

    def test_frozen_weights_stay(self, recipe, trainable, pixels_of):
        stepper = self.stepper(recipe, trainable)
        before = {name: p.detach().clone() for name, p in stepper.model.named_parameters()}
        for _ in range(2):  # LoRA's A moves once its B has
            stepper(*self.batch(pixels_of), 1e-2)
        for name, parameter in stepper.model.named_parameters():
            assert torch.equal(parameter.detach(), before[name]) != parameter.requires_grad, name

    @pytest.mark.parametrize("what", ["loss", "gradient"])
    def test_weights_do_not_move_on_what_is_not_finite(self, recipe, trainable, pixels_of, what):
        class Bad(torch.autograd.Function):
            @staticmethod
            def forward(ctx, loss):
                return loss * (torch.nan if what == "loss" else 1)

            @staticmethod
            def backward(ctx, gradient):
                return gradient * torch.inf

        stepper = self.stepper(recipe, trainable, loss=lambda *args: Bad.apply(contrastive_loss(*args)))
        before = {name: p.detach().clone() for name, p in stepper.model.named_parameters()}
        outcome = stepper(*self.batch(pixels_of), 1e-2)
        assert not outcome.finite
        assert math.isfinite(outcome.loss) == (what == "gradient")
        assert all(torch.equal(p.detach(), before[name]) for name, p in stepper.model.named_parameters())

    def test_bfloat16(self, recipe, trainable, pixels_of):
        outcomes = [
            self.stepper(recipe, trainable, precision=precision)(*self.batch(pixels_of), 1e-3)
            for precision in ("fp32", "bf16")
        ]
        assert outcomes[0].loss != outcomes[1].loss
        assert outcomes[0].loss == pytest.approx(outcomes[1].loss, rel=0.2)

    def test_precisions(self):
        class Cuda:
            def __init__(self, has_bf16):
                self.is_bf16_supported = lambda: has_bf16

            def get_device_name(self, device):
                return "an old one"

        gpu = torch.device("cuda")
        assert [resolve_precision(p, CPU) for p in ("auto", "fp32", "bf16")] == ["fp32", "fp32", "bf16"]
        new, old = Cuda(True), Cuda(False)
        assert [resolve_precision(p, gpu, new) for p in ("auto", "fp32", "bf16")] == ["bf16", "fp32", "bf16"]
        assert resolve_precision("auto", gpu, old) == "fp32"
        with pytest.raises(BackendError, match=r"an old one has no bfloat16\. Use fp32"):
            resolve_precision("bf16", gpu, old)


class TestWholeRun:
    def test_what_it_leaves(self, whole, recipe):
        result, _ = whole
        assert result.finished and result.steps == result.total == 6 and result.skipped == ()
        names = {"last.pt", "best.pth", "final.pth", "metrics.jsonl", "metrics.parquet", "skipped.jsonl"}
        assert set(result.files) - {"curves.png"} == names
        assert {path.name for path in result.out.iterdir()} == set(result.files)
        assert (result.out / "skipped.jsonl").read_text() == ""
        assert result.model == result.out / "best.pth"
        assert json.loads(json.dumps(result.to_dict()))["best"]["r1"] == result.best.r1
        for name in ("best.pth", "final.pth"):
            trained = prepare(load_checkpoint(result.out / name), recipe.profile)
            assert trained.checkpoint.facts.lora_rank == 2
            assert torch.load(result.out / name, weights_only=True)["profile"] == recipe.profile.to_dict()

    def test_the_log(self, whole):
        result, told = whole
        rows = read_rows(result.out / "metrics.jsonl")
        assert [(row["kind"][0], row["step"], row["epoch"]) for row in rows] == [
            *(("s", 1, 1), ("s", 2, 1), ("s", 3, 1), ("e", 3, 1)),
            *(("s", 4, 2), ("s", 5, 2), ("s", 6, 2), ("e", 6, 2)),
        ]
        steps = [row for row in rows if row["kind"] == "step"]
        assert told.amounts("training") == [(done, 6) for done in range(7)]
        assert [row["lr"] for row in steps[:2]] == pytest.approx([0.0, 1e-3])
        assert steps[-1]["lr"] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 4 / 5)))
        for row in steps:
            assert row["loss"] > 0 and row["grad_norm"] > 0 and row["pairs"] == 4
            assert (
                row["temperature"] == pytest.approx(math.exp(-2.6593), rel=TEMPERATURE)
                and row["samples_per_s"] > 0
                and 0 <= row["data_wait"] <= 1
            )
        validated = [row for row in rows if row["kind"] == "evaluation"]
        assert [one.row for one in told.of(Evaluated)] == validated
        for row in validated:
            assert 0 <= row["t2v_r1"] <= row["t2v_r5"] <= row["t2v_r10"] == 100
            assert row["v2t_r10"] == 100 and row["t2v_mean_rank"] >= 1
        assert pl.read_parquet(result.out / "metrics.parquet")["step"].to_list() == [row["step"] for row in rows]

    def test_the_state_is_saved_as_often_as_asked_and_after_every_epoch(self, whole):
        _, told = whole
        assert [one.position for one in told.of(Saved)] == [
            Position(0, 0, 0),
            Position(2, 0, 2),
            Position(3, 1, 0),
            Position(4, 1, 1),
            Position(6, 2, 0),
        ]

    def test_the_same_again(self, whole, run, assert_same_weights):
        result, _ = run()
        assert_same_weights(result.out / "final.pth", whole[0].out / "final.pth")

    def test_another_seed_gives_other_weights(self, whole, run, weights_of):
        result, _ = run(seed=1)
        first, second = (weights_of(one.out / "final.pth") for one in (result, whole[0]))
        assert any(not torch.equal(first[name], second[name]) for name in first)

    def test_decoding_in_every_epoch_gives_the_same(self, whole, run, assert_same_weights):
        result, _ = run(cache=None)
        assert_same_weights(result.out / "final.pth", whole[0].out / "final.pth")

    def test_augmented_it_is_another_run_and_the_same_again(self, whole, run, assert_same_weights, weights_of):
        """Whoever decodes, and wherever it was interrupted."""
        changes = {"augment": "randaugment", "cache": None}
        first, _ = run(**changes, val=None)
        shutil.move(first.out, first.out.with_name("first"))
        run(**changes, val=None, max_minutes=1e-9)
        second, _ = run(**changes, val=None, workers=2, resume=True)
        assert_same_weights(first.out.with_name("first") / "final.pth", second.out / "final.pth")
        plain, ours = (weights_of(one.out / "final.pth") for one in (whole[0], second))
        assert any(not torch.equal(plain[name], ours[name]) for name in plain)

    def test_a_kept_temperature_above_the_largest_is_cut_once(self, run, recipe, weights_of):
        """As the original's is after its first step; a resumed run goes on from there."""
        tensors = {**recipe.checkpoint.tensors, "logit_scale": torch.tensor(5.5)}
        hot = dataclasses.replace(recipe, checkpoint=dataclasses.replace(recipe.checkpoint, tensors=tensors))
        run(recipe=hot, val=None, max_minutes=1e-9)
        result, _ = run(recipe=hot, val=None, resume=True)
        temperatures = [row["temperature"] for row in read_rows(result.out / "metrics.jsonl") if row["step"] > 1]
        assert temperatures == pytest.approx([0.01] * 5, rel=TEMPERATURE)
        assert float(weights_of(result.out / "final.pth")["clip.logit_scale"]) == pytest.approx(
            math.log(100), abs=2**-22
        )

    def test_nobody_need_watch(self, config, recipe, data):
        result = loop.train(dataclasses.replace(config, epochs=1), recipe, data)
        assert result.finished and result.best is None

    def test_without_validation_the_last_is_the_best(self, run, assert_same_weights):
        result, told = run(val=None)
        assert result.best is None and told.of(Evaluated) == []
        assert_same_weights(result.out / "best.pth", result.out / "final.pth")

    def test_half_precision_storage(self, whole, run, weights_of):
        result, _ = run(store="fp16")
        for name in ("best.pth", "final.pth"):
            half, full = weights_of(result.out / name), weights_of(whole[0].out / name)
            assert all(torch.equal(half[key], full[key].half()) for key in full)

    @pytest.mark.parametrize(("tune", "kind"), [("adapter", "adapters"), ("prompt", "prompts")])
    def test_other_additions(self, run, recipe, tune, kind, weights_of):
        """They are trained, saved and resumed as LoRA is."""
        result, told = run(tune=tune, epochs=1, max_minutes=1e-9)
        assert told.of(Trains)[0].counts[kind] > 1000
        before = load_state(result.out / "last.pt").parameters
        result, _ = run(tune=tune, epochs=1, resume=True)
        after = load_state(result.out / "last.pt").parameters
        assert result.finished and all(not torch.equal(before[name], after[name]) for name in before)
        assert set(load_checkpoint(result.out / "final.pth").tensors) > set(recipe.checkpoint.tensors)

    def test_counts_are_told(self, whole):
        counts = whole[1].of(Trains)[0].counts
        assert counts.keys() == {"lora", "clip positions"} and counts["lora"] > 1000

    def test_it_learns(self, tmp_path, cache, recipe, data):
        """From nothing, nine clips and their captions by heart; chance would be log(8)."""

        class Unwritten(Run):
            def write_model(self, path):
                """48 times the same file."""

        config = TrainConfig(
            out=tmp_path / "out",
            tune="full",
            train_temperature=True,
            epochs=48,
            batch=8,
            workers=0,
            cache=cache,
            augment="none",
            device="cpu",
            rate=1e-3,
        )
        Unwritten(config, recipe, data, None, ALONE, SILENT).go()
        losses = [row["loss"] for row in read_rows(tmp_path / "out" / "metrics.jsonl")]
        assert np.mean(losses[:2]) > 1.5
        assert np.mean(losses[-2:]) < 0.6


class TestBest:
    def validated(self, *r1):
        """Runs whose epochs are scored so, text to video, and which note the temperature of each model they write."""
        left, saved = list(r1), {}

        class Validated(Run):
            def validate(self, val, step):
                recall = left.pop(0)
                names = ("text-to-video", "video-to-text")
                return [Retrieval(name, recall, 50.0, 100.0, 1.0, 1.0, 4, 3) for name in names], None, []

            def write_model(self, path):
                super().write_model(path)
                saved.setdefault(path.name, []).append(self.model.logit_scale.detach().clone())

        return Validated, saved

    @pytest.mark.parametrize(("r1", "best"), [((10.0, 30.0, 20.0), 2), ((30.0, 30.0, 10.0), 1), ((0.0, 0.0, 5.0), 3)])
    def test_it_is_the_first_with_the_highest_recall(self, run, weights_of, r1, best):
        kind, saved = self.validated(*r1)
        result, told = run(kind=kind, epochs=3)
        assert (result.best.r1, result.best.epochs) == (max(r1), best)
        assert told.of(Evaluated)[best - 1].better
        assert weights_of(result.out / "best.pth")["clip.logit_scale"] == saved["best.pth"][-1]
        assert len(saved["best.pth"]) == len({r for i, r in enumerate(r1) if r > max(r1[:i], default=-1)})
        assert len(saved["final.pth"]) == 1

    def test_the_best_so_far_is_remembered_when_resumed(self, run, weights_of):
        kind, _ = self.validated(30.0)
        run(kind=kind, epochs=2, max_minutes=1e-9, save_every=1)
        for _ in range(2):
            run(kind=kind, epochs=2, max_minutes=1e-9, resume=True)
        result, _ = run(kind=kind, epochs=2, max_minutes=1e-9, resume=True)
        assert result.best is not None and result.best.epochs == 1
        before = weights_of(result.out / "best.pth")["clip.logit_scale"]
        kind, _ = self.validated(20.0)
        result, _ = run(kind=kind, epochs=2, resume=True)
        assert result.finished and (result.best.r1, result.best.epochs) == (30.0, 1)
        assert weights_of(result.out / "best.pth")["clip.logit_scale"] == before


class Crash(BaseException):
    """The end of a process, as far as a test in the same process can have it."""


class TestInterrupted:
    @pytest.mark.parametrize("where", ["step 1", "step 4", "evaluation", "best.pth", "last.pt", "final.pth"])
    def test_resumed_it_is_as_if_nothing_had_happened(self, whole, run, assert_same_weights, where):
        """Die in the middle of a step, or with a file half written; then go on."""
        count = {"step": 0, "last.pt": 0}

        def half(path):
            path.with_name(f".{path.name}.tmp").write_bytes(b"half")
            raise Crash

        class DyingStepper(Stepper):
            def __call__(self, *args):
                count["step"] += 1
                outcome = super().__call__(*args)
                if where == f"step {count['step']}":
                    raise Crash
                return outcome

        class Dying(Run):
            def make_stepper(self, precision):
                return DyingStepper(
                    self.model,
                    self.optimizer,
                    preprocess_for(self.recipe),
                    self.world,
                    precision,
                    self.config.clip_norm,
                )

            def validate(self, val, step):
                if where == "evaluation":
                    raise Crash
                return super().validate(val, step)

            def write_model(self, path):
                if path.name == where:
                    half(path)
                super().write_model(path)

            def write_state(self, state):
                count["last.pt"] += 1
                if where == "last.pt" and count["last.pt"] == 3:
                    half(self.files["last.pt"])
                super().write_state(state)

        with pytest.raises(Crash):
            run(kind=Dying, save_every=2)
        torch.manual_seed(99), np.random.seed(99)
        result, _ = run(save_every=2, resume=True)
        assert result.finished
        for name in ("best.pth", "final.pth"):
            assert_same_weights(result.out / name, whole[0].out / name)

        def lasting(out):
            clocks = ("samples_per_s", "data_wait")
            return [{k: v for k, v in row.items() if k not in clocks} for row in read_rows(out / "metrics.jsonl")]

        assert lasting(result.out) == lasting(whole[0].out)
        ours, theirs = (load_state(out / "last.pt") for out in (result.out, whole[0].out))
        assert (ours.position, ours.best) == (theirs.position, theirs.best)

    def test_in_the_middle_of_an_epoch(self, whole, run, assert_same_weights):
        """The time is up after every step; each run takes one more."""
        result, _ = run(save_every=1, max_minutes=1e-9)
        assert not result.finished and result.steps == 1 and result.total == 6 and result.model is None
        taken = []
        while not result.finished:
            before = result.steps
            result, told = run(max_minutes=1e-9, resume=True)
            assert told.of(Started)[0].position.step == before
            taken.append(result.steps)
        assert taken == [2, 3, 4, 5, 6]
        assert_same_weights(result.out / "final.pth", whole[0].out / "final.pth")

    def test_a_finished_run_is_only_finished_again(self, whole, run, assert_same_weights):
        first, _ = run()
        (first.out / "final.pth").unlink()
        result, told = run(resume=True)
        assert result.finished and told.amounts("training") == [(6, 6)]
        assert_same_weights(result.out / "final.pth", whole[0].out / "final.pth")

    def test_how_it_runs_may_change(self, run, assert_same_weights, whole):
        run(max_minutes=1e-9)
        result, _ = run(resume=True, cache=None, store="fp16", save_every=1)
        assert result.finished
        assert load_state(result.out / "last.pt").best == load_state(whole[0].out / "last.pt").best

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"rate": 2e-3}, "lr is 0.002 now and was 0.001"),
            ({"seed": 1}, "seed is 1 now and was 42"),
            ({"betas": (0.9, 0.98)}, "betas is [0.9, 0.98] now and was [0.9, 0.999]"),
            (
                {"train_temperature": True, "decay": "matrices", "eps": 1e-6},
                "decay is matrices now and was all; eps is 1e-06 now and was 1e-08; train-temperature is True now",
            ),
            ({"warmup_from_zero": False}, "warmup-from-zero is False now and was True"),
            ({"augment": "randaugment", "cache": None}, "augment is randaugment now and was none"),
            ({"batch": 5}, "batch is 5 now and was 4"),
            ({"epochs": 3, "warmup": 0.2}, "epochs is 3 now and was 2; warmup is 0.2 now and was 0.1"),
            ({"rank": 4}, "rank is 4 now and was 2"),
            ({"tune": "full"}, "rank is nothing now and was 2; tune is full now and was lora"),
            ({"precision": "bf16"}, "precision is bf16 now and was fp32"),
            ({"val": None}, "val data is None now"),
        ],
    )
    def test_other_settings_are_refused(self, run, change, words):
        first, _ = run(max_minutes=1e-9)
        before = {path.name: path.read_bytes() for path in first.out.iterdir()}
        with pytest.raises(InputError) as caught:
            run(resume=True, **change)
        assert words in str(caught.value) and "anew in another folder" in str(caught.value)
        assert {path.name: path.read_bytes() for path in first.out.iterdir()} == before

    def test_settings_are_looked_at_before_videos(self, run, data):
        run(max_minutes=1e-9)
        lost = dataclasses.replace(data, clips=tuple(Clip(path.with_name("gone.avi")) for path in data.paths))
        with pytest.raises(InputError, match="seed is 1 now"):
            run(data=lost, resume=True, seed=1)

    def test_other_data_is_refused(self, run, data, recipe, trainable, checkpoint):
        run(max_minutes=1e-9)
        other = type(data)(data.name, data.video_ids, data.clips, ("another", *data.captions[1:]), data.owner)
        with pytest.raises(InputError, match=r"train data\.sha256 is \w+ now and was"):
            run(resume=True, data=other)
        with pytest.raises(InputError, match=r"train data\.videos is 8 now and was 9"):
            run(resume=True, data=data.select(range(8)), cache=None)

    def test_other_initial_weights_are_refused(self, run, recipe):
        run(max_minutes=1e-9)
        checkpoint = dataclasses.replace(recipe.checkpoint, sha256="f" * 64)
        with pytest.raises(InputError, match="init is ffffffffffffffff now"):
            run(resume=True, recipe=dataclasses.replace(recipe, checkpoint=checkpoint))

    def test_nothing_to_resume(self, run, config):
        with pytest.raises(InputError, match="--resume found no"):
            run(resume=True)

    def test_a_run_is_never_overwritten(self, run, config):
        run(max_minutes=1e-9)
        with pytest.raises(InputError, match=r"holds a run already \(last\.pt, metrics\.jsonl\).*--resume"):
            run()


class TestUnreadable:
    def test_before_the_first_step(self, run, broken_clips, tmp_path):
        result, told = run(data=broken_clips, cache=tmp_path / "own", val=None)
        assert [(one.video, one.step) for one in result.skipped] == [("2.avi", None), ("5.avi", None)]
        lines = [json.loads(line) for line in (result.out / "skipped.jsonl").read_text().splitlines()]
        assert lines == [one.to_dict() for one in result.skipped]
        assert [len(one.skipped) for one in told.of(Opened)] == [2]
        assert result.total == 2 * (len(data_of(broken_clips)) // 4)

    def test_during_the_run(self, config, recipe, clips, tmp_path, recording):
        """A file vanishes once it was looked at: its pair does not count, and it is listed once."""
        own = copied(clips, tmp_path)
        told = recording(lambda fact: own.paths[3].unlink() if isinstance(fact, Started) else None)
        result = loop.train(dataclasses.replace(config, cache=None), recipe, own, None, told)
        pairs = [row["pairs"] for row in read_rows(result.out / "metrics.jsonl") if row["kind"] == "step"]
        assert result.finished and sum(pairs) < 4 * 6 and set(pairs) <= {3, 4}
        (one,) = result.skipped
        assert (one.split, one.video) == ("train", "3.avi") and "3.avi" in one.reason
        assert one.step == 1 + pairs.index(3)
        assert [found.videos for found in told.of(LeftOut)] == [[one]]
        assert json.loads((result.out / "skipped.jsonl").read_text()) == one.to_dict()

    def test_what_was_listed_stays_listed_when_resumed(self, config, recipe, clips, tmp_path, recording):
        own = copied(clips, tmp_path)
        lost = own.paths[3].read_bytes()
        config = dataclasses.replace(config, cache=None, save_every=1)
        listed = []

        def vanish(fact):
            if isinstance(fact, Started):
                own.paths[3].unlink()
            if isinstance(fact, LeftOut):
                listed.extend(fact.videos)
            if isinstance(fact, Saved) and listed:
                raise Crash

        with pytest.raises(Crash):
            loop.train(config, recipe, own, None, recording(vanish))
        own.paths[3].write_bytes(lost)
        result = loop.train(dataclasses.replace(config, resume=True), recipe, own)
        assert result.skipped == tuple(listed) and len(listed) == 1
        assert json.loads((result.out / "skipped.jsonl").read_text()) == listed[0].to_dict()

    def test_a_batch_of_which_nothing_can_be_read(self, config, recipe, clips, tmp_path, recording):
        own = copied(clips, tmp_path)

        def vanish(fact):
            if isinstance(fact, Started):
                for path in own.paths:
                    path.unlink()

        with pytest.raises(InputError, match=r"step 1 of 6 .*no video of the batch.*\.avi.*--resume"):
            loop.train(dataclasses.replace(config, cache=None), recipe, own, None, recording(vanish))
        assert load_state(config.out / "last.pt").position.step == 0

    def test_in_validation(self, config, recipe, data, clips, tmp_path, recording):
        own = copied(clips, tmp_path, "val.csv")

        def vanish(fact):
            if isinstance(fact, Started):
                own.paths[1].unlink()

        result = loop.train(dataclasses.replace(config, cache=None), recipe, data, own, recording(vanish))
        assert [(one.split, one.video, one.step) for one in result.skipped] == [("val", "3.avi", 3)]
        assert result.finished and result.best is not None

    def test_no_validation_video_left(self, config, recipe, data, clips, tmp_path, recording):
        own = copied(clips, tmp_path, "val.csv")

        def vanish(fact):
            if isinstance(fact, Started):
                for path in own.paths:
                    path.unlink()

        with pytest.raises(InputError, match="no video can be read any more"):
            loop.train(dataclasses.replace(config, cache=None), recipe, data, own, recording(vanish))

    def test_too_few(self, run):
        with pytest.raises(InputError, match=r"found 9 videos to train on, expected at least 10.*--batch 9"):
            run(batch=10)


def data_of(broken):
    """Captions of the videos that can be read."""
    return [i for i, owner in enumerate(broken.owner) if owner not in (2, 5)]


def copied(clips, folder, name="train.csv"):
    """The data with videos of its own."""
    from tempme_export.data.annotations import open_data

    shutil.copytree(clips, folder / "own")
    return open_data(folder / "own" / name, "train")


class TestEvaluate:
    @pytest.mark.parametrize("per_call", [2, 32])
    def test_it_is_the_retrieval_of_all_embeddings(self, recipe, trainable, data, config, per_call):
        split, _ = open_split("train", data, recipe, ALONE, config, SILENT)
        model = trainable(recipe, "lora", rank=2)
        stepper = Stepper(model, make_optimizer(model, 1e-3, 0.2), preprocess_for(recipe), ALONE, "fp32", 1.0)
        both, groups, skipped = evaluate(stepper, split, 3, per_call, per_call)
        with torch.no_grad():
            clips = np.stack([clip for _, clip in split.source.stream(range(9))])
            video = model.video(stepper.normalise(torch.from_numpy(clips)))
            text = model.text(torch.from_numpy(split.token_ids))
        assert both == list(retrieval(text.numpy(), video.numpy(), data.owner))
        assert groups is None and skipped == []
        assert model.training

    def test_groups(self, recipe, trainable, data, config):
        grouped = dataclasses.replace(data, groups=("a", "b", "c") * 3)
        split, _ = open_split("train", grouped, recipe, ALONE, config, SILENT)
        model = trainable(recipe, "lora", rank=2)
        stepper = Stepper(model, make_optimizer(model, 1e-3, 0.2), preprocess_for(recipe), ALONE, "fp32", 1.0)
        _, groups, _ = evaluate(stepper, split, 0)
        assert groups.candidates == 3 and groups.queries == 13


class TestDiverged:
    @pytest.mark.parametrize(("bad", "word"), [(math.nan, "loss nan"), (math.inf, "loss inf")])
    def test_it_stops_and_keeps_the_last_good_state(self, run, config, bad, word):
        calls = []

        def diverge(*args):
            calls.append(0)
            return contrastive_loss(*args) * (bad if len(calls) == 3 else 1)

        class Diverging(Run):
            def make_stepper(self, precision):
                stepper = super().make_stepper(precision)
                stepper.loss = diverge
                return stepper

        with pytest.raises(ExportError) as caught:
            run(kind=Diverging, save_every=2)
        message = str(caught.value)
        for words in ("step 3 of 6", "epoch 1", "learning rate 0.0009", word, "after step 2", "lower --lr"):
            assert words in message
        assert str(config.out / "last.pt") in message
        saved = load_state(config.out / "last.pt")
        assert saved.position.step == 2
        assert all(bool(tensor.isfinite().all()) for tensor in saved.parameters.values())
        assert [row["step"] for row in read_rows(config.out / "metrics.jsonl")] == [1, 2]


class Left(Disk):
    """A disk with so many bytes left."""

    def __init__(self, free):
        self._free = free

    def free(self, folder):
        return self._free


class TestDisk:
    def test_a_disk_that_is_too_small_is_refused(self, config, recipe, trainable):
        config.out.mkdir()
        model = trainable(recipe, "lora", rank=2)
        with pytest.raises(ExportError, match=r"0 MB free on its disk, expected \d+ MB"):
            check_room(config, model, Left(1000))
        check_room(config, model, Left(10**12))

    def test_a_disk_that_fills_up(self, run, config, largest_file):
        """The state of before stays whole, and the run goes on from it once there is room."""

        class Filling(Run):
            def write_state(self, state):
                if state.position.step:  # AdamW's moments are in it: it takes more than the first one did
                    full.enter_context(largest_file(self.files["last.pt"].stat().st_size))
                super().write_state(state)

        with ExitStack() as full, pytest.raises(ExportError, match=r"File too large.*last\.pt of before is intact"):
            run(kind=Filling, save_every=2)
        assert load_state(config.out / "last.pt").position.step == 0
        assert run(save_every=2, resume=True)[0].finished

    def test_a_folder_that_cannot_be_made(self, run, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="is a file, expected a folder"):
            run(out=tmp_path / "file")
        with pytest.raises(ExportError, match="cannot be made"):
            run(out=tmp_path / "file" / "out")


class TestCurves:
    def rows(self, validated):
        steps = [{"kind": "step", "step": i, "loss": 3.0 / i, "lr": 0.1} for i in range(1, 30)]
        return steps + [{"kind": "evaluation", "step": i, "t2v_r1": i, "v2t_r1": 2 * i} for i in validated]

    def test_without_matplotlib_there_is_no_picture(self, tmp_path):
        code = (
            "import sys\nfrom pathlib import Path\nfrom tempme_export.errors import BackendError\n"
            "sys.modules['matplotlib.figure'] = sys.modules['matplotlib.backends.backend_agg'] = None\n"
            "from tempme_export.training.plot import draw_curves\n"
            "try:\n    draw_curves([], Path(sys.argv[1]))\nexcept BackendError as error:\n    print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=True
        )
        assert "pip install 'tempme-export[plot]'" in done.stdout and list(tmp_path.iterdir()) == []

    def test_a_run_without_a_picture_ends_well(self, run):
        class Undrawn(Run):
            def draw(self):
                raise BackendError("no matplotlib")

        result, told = run(kind=Undrawn, epochs=1)
        assert result.finished and "curves.png" not in result.files
        assert [note.text for note in told.of(Note)] == ["no matplotlib"]

    @pytest.mark.parametrize("validated", [(), (10, 20)])
    def test_a_picture(self, tmp_path, validated):
        pytest.importorskip("matplotlib")
        plot.draw_curves(self.rows(validated), tmp_path / "curves.png")
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")

    def test_the_running_mean(self):
        assert plot._running_mean([2.0]) == [2.0]
        assert plot._running_mean([4.0, 4.0, 4.0]) == pytest.approx([4.0, 4.0, 4.0])
        assert plot._running_mean([0.0, 1.0])[1] == pytest.approx(0.1 / 0.19)


class TestConfig:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"tune": "head"}, "--tune: found 'head', expected one of"),
            ({"rank": 0}, "--rank 0"),
            ({"epochs": 0}, "--epochs 0"),
            ({"batch": 1}, "--batch 1"),
            ({"rate": 0.0}, "--lr 0.0"),
            ({"rate": math.nan}, "--lr nan"),
            ({"weight_decay": -0.1}, "--weight-decay -0.1"),
            ({"decay": "some"}, "--decay: found 'some', expected one of all, matrices"),
            ({"betas": (0.9, 1.0)}, "--betas 0.9 1.0"),
            ({"betas": (-0.1, 0.9)}, "--betas -0.1 0.9"),
            ({"eps": 0.0}, "--eps 0.0"),
            ({"augment": "crop", "cache": None}, "--augment: found 'crop', expected one of randaugment, none"),
            ({"augment": "randaugment"}, "leave --cache out, or add --augment none"),
            ({"warmup": 1.0}, "--warmup 1.0"),
            ({"clip_norm": 0.0}, "--clip-norm 0.0"),
            ({"seed": -1}, "--seed -1"),
            ({"workers": -1}, "--workers -1"),
            ({"precision": "fp16"}, "--precision 'fp16'"),
            ({"store": "bf16"}, "--store 'bf16'"),
            ({"save_every": 0}, "--save-every 0"),
            ({"max_minutes": 0.0}, "--max-minutes 0.0"),
        ],
    )
    def test_out_of_range(self, run, config, change, words):
        with pytest.raises(UsageError) as caught:
            run(**change)
        assert words in str(caught.value) and str(caught.value).count(";") == 0
        assert not config.out.exists()

    def test_the_tunings_are_the_encoders(self):
        assert set(config_module.TUNINGS) == set(get_args(Tune))

    def test_a_profile_without_tokenizer(self, run, tiny_recipe, config):
        with pytest.raises(ProfileError, match="tokenizer is unknown"):
            run(recipe=tiny_recipe)
        assert not config.out.exists()

    def test_a_device_that_is_not_there(self, run, config):
        with pytest.raises(BackendError):
            run(device="cuda:7")
        assert not config.out.exists()


class TestPreview:
    def test_it_is_what_the_run_does(self, config, recipe, data, val, run):
        found = preview(config, recipe, data, val)
        assert not config.out.exists()
        result, told = run()
        assert found.length == told.of(Started)[0].length and found.counts == told.of(Trains)[0].counts
        assert found.missing == {"train": 0, "val": 0}
        written = sum((result.out / name).stat().st_size for name in ("last.pt", "best.pth", "final.pth"))
        assert written < found.disk < 3 * written
        assert found.on_cache > 12 * 4 * 64 * 64 * 3
        assert json.loads(json.dumps(found.to_dict()))["steps"] == 6

    def test_missing_videos_are_counted(self, config, recipe, broken_clips):
        found = preview(dataclasses.replace(config, cache=None), recipe, broken_clips)
        assert found.missing == {"train": 1} and found.on_cache == 0

    def test_none_is_there(self, config, recipe, data, tmp_path):
        lost = dataclasses.replace(data, clips=tuple(Clip(tmp_path / path.name) for path in data.paths))
        with pytest.raises(InputError, match="found none of 9 videos"):
            preview(config, recipe, lost)

    def test_a_folder_in_use(self, config, recipe, data):
        config.out.mkdir()
        (config.out / "best.pth").write_bytes(b"")
        with pytest.raises(InputError, match="holds a run already"):
            preview(config, recipe, data)
