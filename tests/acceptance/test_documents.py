"""Documents that parse, or nearly, and are none that can be used: each is refused by what it is, before any work."""

import hashlib
import json
import shutil

import numpy as np
import pytest

import tempme_export
from tempme_export.errors import BundleError, InputError, ProfileError

DEEP = 100_000  # levels; Python's own limit is a thousand


@pytest.fixture
def bundle(mini_bundle, tmp_path):
    """A copy to change."""
    return shutil.copytree(mini_bundle, tmp_path / "copy.tempme")


def as_bytes(document):
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def rewrite(bundle, change):
    """Change the manifest, and seal it again as its writer does."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    del manifest["sha256"]
    path.write_bytes(as_bytes({**manifest, "sha256": hashlib.sha256(as_bytes(manifest)).hexdigest()}))


def test_a_sealed_manifest_is_read(bundle):
    """Or the tests below would try the seal alone."""
    rewrite(bundle, lambda manifest: manifest["versions"].update(another="1.0"))
    tempme_export.load(bundle).close()


@pytest.mark.parametrize(
    "text", ["a = " + "[" * DEEP, "a = " + "{b = " * DEEP, f"frames = {'9' * 5000}"], ids=["lists", "tables", "digits"]
)
def test_a_profile_without_end(mini, tmp_path, text):
    (tmp_path / "deep.toml").write_text(text)
    with pytest.raises(ProfileError, match="cannot be read as TOML"):
        tempme_export.export(mini, tmp_path / "deep.toml", tmp_path / "out")


@pytest.mark.parametrize("text", ["[" * DEEP, '{"videos":' * DEEP, "9" * 5000], ids=["lists", "tables", "digits"])
def test_annotations_without_end(mini, tmp_path, text):
    (tmp_path / "val_1.json").write_text(text)
    with pytest.raises(InputError, match=r"val_1\.json: found"):
        tempme_export.export(mini, out=tmp_path / "out", gate=f"activitynet:{tmp_path}")


def test_a_manifest_without_end(bundle):
    (bundle / "manifest.json").write_text("[" * DEEP)
    with pytest.raises(BundleError, match="is damaged"):
        tempme_export.load(bundle)


@pytest.mark.parametrize(
    "name, value",
    [
        ("files", [1]),
        ("files", {"video.onnx": "abc"}),
        ("files", {"../video.onnx": {"bytes": 1, "sha256": "0"}}),
        ("image", {"size": "64", "mean": [0, 0, 0], "std": [1, 1, 1]}),
        ("image", {"size": 64, "mean": [0, 0, 0], "std": [0, 1, 1]}),
        ("image", None),
        ("logit_scale", float("nan")),
        ("precision", ["fp32"]),
        ("backbone", {"embed": 0}),
        ("schedule", {"tokens_per_frame": 17}),
        ("parity", {"status": "passed"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("use", [tempme_export.load, tempme_export.verify], ids=["load", "verify"])
def test_a_manifest_of_other_kinds(bundle, name, value, use):
    rewrite(bundle, lambda manifest: manifest.update({name: value}))
    with pytest.raises(BundleError, match=rf"manifest\.json: {name}.*expected"):
        use(bundle)


@pytest.mark.parametrize(
    "name, other",
    [
        ("assign_01", lambda array: array[:, :-1]),
        ("clips", lambda array: array[..., :2]),
        ("gaps", lambda array: array.astype(np.float64)),
        ("video_embedding", lambda array: array[:0]),
        ("token_ids", lambda array: array.sum()),
    ],
)
def test_a_self_test_of_another_bundle(bundle, name, other):
    with np.load(bundle / "selftest.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    np.savez(bundle / "selftest.npz", **{**arrays, name: other(arrays[name])})
    data = (bundle / "selftest.npz").read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(bundle, lambda manifest: manifest["files"].update({"selftest.npz": entry}))
    with pytest.raises(BundleError, match=rf"{name} is"):
        tempme_export.verify(bundle)
