"""A training by default has the original's settings; others are asked for, never mixed, and never taken in silence."""

import json
import math

import pytest
import torch

POSITION = "TVPt_Video_Positional_embedding"
STEPS = 4  # two epochs of seven clips, three in a batch


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def steps(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "step"]


def rates(peak):
    """Four steps, one of which rises from 0; then half a cosine to 0."""
    return [0.0, *(peak * (1 + math.cos(math.pi * step / 3)) / 2 for step in range(3))]


@pytest.fixture(scope="module")
def train(run, mini, world):
    """`train(OUT, option, ...)`: four steps on seven clips, from the small trained checkpoint."""

    def command(out, *options):
        fixed = ("--data", world / "test.csv", "--init", mini, "--epochs", 2, "--batch", 3, "--device", "cpu")
        return run("tempme-train", *map(str, (*fixed, "--out", out, *options)), env={"OMP_NUM_THREADS": "1"})

    return command


@pytest.fixture(scope="module")
def default(train, tmp_path_factory):
    """The folder of a run in which nothing but its length was asked for."""
    out = tmp_path_factory.mktemp("training") / "default"
    done = train(out, "--workers", 0)
    assert done.returncode == 0, done.stderr
    return out


def test_the_temperature_is_kept_and_only_additions_train(default, mini):
    before, after = weights(mini), weights(default / "final.pth")
    assert torch.equal(after["clip.logit_scale"], before["clip.logit_scale"])
    assert len({row["temperature"] for row in steps(default)}) == 1
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith(POSITION)} != set()
    assert all(name.endswith(("TVPt_LoRA_a", "TVPt_LoRA_b")) for name in after.keys() - before.keys())


def test_the_rate_begins_at_nothing(default):
    assert [row["lr"] for row in steps(default)] == pytest.approx(rates(6e-4), abs=1e-18)


def test_stopped_after_the_first_step_nothing_has_moved_and_the_rest_is_the_same(default, train, mini, tmp_path):
    """Also where other processes decode: what is drawn for a video does not hang on who decodes it, or when."""
    out = tmp_path / "out"
    assert train(out, "--workers", 0, "--max-minutes", 1e-9).returncode == 0
    begun, saved = weights(mini), torch.load(out / "last.pt", weights_only=True)
    assert len(steps(out)) == 1 and saved["position"]["step"] == 1
    assert "logit_scale" not in saved["parameters"]
    for name, tensor in saved["parameters"].items():
        assert name.endswith("LoRA_a") or torch.equal(
            tensor, begun.get(f"clip.{name}", torch.zeros(()).expand_as(tensor))
        )
    done = train(out, "--resume", "--betas", 0.9, 0.98, "--seed", 0)
    assert done.returncode == 3
    assert "betas is [0.9, 0.98] now and was [0.9, 0.999]" in done.stderr and "seed is 0 now and was 42" in done.stderr
    done = train(out, "--workers", 2, "--resume")
    assert done.returncode == 0, done.stderr
    first, second = weights(default / "final.pth"), weights(out / "final.pth")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_all_that_trains_decays(train, mini, tmp_path):
    """Where gradients are cut to nothing, decay is left: of clip positions, a factor that the rates give.

    A step rounds a weight by half an epsilon, once when it decays and once when it moves. It still moves by the rate
    times a gradient of at most 1e-16 over Adam's own 1e-8.
    """
    out = tmp_path / "out"
    done = train(out, "--lr", 0.5, "--weight-decay", 0.3, "--clip-norm", 1e-16, "--workers", 0)
    assert done.returncode == 0, done.stderr
    factor = math.prod(1 - rate * 0.3 for rate in rates(0.5))
    before, after = weights(mini), weights(out / "final.pth")
    for name, tensor in before.items():
        expected = tensor * factor if name.endswith(POSITION) else tensor
        torch.testing.assert_close(after[name], expected, rtol=len(rates(0.5)) * 2**-23, atol=sum(rates(0.5)) * 1e-8)
    assert factor < 0.8


def test_frames_are_augmented_unless_asked_otherwise(default, train, tmp_path):
    """The first step moves nothing, so that what differs there are the pictures."""
    out = tmp_path / "out"
    assert train(out, "--workers", 0, "--augment", "none", "--max-minutes", 1e-9).returncode == 0
    first, plain = steps(default)[0], steps(out)[0]
    assert first["temperature"] == plain["temperature"]
    assert abs(first["loss"] - plain["loss"]) > 1e-3


def test_a_cache_of_cropped_frames_is_not_augmented_in_silence(train, tmp_path):
    done = train(tmp_path / "out", "--cache", tmp_path / "frames")
    assert done.returncode == 2 and done.stdout == ""
    assert "leave --cache out, or add --augment none" in done.stderr
    assert list(tmp_path.iterdir()) == []
