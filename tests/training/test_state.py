"""What is saved: whole or not at all, read back exactly, and refused where it does not belong."""

import json
import random

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.errors import CheckpointError, ExportError, InputError
from tempme_export.training.config import TrainConfig
from tempme_export.training.files import save_model
from tempme_export.training.log import MetricsLog, read_rows
from tempme_export.training.optimizer import make_optimizer
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

CPU = torch.device("cpu")


class TestSaveModel:
    def test_it_is_a_checkpoint_with_its_profile(self, recipe, trainable, tmp_path):
        model = trainable(recipe, "lora", rank=3)
        save_model(tmp_path / "a.pth", model.state(), recipe, "fp32")
        stored = torch.load(tmp_path / "a.pth", weights_only=True)
        assert stored["profile"] == recipe.profile.to_dict()
        loaded = load_checkpoint(tmp_path / "a.pth")
        assert loaded.facts.lora_rank == 3
        told = {one.about: one.value for one in loaded.statements}
        backbone = recipe.backbone
        assert told == {"activation": backbone.activation, "mean": backbone.mean, "std": backbone.std}
        for name, tensor in loaded.tensors.items():
            assert torch.equal(tensor, dict(model.state_dict())[name]), name

    def test_half(self, recipe, trainable, tmp_path):
        state = trainable(recipe, "full").state()
        for store in ("fp32", "fp16"):
            save_model(tmp_path / f"{store}.pth", state, recipe, store)
        halved = torch.load(tmp_path / "fp16.pth", weights_only=True)["state_dict"]
        assert {tensor.dtype for tensor in halved.values()} == {torch.float16}
        assert all(torch.equal(halved[name], state[name].half()) for name in state)
        sizes = [(tmp_path / f"{store}.pth").stat().st_size for store in ("fp16", "fp32")]
        assert sizes[0] < 0.52 * sizes[1]
        load_checkpoint(tmp_path / "fp16.pth")

    def test_what_does_not_fit_into_half_is_refused(self, recipe, tmp_path):
        with pytest.raises(ExportError, match=r"clip\.proj.*65504.*--store fp32"):
            save_model(tmp_path / "a.pth", {"clip.proj": torch.tensor([7e4])}, recipe, "fp16")
        assert list(tmp_path.iterdir()) == []


def little_model(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    return model, make_optimizer(model, 0.1, 0.2)


def some_steps(model, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).pow(2).sum().backward()
        optimizer.step()


def state_of(model, optimizer, **changes):
    fields = {
        "settings": {"lr": 0.1, "profile": {"merge": {"layers": [1, 2]}}},
        "parameters": trained(model),
        "optimizer": optimizer.state_dict(),
        "position": Position(7, 1, 3),
        "best": Best(41.5, 1),
        "rng": [random_states(CPU)],
    }
    return State(**{**fields, **changes})


class TestState:
    def test_settings_that_had_no_name_are_those_of_then(self, tmp_path):
        """They are named where they differ, and a state that names them keeps its own."""
        save_state(tmp_path / "old.pt", state_of(*little_model(), settings={"lr": 0.1}))
        with pytest.raises(InputError) as caught:
            check_same(load_state(tmp_path / "old.pt").settings, TrainConfig(tmp_path).settings(), tmp_path)
        for words in ("betas is [0.9, 0.999] now and was [0.9, 0.98]", "augment is randaugment now and was none"):
            assert words in str(caught.value)
        settings = TrainConfig(tmp_path).settings()
        save_state(tmp_path / "new.pt", state_of(*little_model(), settings=settings))
        assert load_state(tmp_path / "new.pt").settings == settings

    def test_a_restored_run_goes_on_as_the_first(self, tmp_path):
        first = little_model()
        some_steps(*first, 4)
        save_state(tmp_path / "last.pt", state_of(*first))
        some_steps(*first, 3)
        drawn = (random.random(), np.random.rand(), float(torch.rand(())))

        second = little_model(seed=9)
        second[0][0].bias.data.copy_(first[0][0].bias)  # frozen: the initial checkpoint brings it
        saved = load_state(tmp_path / "last.pt")
        restore(saved, *second)
        set_random_states(saved.rng[0], CPU)
        some_steps(*second, 3)
        assert drawn == (random.random(), np.random.rand(), float(torch.rand(())))
        for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True):
            assert torch.equal(a, b)
        assert (saved.position, saved.best) == (Position(7, 1, 3), Best(41.5, 1))
        assert saved.settings.items() >= {"lr": 0.1, "profile": {"merge": {"layers": [1, 2]}}}.items()

    def test_normal_deviates_come_in_pairs(self):
        """NumPy keeps the second of a pair; it is part of the state."""
        np.random.seed(0)
        np.random.randn()
        states = random_states(CPU)
        expected = np.random.randn(3)
        np.random.seed(5)
        set_random_states(states, CPU)
        assert np.array_equal(np.random.randn(3), expected)

    def test_only_what_trains_is_saved(self, tmp_path):
        model, optimizer = little_model()
        save_state(tmp_path / "last.pt", state_of(model, optimizer, best=None))
        saved = load_state(tmp_path / "last.pt")
        assert set(saved.parameters) == {"0.weight", "1.weight", "1.bias"}
        assert saved.best is None

    def test_nothing_to_resume(self, tmp_path):
        with pytest.raises(InputError, match=r"--resume found no .*last\.pt"):
            load_state(tmp_path / "last.pt")

    @pytest.mark.parametrize("kind", ["empty", "text", "cut", "foreign", "other format", "code"])
    def test_a_file_that_is_none(self, tmp_path, kind):
        path = tmp_path / "last.pt"
        save_state(path, state_of(*little_model()))
        whole = path.read_bytes()
        if kind in ("empty", "text", "cut"):
            path.write_bytes({"empty": b"", "text": b"no state", "cut": whole[: len(whole) // 2]}[kind])
        elif kind == "foreign":
            torch.save({"state_dict": {}}, path)
        elif kind == "other format":
            torch.save({**torch.load(path, weights_only=True), "format": 99}, path)
        else:
            torch.save({"format": 1, "position": random.Random(0)}, path)
        with pytest.raises(CheckpointError, match=r"last\.pt .*anew"):
            load_state(path)

    def test_a_model_of_other_parameters_is_refused(self, tmp_path):
        save_state(tmp_path / "last.pt", state_of(*little_model()))
        other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
        with pytest.raises(CheckpointError, match=r"3 parameters differ, such as 0\.bias"):
            restore(load_state(tmp_path / "last.pt"), other, make_optimizer(other, 0.1, 0.2))


class TestCheckSame:
    def test_equal(self, tmp_path):
        check_same({"a": 1, "b": {"c": [2]}}, {"b": {"c": [2]}, "a": 1}, tmp_path)

    def test_every_difference_is_named(self, tmp_path):
        before = {"lr": 0.1, "seed": 0, "profile": {"frames": 8, "merge": {"r": 2}}, "val data": None}
        now = {"lr": 0.2, "seed": 0, "profile": {"frames": 8, "merge": {"r": 3}}, "val data": {"videos": 3}}
        with pytest.raises(InputError) as caught:
            check_same(before, now, tmp_path / "last.pt")
        message = str(caught.value)
        for words in ("lr is 0.2 now and was 0.1", "profile.merge.r is 3 now and was 2", "val data.videos is 3 now"):
            assert words in message
        assert "seed" not in message and "frames" not in message


class TestLog:
    def rows(self, *steps):
        return [{"kind": "step", "step": step, "loss": step / 2} for step in steps]

    def test_lines_are_there_at_once(self, tmp_path):
        log = MetricsLog(tmp_path / "m.jsonl", 0)
        for row in self.rows(1, 2):
            log.add(row)
            assert json.loads((tmp_path / "m.jsonl").read_text().splitlines()[-1]) == row
        assert read_rows(tmp_path / "m.jsonl") == self.rows(1, 2)

    def test_later_lines_and_half_a_line_are_cut(self, tmp_path):
        path = tmp_path / "m.jsonl"
        log = MetricsLog(path, 0)
        for row in [*self.rows(1, 2), {"kind": "evaluation", "step": 2, "t2v_r1": 9.0}, *self.rows(3, 4)]:
            log.add(row)
        with path.open("a") as stream:
            stream.write('{"kind": "step", "st')
        log = MetricsLog(path, 2)
        log.add(self.rows(3)[0])
        assert [(row["kind"], row["step"]) for row in read_rows(path)] == [
            ("step", 1),
            ("step", 2),
            ("evaluation", 2),
            ("step", 3),
        ]

    def test_no_file_no_rows(self, tmp_path):
        assert read_rows(tmp_path / "m.jsonl") == []

    def test_a_log_that_cannot_grow(self, tmp_path):
        log = MetricsLog(tmp_path / "m.jsonl", 0)
        (tmp_path / "m.jsonl").unlink()
        (tmp_path / "m.jsonl").mkdir()
        with pytest.raises(ExportError, match=r"m\.jsonl could not be written"):
            log.add({"step": 1})

    def test_the_table(self, tmp_path):
        log = MetricsLog(tmp_path / "m.jsonl", 0)
        for row in [*self.rows(*range(1, 151)), {"kind": "evaluation", "step": 150, "t2v_r1": 50.0}]:
            log.add(row)
        log.write_table(tmp_path / "m.parquet")
        table = pl.read_parquet(tmp_path / "m.parquet")
        assert table["step"].to_list() == [*range(1, 151), 150]
        assert table["t2v_r1"].to_list() == [None] * 150 + [50.0]
        assert table.filter(pl.col("kind") == "step")["loss"].to_list() == [step / 2 for step in range(1, 151)]
