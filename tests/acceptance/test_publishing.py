"""A bundle takes its name where that is free at that moment, and from then on nothing turns success into failure."""

import json
import shutil
import subprocess

import pytest
import torch

import tempme_export
from tempme_export.errors import TempMeExportError
from tempme_export.parity.verification import Parity


@pytest.fixture
def folder(tmp_path):
    """A folder to export in, and nothing else in it."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def manifest(bundle):
    return json.loads((bundle / "manifest.json").read_text())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class TestTwoExportsOneTarget:
    @pytest.fixture
    def at_parity(self, recording):
        """A listener that acts as soon as there is a verdict."""
        return lambda act: recording(lambda fact: act() if isinstance(fact, Parity) else None)

    def test_the_second_one_is_refused_at_the_rename(self, mini, mini_bundle, folder, at_parity):
        out = folder / "mini.tempme"
        meanwhile = at_parity(lambda: shutil.copytree(mini_bundle, out))
        with pytest.raises(TempMeExportError, match=r"mini\.tempme exists.*--force") as caught:
            tempme_export.export(mini, out=out, batch=(1, 1, 2), progress=meanwhile)
        assert caught.value.exit_code == 3
        assert manifest(out) == manifest(mini_bundle) and names(folder) == ["mini.tempme"]

    def test_an_empty_folder_is_not_taken_over(self, mini, folder, at_parity):
        out = folder / "mini.tempme"
        with pytest.raises(TempMeExportError, match="exists"):
            tempme_export.export(mini, out=out, batch=(1, 1, 2), progress=at_parity(out.mkdir))
        assert names(folder) == ["mini.tempme"] and names(out) == []

    def test_with_force_the_last_one_is_there_whole(self, mini, mini_bundle, folder, at_parity):
        out = folder / "mini.tempme"
        meanwhile = at_parity(lambda: shutil.copytree(mini_bundle, out))
        bundle = tempme_export.export(mini, out=out, batch=(1, 1, 2), force=True, progress=meanwhile)
        assert manifest(out) == bundle.manifest and bundle.manifest["profile"]["shapes"]["batch"] == [1, 1, 2]
        assert names(folder) == ["mini.tempme"]


class TestDefaultNames:
    @pytest.mark.parametrize(
        ("checkpoint", "expected"),
        [
            ("pytorch_model.bin.0", "pytorch_model.bin.0.tempme"),
            ("epoch=3-r1=0.625", "epoch=3-r1=0.625.tempme"),
            ("epoch=3-r1=0.625.pth", "epoch=3-r1=0.625.tempme"),
        ],
    )
    def test_a_suffix_that_is_no_checkpoints_stays(self, run, mini, folder, checkpoint, expected):
        shutil.copy(mini, folder / checkpoint)
        done = run("tempme-export", checkpoint, "--dry-run", "--json", cwd=folder)
        assert done.returncode == 0 and json.loads(done.stdout)["out"] == expected

    def test_a_bundle_of_another_checkpoint_is_named(self, run, mini, mini_bundle, folder):
        stored = torch.load(mini, weights_only=True)
        stored["state_dict"]["clip.logit_scale"] += 0.125
        torch.save(stored, folder / "model.pth")
        shutil.copytree(mini_bundle, folder / "model.tempme")
        done = run("tempme-export", "model.pth", "--dry-run", cwd=folder)
        assert done.returncode == 3
        assert f"was made from another checkpoint, {mini}" in done.stderr


def test_an_old_bundle_that_cannot_be_deleted_is_told(run, mini, mini_bundle, folder):
    out = folder / "mini.tempme"
    shutil.copytree(mini_bundle, out)
    made = subprocess.run(["chattr", "+i", out / "video.onnx"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no file can be made that root cannot delete: {made.stderr.strip()}")
    try:
        done = run("tempme-export", mini, "--out", out, "--batch-range", "1:1:2", "--force", "--json")
        left = [name for name in names(folder) if name != "mini.tempme"]
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["manifest"] == manifest(out)
        assert manifest(out)["profile"]["shapes"]["batch"] == [1, 1, 2]
        (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
        assert len(left) == 1 and left[0] in warning
    finally:
        for path in folder.rglob("video.onnx"):
            subprocess.run(["chattr", "-i", path], check=True)


def test_a_document_that_cannot_be_written_after_publishing(run, mini, folder):
    with open("/dev/full", "w") as full:
        options = {"capture_output": False, "stdout": full, "stderr": subprocess.PIPE}
        done = run("tempme-export", mini, "--out", folder / "a", "--batch-range", "1:1:2", "--json", **options)
    assert done.returncode == 0, done.stderr
    assert "warning: stdout could not be written (No space left on device)" in done.stderr
    tempme_export.verify(folder / "a")
