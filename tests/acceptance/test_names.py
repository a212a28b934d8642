"""Names that are no UTF-8, which Linux allows: of checkpoints, bundles, videos, tables and results."""

import json
import os
import shutil
import sys

import polars as pl
import pytest

import tempme_export

NAME = os.fsdecode(b"caf\xe9 it's")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are all text")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mini, mini_bundle, world):
    """A folder so named, with a checkpoint, a bundle, three videos and their table."""
    folder = tmp_path_factory.mktemp("names") / NAME
    (folder / NAME).mkdir(parents=True)
    shutil.copy(mini, folder / f"{NAME}.pth")
    shutil.copytree(mini_bundle, folder / f"{NAME}.tempme")
    for clip in ("00000", "00001", "00002"):
        shutil.copy(world / "test" / f"{clip}.mp4", folder / NAME / f"{clip}.mp4")
    shutil.copy(folder / NAME / "00000.mp4", folder / f"{NAME}.mp4")
    rows = {"video": ["00000.mp4", "00001.mp4", "00002.mp4"], "caption": ["a", "b", "c"]}
    (folder / f"{NAME}.csv").write_bytes(pl.DataFrame(rows).write_csv().encode())
    return folder


def test_a_checkpoint_and_its_bundle(run, folder):
    done = run("tempme-export", f"{NAME}.pth", "--out", f"{NAME}.new", "--json", "--batch-range", "1:1:2", cwd=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["bundle"].endswith("/caf\\xe9 it's/caf\\xe9 it's.new")
    assert document["manifest"]["checkpoint"]["path"] == "caf\\xe9 it's.pth"
    assert json.loads((folder / f"{NAME}.new" / "manifest.json").read_text(encoding="utf-8")) == document["manifest"]


def test_a_bundle_is_verified_and_served(run, folder):
    bundle = f"{NAME}.tempme"
    for arguments in (("verify", bundle), ("triton-repo", bundle, f"{NAME} models")):
        done = run("tempme-export", *arguments, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["bundle"].endswith("caf\\xe9 it's.tempme")


def test_embeddings_are_those_under_another_name(folder, mini_bundle, world):
    found = tempme_export.load(folder / f"{NAME}.tempme").encode_video(folder / f"{NAME}.mp4")
    expected = tempme_export.load(mini_bundle).encode_video(world / "test" / "00000.mp4")
    assert (found == expected).all()


def test_an_evaluation(run, folder):
    files = (
        "--cache",
        f"{NAME} cache",
        "--features",
        f"{NAME} f",
        "--csv",
        f"{NAME} o.csv",
        "--parquet",
        f"{NAME} o.pq",
    )
    where = ("--data", f"{NAME}.csv", "--videos", NAME, "--workers", "1")
    done = run("tempme-eval", f"{NAME}.tempme", *where, *files, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "caf\\xe9 it's.tempme"
    assert pl.read_parquet((folder / f"{NAME} o.pq").read_bytes()).height


@pytest.mark.parametrize("arguments", [(f"{NAME} none.pth",), ("verify", f"{NAME} none"), (f"{NAME}.mp4",)])
def test_a_refusal_names_it(run, folder, arguments):
    done = run("tempme-export", *arguments, cwd=folder)
    assert done.returncode == 3 and "error: " in done.stderr and "caf\\xe9 it's" in done.stderr
