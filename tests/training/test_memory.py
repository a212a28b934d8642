"""The account of a training step against the step itself, on models small enough to be run."""

import copy
import dataclasses
import functools
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tempme_export.cli import train_console
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.profile import load_profile
from tempme_export.encoder.recipe import prepare
from tempme_export.errors import UsageError
from tempme_export.media.preprocess import preprocess_for
from tempme_export.training.distributed import World
from tempme_export.training.init import draw_clip
from tempme_export.training.memory import MemoryAccount, _Ledger, account, largest_batch
from tempme_export.training.optimizer import make_optimizer
from tempme_export.training.preview import precision_of, preview
from tempme_export.training.step import Stepper

FRAMES, SIZE, LENGTH = 4, 64, 12  # of `recipe`
TUNES = ("lora", "adapter", "prompt", "full")


@pytest.fixture(scope="module")
def models(recipe, trainable):
    """The model of `recipe` by what it trains."""
    return {tune: trainable(recipe, tune) for tune in TUNES}


@pytest.fixture(scope="module")
def counted(models, recipe):
    """The account of `recipe` by what trains, batch and precision, each made once."""
    return functools.cache(lambda tune, batch, precision="fp32": account(models[tune], recipe, batch, precision))


@pytest.fixture(scope="module")
def plain(checkpoint):
    """Of `mini-8f-none` and `mini-8f`: the same model without and with merging."""
    drawn = draw_clip(open_clip_backbone("tempme-mini"), seed=3)
    return prepare(drawn, load_profile("mini-8f-none")), prepare(drawn, load_profile("mini-8f"))


@pytest.fixture(scope="module")
def real_step(pixels_of):
    """Real steps as the account pretends to make one; returns the ledger that watched, and the saved bytes.

    The saved bytes are counted apart from the ledger, in a step of their own: by the addresses of the storages, all of
    them kept alive.
    """

    def take(model, recipe, batch, precision):
        optimizer = make_optimizer(model, rate=1e-3, weight_decay=0.1)
        world = World(0, 1, torch.device("cpu"))
        stepper = Stepper(model, optimizer, preprocess_for(recipe), world, precision, clip_norm=1.0)
        ids = torch.randint(1, 40000, (batch, LENGTH), generator=torch.Generator().manual_seed(0))
        ids[:, -1] = 49407
        inputs = (pixels_of(batch), ids, torch.ones(batch, dtype=torch.bool))
        foreign = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *inputs)}
        kept = {}

        def pack(tensor):
            if tensor.data_ptr() and tensor.untyped_storage().data_ptr() not in foreign:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            stepper(*inputs, rate=1e-3)
        saved = sum(storage.nbytes() for storage in kept.values())
        kept.clear()
        optimizer.zero_grad(set_to_none=True)
        ledger = _Ledger(LENGTH)
        ledger.hold([*model.parameters(), *(t for state in optimizer.state.values() for t in state.values()), *inputs])
        with ledger:
            stepper(*inputs, rate=1e-3)
        return ledger, saved

    return take


class TestAgainstTheStep:
    @pytest.mark.parametrize(
        ("tune", "precision"),
        [("lora", "fp32"), ("lora", "bf16"), ("adapter", "fp32"), ("prompt", "bf16"), ("full", "fp32")],
    )
    def test_saved_and_peak_are_those_of_a_real_step(self, counted, models, recipe, real_step, tune, precision):
        found = counted(tune, 3, precision)
        ledger, saved = real_step(copy.deepcopy(models[tune]), recipe, 3, precision)
        assert found.saved == saved > 0
        assert found.peak == ledger.peak
        assert found.temporary >= 0

    @pytest.mark.parametrize("tune", ["lora", "full"])
    def test_the_parts_that_stay(self, counted, models, tune):
        found, sizes = counted(tune, 3), {True: 0, False: 0}
        for parameter in models[tune].parameters():
            sizes[parameter.requires_grad] += 4 * parameter.numel()
        tensors = sum(parameter.requires_grad for parameter in models[tune].parameters())
        assert (found.trained, found.frozen) == (sizes[True], sizes[False])
        assert found.gradients == sizes[True]
        assert found.optimizer == 2 * sizes[True] + 4 * tensors  # two moments, and a step count for each tensor
        assert found.inputs == 3 * (FRAMES * SIZE * SIZE * 3 + 8 * LENGTH + 1)
        assert found.resident == found.trained + found.frozen + found.optimizer

    def test_the_model_stays_as_it_was(self, counted, models, recipe, trainable):
        counted("lora", 3)
        fresh = trainable(recipe, "lora").state_dict()
        for name, parameter in models["lora"].named_parameters():
            assert type(parameter) is torch.nn.Parameter and parameter.grad is None
            torch.testing.assert_close(parameter.detach(), fresh[name], rtol=0, atol=0)


class TestScaling:
    def test_saved_grows_with_the_batch(self, counted):
        """Per pair the same at every size, but for the loss's [B, B] float32."""
        saved = [counted("lora", batch).saved for batch in (3, 6, 9)]
        steps = saved[1] - saved[0], saved[2] - saved[1]
        square = 4 * (9**2 - 2 * 6**2 + 3**2)  # second difference of one [B, B]
        assert 0 < steps[1] - steps[0] <= 5 * square
        assert steps[0] > 1000 * square

    def test_largest_batch_is_where_the_peak_reaches_the_capacity(self, counted):
        small, large, peak = counted("lora", 3), counted("lora", 6), counted("lora", 9).peak
        half_a_pair = (large.peak - small.peak) // 6
        assert largest_batch(small, large, peak + half_a_pair) == 9
        assert largest_batch(small, large, peak - half_a_pair) == 8
        assert largest_batch(small, large, small.resident // 2) == 0

    def test_one_batch_size_is_no_line(self, counted):
        with pytest.raises(UsageError, match="two accounts of batch 3"):
            largest_batch(counted("lora", 3), counted("lora", 3), 10**9)


class TestOrder:
    def test_bf16_saves_and_full_tuning_costs(self, counted):
        lora, half, full = counted("lora", 3), counted("lora", 3, "bf16"), counted("full", 3)
        assert half.saved < lora.saved < full.saved
        assert lora.optimizer < full.optimizer and lora.inputs == full.inputs

    def test_merging_saves(self, plain, trainable):
        without, merged = (account(trainable(one, "lora"), one, 4, "fp32") for one in plain)
        assert merged.saved < without.saved and merged.peak < without.peak and merged.inputs == without.inputs

    def test_more_frames_take_more(self, recipe, counted, trainable):
        longer = prepare(recipe.checkpoint, dataclasses.replace(recipe.profile, frames=2 * FRAMES))
        found, base = account(trainable(longer, "lora"), longer, 3, "fp32"), counted("lora", 3)
        assert found.inputs > 1.9 * base.inputs and found.saved > base.saved


class TestLedger:
    def test_what_is_alive_at_one_time(self):
        """1000 float32 are 4000 bytes: x and y, then z beside y alone; the peak is all three."""
        with FakeTensorMode(), _Ledger(8) as ledger:
            x = torch.empty(1000)
            y = x + 1
            assert (ledger.live, ledger.peak) == (8000, 8000)
            z = y * 2
            del x
            assert (ledger.live, ledger.peak) == (8000, 12000)
            del y, z
            assert (ledger.live, ledger.peak) == (0, 12000)

    def test_views_and_changes_in_place_cost_nothing(self):
        with FakeTensorMode(), _Ledger(8) as ledger:
            x = torch.empty(10, 100)
            views = [x[2:], x.view(-1), x.T, x.expand(5, 10, 100), x.add_(1)]
            assert (ledger.live, ledger.peak) == (4000, 4000) and len(views) == 5

    def test_saved_is_each_storage_once_without_what_was_held(self):
        """exp keeps its result; the product keeps both factors, of which one is that result and one was held."""
        with FakeTensorMode():
            weight = torch.empty(1000, requires_grad=True)
            ledger = _Ledger(8)
            assert ledger.hold([weight, weight[:10]]) == 4000
            with ledger, torch.autograd.graph.saved_tensors_hooks(ledger.pack, lambda tensor: tensor):
                y = weight.exp() * weight
            assert (ledger.saved, ledger.live) == (4000, 12000)
            del y
            assert ledger.live == 4000

    def test_numbers_read_from_a_tensor(self):
        with FakeTensorMode(), _Ledger(8):
            assert int(torch.empty(3, dtype=torch.int64).max()) + 1 == 8
            assert float(torch.empty(3).sum()) == 1.0


class TestRefusals:
    def test_no_batch(self, models, recipe):
        with pytest.raises(UsageError, match="batch of 0 to account for"):
            account(models["lora"], recipe, 0, "fp32")

    def test_another_precision(self, models, recipe):
        with pytest.raises(UsageError, match="'fp16' to account for, expected fp32 or bf16"):
            account(models["lora"], recipe, 2, "fp16")


def test_plain_values():
    found = MemoryAccount(2, "bf16", frozen=10, trained=4, gradients=4, optimizer=8, inputs=3, saved=20, peak=50)
    document = found.to_dict()
    assert document["batch"] == 2 and document["precision"] == "bf16"
    assert document["resident"] == 22 and document["temporary"] == 5 and document["peak"] == 50


class TestDryRun:
    def test_it_accounts_for_one_process(self, config, recipe, data, counted, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        found = preview(dataclasses.replace(config, batch=5, rank=8, precision="fp32"), recipe, data)
        assert found.memory == counted("lora", 3)
        assert found.to_dict()["memory"]["peak"] == found.memory.peak

    @pytest.mark.parametrize(
        ("asked", "device", "gpu", "precision"),
        [
            ("auto", "cpu", True, "fp32"),
            ("auto", "auto", False, "fp32"),
            ("auto", "auto", True, "bf16"),
            ("auto", "cuda:1", True, "bf16"),
            ("fp32", "cuda", True, "fp32"),
            ("bf16", "cpu", False, "bf16"),
        ],
    )
    def test_in_the_precision_that_the_run_has(self, config, asked, device, gpu, precision):
        cuda = SimpleNamespace(is_available=lambda: gpu, is_bf16_supported=lambda: gpu)
        assert precision_of(dataclasses.replace(config, precision=asked, device=device), cuda) == precision

    def test_it_is_one_line(self, config, recipe, data, capsys):
        gb = MemoryAccount(128, "bf16", 600 * 10**6, 2 * 10**6, 0, 4 * 10**6, 231 * 10**6, 129 * 10**8, 147 * 10**8)
        found = dataclasses.replace(preview(config, recipe, data), memory=gb)
        train_console.show_preview(found, config.out)
        said = " ".join(capsys.readouterr().err.split())
        assert "memory about 14.7 GB on the device, 128 pairs in bf16: 12.9 kept for the backward pass" in said
        assert "0.602 weights, 0.004 AdamW, 0.231 input, 0.963 in between" in said
