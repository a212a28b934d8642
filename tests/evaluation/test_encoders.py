"""Bundles and checkpoints as encoders: equal to what they wrap, told apart by fingerprints, refused with advice."""

import dataclasses
import shutil
import weakref

import numpy as np
import pytest
import torch

from tempme_export.artifacts.bundle import MANIFEST, open_bundle, write_manifest
from tempme_export.artifacts.registry import VIDEO_ONNX
from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.encoder.profile import load_profile
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.reference import ReferenceText, ReferenceVideo
from tempme_export.errors import BackendError, BundleError, CheckpointError, InputError, ProfileError, UsageError
from tempme_export.evaluation import encoders
from tempme_export.evaluation.checkpoint_encoder import CheckpointEncoder
from tempme_export.evaluation.encoders import BundleEncoder, open_encoder
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.tokenizer import Tokenizer
from tempme_export.parity.checks import cosine_distance
from tempme_export.retrieval import RetrievalModel
from tempme_export.runtime.pytorch import TorchRunner

TEXTS = ["a small red square moves left, then up", "a dog", "rain"]


@pytest.fixture(scope="module")
def recipe(mini_checkpoint, mini_profile):
    return prepare(load_checkpoint(mini_checkpoint), mini_profile)


@pytest.fixture(scope="module")
def reference(recipe, noise, safe_embedding):
    """(video [5, E], text [3, E]) of `noise` and `TEXTS`, each encoded alone. The decisions are safe."""
    preprocess, text = preprocess_for(recipe), ReferenceText(recipe)
    ids = torch.from_numpy(Tokenizer("tempme-mini", 24)(TEXTS))
    video = np.concatenate([safe_embedding(recipe, preprocess(clip)[None]) for clip in noise])
    return video, torch.cat([text(row[None]) for row in ids]).numpy()


@pytest.fixture(params=["original", "torch", "ort"])
def encoder(request, mini_checkpoint, mini_profile, mini_bundle):
    is_bundle = request.param == "ort"
    source, profile = (mini_bundle, None) if is_bundle else (mini_checkpoint, mini_profile)
    opened = open_encoder(source, profile, request.param)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def assert_near(unit_error):
    """Asserts that embeddings have the length 1 and are the same but for a tower's rounding."""

    def check(expected, found, limits):
        assert found.dtype == np.float32 and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=limits.difference)
        length = np.linalg.norm(found.astype(np.float64), axis=-1)
        np.testing.assert_allclose(length, 1, rtol=0, atol=unit_error(found.shape[-1]))

    return check


class TestEmbeddings:
    def test_facts(self, encoder):
        assert (encoder.frames, encoder.embed, encoder.preprocess.size) == (8, 128, 64)
        assert encoder.name in ("mini.pth", "mini.tempme") and encoder.device == "cpu"
        assert len(encoder.fingerprint) == 64

    def test_videos(self, encoder, reference, noise, assert_near, video_rounding, recipe):
        expected, limits = reference[0], video_rounding(recipe.backbone)
        assert cosine_distance(expected[:1], expected[1:2]) > 1e-4, "an order mixed up would show"
        assert_near(expected, encoder.encode_frames(noise), limits)
        assert_near(expected[2:3], encoder.encode_frames(noise[2:3]), limits)

    def test_texts(self, encoder, reference, assert_near, text_rounding, recipe):
        limits = text_rounding(recipe.backbone)
        assert cosine_distance(reference[1][:1], reference[1][1:2]) > 1e-4
        assert_near(reference[1], encoder.encode_text(TEXTS), limits)
        assert_near(reference[1][1:], encoder.encode_text(tuple(TEXTS[1:])), limits)

    def test_nothing(self, encoder):
        for found in (encoder.encode_frames(np.zeros((0, 8, 64, 64, 3), np.uint8)), encoder.encode_text([])):
            assert found.shape == (0, 128) and found.dtype == np.float32

    def test_texts_come_in_batches(self, encoder, reference, assert_near, text_rounding, recipe):
        """300 are more than one call takes."""
        expected = np.tile(reference[1], (100, 1))
        assert_near(expected, encoder.encode_text(TEXTS * 100), text_rounding(recipe.backbone))

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda n: n[:, :, :32, :32], r"uint8 \[5, 8, 32, 32, 3\]"),
            (lambda n: n[:, :4], r"\[5, 4, 64, 64, 3\]"),
            (lambda n: n.astype(np.float32), r"float32 \[5, 8, 64, 64, 3\]"),
            (lambda n: n[0], r"\[8, 64, 64, 3\]"),
            (lambda n: n.transpose(0, 1, 4, 2, 3), r"\[5, 8, 3, 64, 64\]"),
        ],
    )
    def test_frames_of_another_kind(self, encoder, noise, make, words):
        with pytest.raises(InputError, match=f"{words}, expected uint8 .batch, 8, 64, 64, 3"):
            encoder.encode_frames(make(noise))

    def test_blank_text(self, encoder):
        with pytest.raises(InputError, match="text 1 blank"):
            encoder.encode_text(["a", " "])


def test_a_bundle_sees_the_frames_as_they_are(mini_bundle, noise, runs):
    """Resizing and cropping what has the right size must not touch a bit."""
    runtime = runs("ort")
    with RetrievalModel(open_bundle(mini_bundle)) as model:
        model.encode_video(list(noise))
    mean, std = np.float32(model.preprocess.mean), np.float32(model.preprocess.std)
    expected = ((noise.astype(np.float32) / np.float32(255) - mean) / std).transpose(0, 1, 4, 2, 3)
    np.testing.assert_array_equal(np.concatenate([inputs["frames"] for inputs in runtime.seen]), expected)


def test_a_checkpoint_sees_them_alike(recipe, noise):
    """To the bit, since the same pixels give the same embedding."""
    encoder, preprocess = CheckpointEncoder(recipe), preprocess_for(recipe)
    pixels = np.stack([preprocess(clip) for clip in noise])
    expected = TorchRunner(ReferenceVideo(recipe), recipe, "original", "video").infer({"frames": pixels})
    np.testing.assert_array_equal(encoder.encode_frames(noise), expected["video_embedding"])


class TestFingerprint:
    def test_the_same_again(self, mini_bundle, mini_checkpoint, mini_profile):
        for source, profile in ((mini_bundle, None), (mini_checkpoint, mini_profile)):
            with_str = open_encoder(str(source), profile).fingerprint
            assert with_str == open_encoder(source, profile).fingerprint

    def test_what_tells_apart(self, recipe, mini_bundle):
        merge = dataclasses.replace(recipe.profile.merge, image_r=1)
        other_profile = dataclasses.replace(recipe.profile, merge=merge)
        other_file = dataclasses.replace(recipe.checkpoint, sha256="0" * 64)
        found = [
            CheckpointEncoder(recipe).fingerprint,
            CheckpointEncoder(recipe, "torch").fingerprint,
            CheckpointEncoder(prepare(recipe.checkpoint, other_profile)).fingerprint,
            CheckpointEncoder(prepare(other_file, recipe.profile)).fingerprint,
            BundleEncoder(open_bundle(mini_bundle)).fingerprint,
        ]
        found += [encoders.fingerprint(["0"], "ort", device) for device in ("cpu", "cuda")]
        assert len(set(found)) == len(found)

    def test_versions_of_what_runs(self):
        def of(backend, device="cpu", **changes):
            installed = {**usual, **{name.replace("_", "-").lower(): version for name, version in changes.items()}}
            return encoders.fingerprint("m", backend, device, installed)

        usual = {"onnxruntime_gpu": "1", "torch": "2", "tempme_export": "3", "open_clip_torch": "4"}
        usual |= {"tensorrt_cu13_bindings": "5", "nvidia-cudnn-cu13": "6", "rich": "7"}
        usual = {name.replace("_", "-"): version for name, version in usual.items()}
        for backend, device, changed, matters in (
            ("ort", "cpu", "onnxruntime_gpu", True),
            ("ort", "cpu", "tempme_export", True),
            ("original", "cpu", "open_clip_torch", True),
            ("original", "cpu", "torch", True),
            ("tensorrt", "cuda:0", "tensorrt_cu13_bindings", True),
            ("torch", "cuda", "nvidia_cudnn_cu13", True),
            ("torch", "cpu", "nvidia_cudnn_cu13", False),
            ("ort", "cpu", "torch", False),
            ("original", "cpu", "onnxruntime_gpu", False),
            ("ort", "cpu", "rich", False),
        ):
            assert (of(backend, device) != of(backend, device, **{changed: "0"})) == matters, (backend, changed)

    def test_what_does_not(self):
        of = encoders.fingerprint
        assert of("m", "torch", "cuda:0") == of("m", "torch", "cuda:1")

    def test_names_of_packages_are_spelt_alike(self):
        """As the index has them, whatever their own files say: tempme_export, open_clip_torch."""
        assert {"tempme-export", "open-clip-torch", "torch", "onnxruntime"} <= encoders.installed_versions().keys()

    def test_the_model_is_inside(self, recipe, mini_bundle):
        backbone, preprocess = dataclasses.asdict(recipe.backbone), dataclasses.asdict(preprocess_for(recipe))
        model = [recipe.checkpoint.sha256, recipe.profile.to_dict(), backbone, preprocess]
        assert CheckpointEncoder(recipe, "torch").fingerprint == encoders.fingerprint(model, "torch", "cpu")
        bundle = open_bundle(mini_bundle)
        expected = encoders.fingerprint(bundle.manifest["sha256"], "ort", "cpu")
        assert BundleEncoder(bundle).fingerprint == expected


class TestOpening:
    def test_defaults(self, mini_bundle, mini_checkpoint, mini_profile):
        assert open_encoder(mini_bundle).backend == "ort"
        assert open_encoder(mini_checkpoint, mini_profile).backend == "original"

    @pytest.mark.parametrize("backend", ["original", "torch"])
    def test_a_checkpoints_backend_for_a_bundle(self, mini_bundle, backend):
        with pytest.raises(UsageError, match=rf"is a bundle, and backend '{backend}' runs a checkpoint.*ort, pt2"):
            open_encoder(mini_bundle, backend=backend)

    @pytest.mark.parametrize(("backend", "flag"), [("ort", ""), ("pt2", " --pt2")])
    def test_a_bundles_backend_for_a_checkpoint(self, mini_checkpoint, mini_profile, backend, flag):
        with pytest.raises(UsageError, match=f"tempme-export {mini_checkpoint}{flag} and give.*original, torch"):
            open_encoder(mini_checkpoint, mini_profile, backend)

    def test_unknown_backends(self, mini_bundle, mini_checkpoint, mini_profile, recipe):
        with pytest.raises(BackendError, match=r"'fast', expected one of.*ort, pt2"):
            open_encoder(mini_bundle, backend="fast")
        with pytest.raises(BackendError, match=r"'fast', expected one of.*original, torch"):
            open_encoder(mini_checkpoint, mini_profile, "fast")
        with pytest.raises(BackendError, match="expected one of original, torch"):
            CheckpointEncoder(recipe, "ort")

    def test_backend_is_judged_before_the_file_is_read(self, tmp_path):
        with pytest.raises(UsageError, match="is a checkpoint"):
            open_encoder(tmp_path / "missing.pth", backend="ort")

    def test_a_profile_for_a_bundle(self, mini_bundle, mini_profile):
        with pytest.raises(UsageError, match=r"profile lies in its manifest.json. Leave out --profile"):
            open_encoder(mini_bundle, mini_profile)

    def test_package_that_is_not_there(self, mini_bundle):
        with pytest.raises(BackendError, match=r"has no video.pt2. Export it with --pt2"):
            open_encoder(mini_bundle, backend="pt2")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
    def test_devices(self, mini_bundle, mini_checkpoint, mini_profile):
        for device in ("cuda", "tpu"):
            for source, profile in ((mini_bundle, None), (mini_checkpoint, mini_profile)):
                with pytest.raises(BackendError, match=f"{device}.*cpu"):
                    open_encoder(source, profile, device=device)

    def test_sources_that_are_none(self, tmp_path):
        with pytest.raises(BundleError, match=r"no manifest.json"):
            open_encoder(tmp_path)
        with pytest.raises(CheckpointError, match="does not exist"):
            open_encoder(tmp_path / "missing.pth")
        with pytest.raises(CheckpointError, match="is not open_clip:MODEL/PRETRAINED"):
            open_encoder("open_clip:nothing")

    def test_a_changed_bundle(self, mini_bundle, tmp_path):
        copy = shutil.copytree(mini_bundle, tmp_path / "copy.tempme")
        with (copy / VIDEO_ONNX.file).open("r+b") as stream:
            stream.seek(1000)
            stream.write(b"\0\1\2\3")
        with pytest.raises(BundleError, match=r"video.onnx was changed"):
            open_encoder(copy)
        (copy / MANIFEST).unlink()
        with pytest.raises(BundleError, match=r"no manifest.json"):
            open_encoder(copy)

    def test_a_folder_called_by_a_dot(self, mini_bundle, monkeypatch):
        monkeypatch.chdir(mini_bundle)
        assert open_encoder(".").name == "mini.tempme"

    def test_no_tokenizer(self, mini_checkpoint, mini_profile, mini_bundle, tmp_path):
        """Refused before any video is encoded."""
        nameless = dataclasses.replace(load_profile(mini_profile), backbone="checkpoint")
        with pytest.raises(ProfileError, match="no tokenizer"):
            CheckpointEncoder(prepare(load_checkpoint(mini_checkpoint), nameless))
        copy = shutil.copytree(mini_bundle, tmp_path / "copy.tempme")
        manifest = {k: v for k, v in open_bundle(copy).manifest.items() if k not in ("format", "files", "sha256")}
        write_manifest(copy, {**manifest, "profile": nameless.to_dict()})
        with pytest.raises(ProfileError, match="no tokenizer"):
            open_encoder(copy)

    def test_closing(self, mini_bundle, noise):
        encoder = open_encoder(mini_bundle)
        session = weakref.ref(encoder.model._runner("video").opened())
        encoder.encode_frames(noise[:1])
        assert session() is not None
        encoder.close()
        assert session() is None
