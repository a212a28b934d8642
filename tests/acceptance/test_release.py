"""A bundle in use is one release of it, whatever becomes of its folder."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch

import tempme_export
from tempme_export.artifacts.bundle import Intact
from tempme_export.errors import BundleError

TEXTS = ["a red ball rolls", "a green box"]


@pytest.fixture(scope="module")
def next_bundle(mini, tmp_path_factory):
    """The same model after more training: files of the same names and sizes, other numbers."""
    folder = tmp_path_factory.mktemp("next")
    checkpoint = torch.load(mini, weights_only=True)
    state = checkpoint.get("state_dict", checkpoint)
    generator = torch.Generator().manual_seed(3)
    for tensor in state.values():
        if tensor.is_floating_point() and tensor.dim() > 1:
            tensor += 0.05 * tensor.std() * torch.randn(tensor.shape, generator=generator)
    torch.save(checkpoint, folder / "next.pth")
    return tempme_export.export(folder / "next.pth", out=folder / "next.tempme", batch=(1, 2, 3)).path


@pytest.fixture
def releases(mini_bundle, next_bundle, tmp_path):
    """The path of a bundle, and what puts the other release in its place, as an export with --force does."""
    path, spare = tmp_path / "model.tempme", tmp_path / "spare.tempme"
    shutil.copytree(mini_bundle, path)
    shutil.copytree(next_bundle, spare)

    def replace():
        path.rename(tmp_path / "old")
        spare.rename(path)
        (tmp_path / "old").rename(spare)

    return path, replace


@pytest.fixture(scope="module")
def frames(mini_bundle):
    with tempme_export.load(mini_bundle) as model:
        count = model.profile.frames
    return np.random.default_rng(1).integers(0, 256, (count, 70, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(mini_bundle, next_bundle, frames):
    """(video, texts) of either release."""
    found = []
    for path in (mini_bundle, next_bundle):
        with tempme_export.load(path) as model:
            found.append((model.encode_video(frames), model.encode_text(TEXTS)))
    assert np.abs(found[0][1] - found[1][1]).max() > 1e-3, "a mix-up would show"
    return found


def assert_is(expected, model, frames):
    np.testing.assert_array_equal(model.encode_video(frames), expected[0])
    np.testing.assert_array_equal(model.encode_text(TEXTS), expected[1])


def test_the_release_that_was_loaded_stays(releases, expected, frames):
    path, replace = releases
    with tempme_export.load(path) as model:
        np.testing.assert_array_equal(model.encode_video(frames), expected[0][0])
        replace()
        assert_is(expected[0], model, frames)
        shutil.rmtree(path)
        assert_is(expected[0], model, frames)


def test_a_relative_path_and_another_folder(releases, expected, frames, tmp_path, monkeypatch):
    path, _ = releases
    monkeypatch.chdir(path.parent)
    models = [tempme_export.load(path.name), tempme_export.load(tempme_export.load(path.name).bundle)]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for model in models:
        assert_is(expected[0], model, frames)
        model.close()
        assert_is(expected[0], model, frames)


def test_a_link_that_is_moved(releases, next_bundle, expected, frames, tmp_path):
    """`current -> release`: what was loaded is the release, not the link."""
    path, _ = releases
    link = tmp_path / "current"
    link.symlink_to(path)
    model = tempme_export.load(link)
    link.unlink()
    link.symlink_to(next_bundle)
    model.close()
    assert_is(expected[0], model, frames)
    assert_is(expected[1], tempme_export.load(link), frames)


@pytest.mark.parametrize("name", ["text.onnx", "video.onnx", "tokenizer.json"])
@pytest.mark.parametrize("fault", ["missing", "cut"])
def test_an_incomplete_bundle_is_not_loaded(releases, name, fault):
    path, _ = releases
    data = (path / name).read_bytes()
    (path / name).unlink()
    if fault == "cut":
        (path / name).write_bytes(data[:-100])
    with pytest.raises(BundleError, match=name):
        tempme_export.load(path)


def test_replaced_while_it_is_opened(releases, expected, frames, runs):
    path, replace = releases
    text = runs("text-ort", before=lambda opened: replace() if len(opened) == 1 else None)  # between the two towers
    assert_is(expected[1], tempme_export.load(path), frames)
    assert text.opened == ["text.onnx"] * 2


def test_replaced_again_and_again(releases, runs):
    path, replace = releases
    runs("text-ort", before=lambda opened: replace())
    with pytest.raises(BundleError, match=r"model\.tempme.*another release"):
        tempme_export.load(path)


@pytest.mark.parametrize("how", ["pickled", "closed"])
def test_opened_again_from_another_release(releases, frames, how):
    path, replace = releases
    model = tempme_export.load(path)
    model.encode_video(frames)
    parcel = pickle.dumps(model)
    replace()
    if how == "closed":
        model.close()
    else:
        model = pickle.loads(parcel)
    for use in (lambda: model.encode_video(frames), lambda: model.encode_text(TEXTS)):
        with pytest.raises(BundleError, match="another release"):
            use()
    replace()
    assert model.encode_video(frames).shape == (128,)


def test_verified_and_replaced(releases, recording):
    path, replace = releases
    told = recording(lambda fact: replace() if isinstance(fact, Intact) else None)
    with pytest.raises(BundleError, match="another release"):
        tempme_export.verify(path, progress=told)


def test_served_and_replaced(releases, tmp_path, before_calls):
    """The configuration of one release over the files of another would not be seen by the server."""
    from tempme_export.artifacts.bundle import open_bundle
    from tempme_export.serving.repository import write_repository

    path, replace = releases
    links = []

    def act(n):
        links.append(n)
        if n == 2:
            replace()

    with before_calls(os.link, act), pytest.raises(BundleError, match="another release"):
        write_repository(open_bundle(path), tmp_path / "models")
    assert links == [1, 2] and not (tmp_path / "models").exists()
    assert not list(tmp_path.glob(".models*"))


def test_evaluated_and_replaced(releases, runs):
    from tempme_export.evaluation.encoders import open_encoder

    path, replace = releases
    runs("text-ort", before=lambda opened: replace())
    with pytest.raises(BundleError, match="another release"):
        open_encoder(path)
