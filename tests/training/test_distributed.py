"""Several processes do what one does: gradients, weights, evaluation, and the files of a run."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tempme_export.errors import BackendError, InputError, UsageError
from tempme_export.media.preprocess import preprocess_for
from tempme_export.progress import SILENT
from tempme_export.training.distributed import TorchHost, World, join_world
from tempme_export.training.log import read_rows
from tempme_export.training.loop import Run
from tempme_export.training.state import load_state

SCRIPT = Path(__file__).with_name("one_process.py")
SIZES = (1, 2)
STEPS, RATE = 3, 1e-3  # of one_process.py
MEETINGS = 3  # of the processes of one_process.py


def environment(**changes):
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**inherited, "OMP_NUM_THREADS": "1", **changes}


def free_ports(n):
    """n different ones, as `one_process.py` wants them."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return " ".join(str(probe.getsockname()[1]) for probe in probes)


def start(folder, rank, size, ports):
    """One process as torchrun would start it; alone, as a person would. What it says goes to a file."""
    told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)} if size > 1 else {}
    with (folder / f"{size}-{rank}.err").open("w") as said:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env=environment(**told, MASTER_ADDR="127.0.0.1", MEETING_PORTS=ports),
            stderr=said,
        )


def wait(processes, said, limit):
    """Until all have ended well. The first that fails fails all: the others would wait for it."""
    end = time.monotonic() + limit
    codes = [None]
    while None in codes and not any(codes) and time.monotonic() < end:
        time.sleep(0.2)
        codes = [process.poll() for process in processes]
    told = [f"{path.name}: {code}: {path.read_text()[-2000:]}" for path, code in zip(said, codes, strict=True)]
    assert codes == [0] * len(processes), "\n".join(told)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clips, checkpoint, profile):
    """Where one process alone, and two together, did everything."""
    folder = tmp_path_factory.mktemp("processes")
    shutil.copytree(clips, folder / "clips")
    shutil.copy(checkpoint, folder / "mini.pth")
    shutil.copy(profile, folder / "small.toml")
    ports = free_ports(MEETINGS)
    ranks = [(size, rank) for size in SIZES for rank in range(size)]
    running = [start(folder, rank, size, ports) for size, rank in ranks]
    try:
        wait(running, [folder / f"{size}-{rank}.err" for size, rank in ranks], limit=600)
    finally:
        for process in running:
            process.kill()
            process.wait()
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What every process found, by (processes, rank)."""
    return {(n, r): torch.load(folder / f"{n}-{r}.pt", weights_only=False) for n in SIZES for r in range(n)}


class TestGather:
    def test_rows_stand_in_the_order_of_the_ranks(self, found):
        alone = torch.arange(6.0).reshape(3, 2)
        assert torch.equal(found[1, 0]["gathered"]["rows"], alone)
        for rank in range(2):
            assert torch.equal(found[2, rank]["gathered"]["rows"], torch.cat([alone, alone + 10]))

    def test_the_mean_over_processes_is_the_gradient_of_the_whole(self, found):
        """Of sum of squares: 2 x. A process's own rows carry it once for every process, and the mean divides."""
        for rank in range(2):
            own = torch.arange(6.0).reshape(3, 2) + 10 * rank
            assert torch.equal(found[2, rank]["gathered"]["gradient"], 2 * 2 * own)


def test_what_the_first_says_all_know(found):
    for one in found.values():
        assert one["told"] == {"said": "rank 0", "error": "the first process refuses"}


@pytest.fixture(scope="module")
def gradient_error(recipe, rounding, logit_error):
    """How far gradients may lie apart, relative to the largest, by model.

    A logit's error is one of the loss's derivative, by which every gradient is multiplied. There and back is twice as
    deep as there. The two towers in float64 are products of 12 and sums of 3 terms, their scale is e^2.
    """
    backbone = recipe.backbone
    deep = rounding(torch.float32, 2 * max(backbone.layers, backbone.text_layers), backbone.width)
    towers = rounding(torch.float64, 1, 12)
    return {"model": logit_error + deep.difference, "towers": 2 * math.exp(2) * towers.difference + towers.difference}


def moves_apart(second_moment, step, rate, error):
    """How far one step of Adam may move weights apart whose gradients err by `error` in every step.

    Its mean and its root mean square err by as much. The one is hardly longer than the other, so that their quotient
    errs by twice that over the latter, and by no more than from -1 to 1. What never had a gradient stays.
    """
    length = (second_moment / (1 - 0.999**step)).sqrt()
    return rate * torch.where(length == 0, 0.0, (2 * error / length).clamp(max=2))


class TestSteps:
    def test_the_decisions_are_safe(self, recipe, safe_embedding):
        """Of the first batch: a gradient of another decision would be another."""
        spec = importlib.util.spec_from_file_location("one_process", SCRIPT)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        pixels, *_ = next(script.batches(recipe.profile.frames, recipe.backbone.image_size, 49408, 12))
        safe_embedding(recipe, np.stack([preprocess_for(recipe).normalise(video) for video in pixels.numpy()]))

    @pytest.mark.parametrize("model", ["towers", "model"])
    def test_gradients(self, found, gradient_error, model):
        """They tell what Adam, to which their length is nothing, would hide."""
        alone = found[1, 0][model]["gradients"]
        assert "unused" not in alone and len(alone) == 3 if model == "towers" else len(alone) > 10
        limit = gradient_error[model] * max(float(gradient.abs().max()) for gradient in alone.values())
        for rank in range(2):
            shared = found[2, rank][model]["gradients"]
            assert shared.keys() == alone.keys()
            for name, gradient in alone.items():
                torch.testing.assert_close(shared[name], gradient, rtol=0, atol=limit)

    @pytest.mark.parametrize("model", ["towers", "model"])
    def test_weights(self, found, gradient_error, model):
        """A gradient that is cut errs by its own error and by that of the length it is cut to."""
        alone, shared = found[1, 0][model], found[2, 0][model]
        assert shared["weights"].keys() == alone["weights"].keys()
        for name, weights in alone["weights"].items():
            limit = 2 * STEPS * torch.finfo(weights.dtype).eps * weights.abs()
            for step, (largest, moments) in enumerate(zip(alone["largest"], alone["moments"], strict=True), start=1):
                if name in moments:
                    limit += moves_apart(moments[name], step, RATE, 2 * gradient_error[model] * largest)
            assert ((shared["weights"][name] - weights).abs() <= limit).all(), name

    def test_the_weights_moved(self, found):
        first, last = found[1, 0]["towers"]["weights"], found[2, 1]["towers"]["weights"]
        assert float((last["logit_scale"] - 2.0).abs()) > 1e-4
        assert torch.equal(last["frozen"], torch.full((4,), 0.5, dtype=torch.float64))
        assert torch.equal(last["unused"], first["unused"])
        moved = [w for name, w in found[1, 0]["model"]["weights"].items() if name.endswith("LoRA_b")]
        assert moved and all(float(weights.abs().max()) > 1e-4 for weights in moved), "they were zero"

    @pytest.mark.parametrize("model", ["towers", "model"])
    def test_outcomes(self, found, gradient_error, model):
        """Of the first step, since later ones begin with weights that came apart."""
        alone, error = found[1, 0][model]["outcomes"], gradient_error[model]
        assert [outcome["pairs"] for outcome in alone] == [4, 4, 4], "the invalid and the added rows do not count"
        for rank in range(2):
            ours, theirs = found[2, rank][model]["outcomes"], alone
            assert [outcome["pairs"] for outcome in ours] == [4, 4, 4]
            assert ours[0]["temperature"] == theirs[0]["temperature"]
            assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], abs=2 * error)
            assert ours[0]["gradient_norm"] == pytest.approx(theirs[0]["gradient_norm"], rel=error)

    def test_processes_agree_bitwise(self, found):
        for model in ("towers", "model"):
            first, second = (found[2, rank][model]["weights"] for rank in range(2))
            assert all(torch.equal(first[name], second[name]) for name in first)


def test_evaluation_is_shared(found):
    """Three videos between two processes; every process learns the whole."""
    for rank in range(2):
        for ours, theirs in zip(found[2, rank]["evaluated"], found[1, 0]["evaluated"], strict=True):
            assert ours == theirs


class TestRun:
    def test_it_stops_when_the_first_says_so_and_goes_on(self, found):
        for one in found.values():
            first, second = one["run"]["first"], one["run"]["second"]
            assert (first["finished"], first["steps"], first["total_steps"]) == (False, 1, 2)
            assert (second["finished"], second["steps"]) == (True, 2)
            assert second["best"] == found[1, 0]["run"]["second"]["best"]

    def test_only_the_first_speaks(self, found):
        assert found[2, 0]["run"]["told"] == found[1, 0]["run"]["told"]
        assert found[2, 1]["run"]["told"] == []

    def test_the_files_are_those_of_one_process(self, folder, gradient_error, logit_error):
        """The first of two steps moves nothing: the gradients of both are of the same weights."""
        names = [{path.name for path in (folder / f"out-{n}").iterdir()} for n in SIZES]
        assert names[0] == names[1] and {"last.pt", "best.pth", "final.pth"} <= names[0]
        rows = [read_rows(folder / f"out-{n}" / "metrics.jsonl") for n in SIZES]
        error = gradient_error["model"]
        limits = {"loss": {"abs": 2 * logit_error}, "grad_norm": {"rel": error}}
        for ours, theirs in zip(*rows, strict=True):
            for key in theirs.keys() - {"samples_per_s", "data_wait"}:
                expected = pytest.approx(theirs[key], **limits[key]) if key in limits else theirs[key]
                assert ours[key] == expected, key
        still, rate = (row["lr"] for row in rows[0] if row["kind"] == "step")
        assert still == 0 < rate
        state = load_state(folder / "out-1" / "last.pt")
        moments = [state.optimizer["state"][i]["exp_avg_sq"] for i in range(len(state.parameters))]
        largest = max(float((2 * one / (1 - 0.999**2)).max()) ** 0.5 for one in moments)
        moved = {
            f"clip.{name}": moves_apart(one, 2, rate, 2 * error * largest)
            for name, one in zip(state.parameters, moments, strict=True)
        }
        alone, shared = (torch.load(folder / f"out-{n}" / "final.pth", weights_only=True)["state_dict"] for n in SIZES)
        assert moved.keys() < alone.keys() == shared.keys()
        for name, weights in alone.items():
            limit = moved.get(name, 0) + 4 * torch.finfo(torch.float32).eps * weights.abs()
            assert ((shared[name] - weights).abs() <= limit).all(), name

    def test_every_process_has_its_random_states(self, folder):
        assert [len(load_state(folder / f"out-{n}" / "last.pt").rng) for n in SIZES] == [1, 2]


class Elsewhere(TorchHost):
    """A machine with or without GPUs, whose group has nobody in it."""

    def __init__(self, gpu):
        self.has_gpu, self.asked = lambda: gpu, []

    def device(self, name):
        return torch.device(name)

    def enter(self, device):
        self.asked.append(str(device))

    def leave(self):
        self.asked.append("left")


class TestAlone:
    @pytest.fixture(autouse=True)
    def plain(self, monkeypatch):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)

    def test_one_process(self):
        with join_world("cpu") as world:
            assert world == World(0, 1, torch.device("cpu")) and world.first
            rows = torch.ones(2, 3)
            assert world.gather(rows) is rows
            assert world.gather_objects("a") == ["a"] and world.on_first(lambda: 3) == 3

    @pytest.mark.parametrize(("gpu", "expected"), [(False, "cpu"), (True, "cuda")])
    def test_auto(self, gpu, expected):
        with join_world("auto", Elsewhere(gpu)) as world:
            assert world.device.type == expected

    def test_a_device_that_is_not_there(self):
        with pytest.raises(BackendError, match="cuda:9"), join_world("cuda:9"):
            pass

    @pytest.mark.parametrize("environ", [{"WORLD_SIZE": "x"}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "-1"}])
    def test_an_environment_that_torchrun_did_not_make(self, monkeypatch, environ):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match="Use torchrun"), join_world("cpu"):
            pass

    def test_one_gpu_for_two_processes(self, monkeypatch):
        for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match=r"--device cuda:1 names one GPU.*2 processes"), join_world("cuda:1"):
            pass

    def test_each_process_takes_its_gpu(self, monkeypatch):
        """What would be asked of NCCL and CUDA, without either."""
        machine = Elsewhere(gpu=True)
        for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
            monkeypatch.setenv(name, value)
        with join_world("cuda", machine) as world:
            assert world == World(3, 4, torch.device("cuda:1")) and not world.first
        assert machine.asked == ["cuda:1", "left"]


def test_processes_that_were_given_different_things(config, recipe, data, val):
    class Differing(World):
        def gather_objects(self, own):
            return [own, {**own, "lr": 7.0}] if isinstance(own, dict) and "lr" in own else [own]

    world = Differing(0, 1, torch.device("cpu"))
    with pytest.raises(InputError, match="process 1 and process 0 found different settings"):
        Run(dataclasses.replace(config, epochs=1), recipe, data, val, world, SILENT)
