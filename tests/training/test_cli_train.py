"""`tempme-train`: exit codes, one message for each refusal, words on stderr, and a process that is killed."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tempme_export.cli import train, train_console
from tempme_export.data.synthetic import write_world
from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.encoder.profile import load_profile
from tempme_export.training import loop
from tempme_export.training.log import read_rows
from tempme_export.training.skipped import Skipped

COMMAND = [sys.executable, "-m", "tempme_export.cli.train"]


@pytest.fixture
def tempme_train(monkeypatch, capsys):
    """Run the command in this process; returns exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tempme-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            train.main()
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return call


@pytest.fixture
def arguments(clips, checkpoint, profile, cache, tmp_path):
    """What asks for two epochs of three steps."""
    settings = {"data": clips / "train.csv", "init": checkpoint, "profile": profile, "out": tmp_path / "out"}
    settings |= {"epochs": 2, "batch": 4, "lr": 1e-3, "workers": 0, "cache": cache, "device": "cpu", "augment": "none"}
    return [str(part) for name, value in settings.items() for part in (f"--{name}", value)]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def refusal(result, code, *words):
    """One line of error on stderr with these words, nothing on stdout, no traceback."""
    found, out, err = result
    assert found == code, err
    assert out == "" and "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def documented_training():
    """Arguments of the training from nothing in docs/training.md, but for its cache."""
    page = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^tempme-train (.*--init scratch.*)$", page, re.MULTILINE)
    return without(shlex.split(line), "cache")


def without(arguments, name):
    place = arguments.index(f"--{name}")
    return arguments[:place] + arguments[place + 2 :]


class TestUsage:
    def test_help_is_quick_and_complete(self):
        program = (
            "import sys\n"
            "from tempme_export.cli import train\n"
            "heavy = {'torch', 'av', 'open_clip', 'matplotlib', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
            "sys.argv = ['tempme-train', '--help']\n"
            "train.main()\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        for word in ("--data", "--val", "--init", "--full", "--tune", "--resume", "--max-minutes", "Exit codes"):
            assert word in done.stdout

    @pytest.mark.parametrize("name", ["data", "init", "out"])
    def test_what_must_be_given(self, tempme_train, arguments, name):
        code, out, err = tempme_train(*without(arguments, name))
        assert code == 2 and out == "" and f"--{name}" in err

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--full", "--tune", "lora"], "--full trains everything and --tune lora a part"),
            (["--full", "--rank", "4"], "--rank 4 is of lora and adapter, and full has none"),
            (["--tune", "prompt", "--rank", "4"], "and prompt has none"),
            (["--tune", "head"], "--tune: found 'head', expected one of lora"),
            (["--batch", "1"], "--batch 1 is below 2"),
            (["--warmup", "1.5"], "--warmup 1.5"),
        ],
    )
    def test_settings(self, tempme_train, arguments, tmp_path, more, words):
        refusal(tempme_train(*arguments, *more), 2, words)
        assert list(tmp_path.iterdir()) == []

    def test_full_may_be_said_twice(self):
        assert [train._tune("full", True), train._tune(None, True), train._tune(None, False)] == [
            "full",
            "full",
            "lora",
        ]

    def test_the_documented_training_from_nothing(self, tempme_train, tmp_path, monkeypatch):
        """Of a world of a few clips, which is there before."""
        documented = documented_training()
        assert {"--seed", "--betas", "--eps", "--decay", "--train-temperature"} <= set(documented)
        small = [*documented, "--epochs", "1", "--batch", "4", "--out", tmp_path / "out", "--device", "cpu"]
        refusal(tempme_train(*small, "--dry-run"), 2, "out/world is not rendered yet", "--dry-run")
        monkeypatch.setenv("WORLD_SIZE", "2")
        refusal(tempme_train(*small), 2, "not rendered yet", "single process")
        assert list(tmp_path.iterdir()) == []
        monkeypatch.delenv("WORLD_SIZE")
        (tmp_path / "out").mkdir()
        write_world(tmp_path / "out" / "world", train_clips=9, test_clips=4, workers=1)
        code, _, err = tempme_train(*small, "--workers", "1")
        assert code == 0, err
        assert "synthetic train   9 videos" in err and "synthetic test   4 videos" in err
        assert {"world", "best.pth"} <= {path.name for path in (tmp_path / "out").iterdir()}
        assert load_checkpoint(tmp_path / "out/best.pth").profile == load_profile("mini-8f")

    def test_scratch(self, tempme_train, arguments):
        scratch = [*without(arguments, "init"), "--init", "scratch"]
        refusal(tempme_train(*scratch), 2, "--init scratch", "Add --full")
        refusal(tempme_train(*without(scratch, "profile"), "--full"), 2, "needs a profile", "mini-8f")


class TestInput:
    def test_data(self, tempme_train, arguments, tmp_path):
        wrong = [*without(arguments, "data"), "--data"]
        refusal(tempme_train(*wrong, "msrvtt:nowhere"), 3, "nowhere")
        refusal(tempme_train(*wrong, tmp_path / "none.csv"), 3, "none.csv")
        refusal(tempme_train(*arguments, "--val", tmp_path / "none.csv"), 3, "none.csv")
        refusal(tempme_train(*arguments, "--videos", tmp_path / "none"), 3, "none")

    def test_checkpoint_and_profile(self, tempme_train, arguments, profile, tmp_path):
        refusal(tempme_train(*without(arguments, "init"), "--init", tmp_path / "none.pth"), 3, "does not exist")
        refusal(tempme_train(*without(arguments, "profile"), "--profile", "none"), 3, "no profile is called 'none'")
        own = tmp_path / "own.toml"
        own.write_text(profile.read_text().replace("tempme-mini", "checkpoint"))
        scratch = without(without(arguments, "init"), "profile")
        refusal(tempme_train(*scratch, "--init", "scratch", "--full", "--profile", own), 3, "sizes from a checkpoint")

    def test_too_few_videos(self, tempme_train, arguments):
        refusal(tempme_train(*without(arguments, "batch"), "--batch", 64), 3, "found 9 videos", "--batch 9")

    def test_device(self, tempme_train, arguments):
        refusal(tempme_train(*without(arguments, "device"), "--device", "cuda:5"), 4, "cuda:5")

    def test_a_run_is_in_the_way(self, tempme_train, arguments, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "best.pth").write_bytes(b"precious")
        for more in ([], ["--dry-run"]):
            refusal(tempme_train(*arguments, *more), 3, "holds a run already (best.pth)", "--resume")
        assert (tmp_path / "out" / "best.pth").read_bytes() == b"precious"

    def test_diverged(self, tempme_train, arguments):
        refusal(tempme_train(*without(arguments, "lr"), "--lr", 1e30), 6, "the training diverged", "lower --lr")


def test_a_run(tempme_train, arguments, clips, tmp_path):
    code, out, err = tempme_train(*arguments, "--val", clips / "val.csv", "--json", "--store", "fp16")
    assert code == 0, err
    lines = err.splitlines()
    for start, words in (
        ("profile ", "small (as asked)"),
        ("train data ", "9 videos, 13 captions"),
        ("val data ", "3 videos, 4 captions"),
        ("trains ", "lora"),
        ("run ", "6 steps in 2 epochs, batches of 4; at most 1 captions sit out an epoch"),
        ("epoch 1 ", "text-to-video R@1 "),
        ("epoch 2 ", "video-to-text R@1 "),
        ("done ", "6 steps in "),
        ("wrote ", "best.pth, final.pth"),
        ("next ", f"tempme-export {tmp_path / 'out' / 'best.pth'}"),
    ):
        assert any(line.startswith(start) and words in line for line in lines), (start, words, err)
    assert "best so far" in err and "\x1b" not in err, "no terminal, no bar"
    document = json.loads(out)
    assert document["finished"] and document["steps"] == 6
    assert len(document["files"]) >= 6 and document["best"]["r1"] >= 0


def test_a_run_from_scratch_that_stops_and_goes_on(tempme_train, arguments, tmp_path):
    scratch = [*without(arguments, "init"), "--init", "scratch", "--full"]
    code, out, err = tempme_train(*scratch, "--max-minutes", 1e-9)
    assert code == 0 and out == ""
    assert "after step 1 of 6" in err and "--resume goes on" in err
    again = shlex.split(err.splitlines()[-1])
    assert again[:2] == ["next", "tempme-train"] and again[-1] == "--resume" and "--full" in again
    code, out, err = tempme_train(*scratch, "--resume")
    assert code == 0 and "after step 1, in epoch 1 of 2" in err
    assert err.splitlines()[-1].startswith("next       tempme-export ")
    refusal(tempme_train(*scratch, "--resume", "--seed", 5), 3, "seed is 5 now and was 42", "init is")


def test_a_dry_run_writes_nothing(tempme_train, arguments, clips, tmp_path):
    code, out, err = tempme_train(*arguments, "--dry-run", "--val", clips / "val.csv", "--json")
    assert code == 0 and list(tmp_path.iterdir()) == []
    assert "6 steps in 2 epochs" in err and "dry run: nothing written" in err and "its cache about" in err
    again = shlex.split(err.splitlines()[-1])
    assert again[:2] == ["next", "tempme-train"] and "--dry-run" not in again and "--val" in again
    document = json.loads(out)
    assert document["steps"] == 6 and document["trained"].keys() == {"lora", "clip positions"}


def test_missing_videos_are_said(tempme_train, arguments, broken_clips, tmp_path):
    table = broken_clips.paths[0].parent / "train.csv"
    code, _, err = tempme_train(*without(arguments, "data"), "--data", table, "--dry-run")
    assert code == 0 and "1 train videos are not there" in err
    own = [*without(without(arguments, "data"), "cache"), "--data", table, "--epochs", 1]
    code, _, err = tempme_train(*own)
    assert code == 0
    assert "train 2.avi: " in err and "train 5.avi: " in err
    assert "2 videos could not be read and are left out; skipped.jsonl lists them" in err


def test_long_lists_are_short_on_the_screen(capsys):
    train_console.show_skipped([Skipped("train", f"{i}.mp4", "", "why") for i in range(12)])
    err = capsys.readouterr().err
    assert "9.mp4" in err and "10.mp4" not in err
    assert "12 videos could not be read and are left out, 2 more than shown" in err


class TestOtherProcesses:
    def test_only_the_first_prints(self, tempme_train, arguments, monkeypatch, tmp_path):
        """Alone in its group it trains all the same."""
        monkeypatch.setenv("RANK", "1")
        assert tempme_train(*arguments, "--json", "--epochs", 1) == (0, "", "")
        assert len(read_rows(tmp_path / "out" / loop.METRICS)) == 3

    def test_their_errors_say_whose_they_are(self, tempme_train, arguments, monkeypatch):
        monkeypatch.setenv("RANK", "3")
        refusal(tempme_train(*arguments, "--tune", "head"), 2, "process 3: --tune: found 'head'")


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def wait_for_lines(path, count, process):
    deadline = time.monotonic() + 300
    while len(read_rows(path)) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_and_resumed_it_ends_with_the_same_weights(
    tempme_train, arguments, tmp_path, clips, assert_same_weights
):
    """SIGKILL to a real process somewhere after its fourth step of twelve; the same bits on the CPU."""
    own = [*without(without(arguments, "out"), "epochs"), "--epochs", "4"]
    more = ["--val", clips / "val.csv", "--save-every", 2]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert tempme_train(*own, *more, "--out", whole)[0] == 0
    command = [*COMMAND, *own, *map(str, more), "--out", str(killed)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        wait_for_lines(killed / loop.METRICS, 5, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL and not (killed / loop.FINAL).exists()
    assert tempme_train(*own, *more, "--out", killed, "--resume")[0] == 0
    for name in (loop.BEST, loop.FINAL):
        assert_same_weights(killed / name, whole / name)
    kept = [[row["step"] for row in read_rows(out / loop.METRICS)] for out in (whole, killed)]
    assert kept[0] == kept[1] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12, 12]


def test_a_world_that_is_not_there_is_rendered_first(tmp_path):
    """The documented training, stopped as soon as its clips are being rendered."""
    command = [*COMMAND, *documented_training(), "--out", str(tmp_path / "out"), "--device", "cpu"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        begun = next((line for line in process.stderr if line.startswith("started")), "")
        assert "rendering clips, 5000 clips" in begun
        while not list(tmp_path.glob("out/.world.*/train/*.mp4")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err
    assert list(tmp_path.rglob("*.mp4")) == [] and not list(tmp_path.glob("out/.world.*"))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_ctrl_c(arguments, tmp_path, rank):
    """In the middle of a run of a real process; of several only the first says so."""
    command = [*COMMAND, *without(arguments, "epochs"), "--epochs", "99"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment() | {"RANK": rank}, **pipes)
    try:
        wait_for_lines(tmp_path / "out" / loop.METRICS, 2, process)
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert ("--resume goes on" in err) == (rank == "0") and (err == "") == (rank == "1")


def test_the_checkpoint_names_what_it_needs(tempme_train, arguments, tmp_path):
    """best.pth alone is enough for what comes next: its profile is inside."""
    assert tempme_train(*arguments, "--epochs", 1)[0] == 0
    stored = torch.load(tmp_path / "out" / "best.pth", weights_only=True)
    assert set(stored) == {"state_dict", "profile", "activation", "mean", "std"}
    assert stored["profile"]["frames"] == 4 and stored["activation"] == "quickgelu"
