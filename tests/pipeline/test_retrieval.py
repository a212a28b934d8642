"""A bundle in use: every way to hand in a video, texts, similarities, and what is refused."""

import dataclasses
import warnings
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import tempme_export
from tempme_export.artifacts.bundle import Bundle, open_bundle
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.profile import load_profile
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.reference import ReferenceText
from tempme_export.errors import BackendError, BundleError, InputError, VideoError
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.render import render_clip
from tempme_export.media.token_ids import TextTruncatedWarning
from tempme_export.media.tokenizer import Tokenizer
from tempme_export.media.video import read_frames
from tempme_export.parity.checks import cosine_distance
from tempme_export.pipeline import export
from tempme_export.retrieval import RetrievalModel
from tempme_export.training.init import draw_clip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(small_bundle):
    with tempme_export.load(small_bundle) as model:
        yield model


@pytest.fixture(scope="module")
def reference(small_recipe, safe_embedding):
    """uint8 [F, H, W, 3] -> unit embedding, by the reference, whose decisions must be safe."""
    preprocess = preprocess_for(small_recipe)
    return lambda frames: safe_embedding(small_recipe, preprocess(frames)[None])[0]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Paths of a short mp4 and a short avi."""
    folder = tmp_path_factory.mktemp("videos")
    for k, suffix in enumerate(("mp4", "avi")):
        render_clip(folder / f"clip.{suffix}", seconds=5, fps=8, size=(80, 64), seed=k)
    return folder / "clip.mp4", folder / "clip.avi"


@pytest.fixture
def frames():
    """uint8 [4, 60, 80, 3]: blurred noise, so that resizing keeps something."""
    rng = np.random.default_rng(21)
    coarse = rng.integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((80, 60), Image.Resampling.BICUBIC)) for c in coarse])


@pytest.fixture(scope="module")
def assert_same(small_recipe, video_rounding, unit_error):
    """Asserts that embeddings have the length 1 and are the same but for rounding, by default that of the small model's
    video tower."""

    def check(expected, found, limits=None):
        limits = limits or video_rounding(small_recipe.backbone)
        assert found.dtype == np.float32 and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=limits.difference)
        length = np.linalg.norm(found.astype(np.float64), axis=-1)
        np.testing.assert_allclose(length, 1, rtol=0, atol=unit_error(found.shape[-1]))

    return check


@pytest.fixture
def score_error(sum_error):
    """How far a similarity may lie from the cosine times exp(4.6052), by the width: the products of two unit vectors
    add up in any order, the exponent is rounded to half of 2^-21, and both the power and the product round once."""
    return lambda width: np.exp(4.6052) * (sum_error(width) + 2**-22 + np.finfo(np.float32).eps)


class TestVideo:
    @pytest.mark.parametrize("which", [0, 1], ids=["mp4", "avi"])
    def test_file(self, model, assert_same, reference, videos, which):
        expected = reference(read_frames(videos[which], 4))
        for path in (videos[which], str(videos[which])):
            found = model.encode_video(path)
            assert found.shape == (32,)
            assert_same(expected, found)

    def test_pictures_arrays_and_tensors(self, model, assert_same, reference, frames):
        expected = reference(frames)
        pictures = [Image.fromarray(frame) for frame in frames]
        for video in (frames, frames.copy(order="F"), torch.from_numpy(frames), pictures, tuple(pictures)):
            found = model.encode_video(video)
            assert found.shape == (32,)
            assert_same(expected, found)

    def test_grey_pictures_are_taken_as_rgb(self, model, assert_same, reference, frames):
        grey = [Image.fromarray(frame).convert("L") for frame in frames]
        assert_same(reference(np.stack([np.asarray(g.convert("RGB")) for g in grey])), model.encode_video(grey))

    def test_a_mixed_list_keeps_its_order(self, model, assert_same, reference, frames, videos):
        """Five videos of four kinds, in two batches of the profile's usual size, three."""
        other = frames[::-1].copy()
        kinds = [
            videos[0],
            frames,
            torch.from_numpy(other),
            [Image.fromarray(frame) for frame in other],
            str(videos[1]),
        ]
        assert model.profile.batch.opt == 3
        found = model.encode_video(kinds)
        assert found.shape == (5, 32)
        pixels = [read_frames(videos[0], 4), frames, other, other, read_frames(videos[1], 4)]
        assert_same(np.stack([reference(p) for p in pixels]), found)
        assert cosine_distance(found[:1], found[1:2]) > 1e-4

    def test_a_list_of_one_stays_a_list(self, model, frames):
        assert model.encode_video([frames]).shape == (1, 32)
        assert model.encode_video((frames,)).shape == (1, 32)

    def test_nothing_gives_nothing(self, model):
        found = model.encode_video([])
        assert found.shape == (0, 32) and found.dtype == np.float32

    def test_frames_of_one_colour(self, model, assert_same, reference):
        for value in (0, 255):
            frames = np.full((4, 50, 50, 3), value, np.uint8)
            assert_same(reference(frames), model.encode_video(frames))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda f: f.astype(np.float32), "dtype float32"),
            (lambda f: f.astype(np.int64), "dtype int64"),
            (lambda f: torch.from_numpy(f).float(), "dtype float32"),
            (lambda f: f[0], r"shape \[60, 80, 3\]"),
            (lambda f: f[None], r"shape \[1, 4, 60, 80, 3\]"),
            (lambda f: f.transpose(0, 3, 1, 2), "transpose"),
            (lambda f: f[..., :2], "RGB"),
            (lambda f: f[:3], "has 3 frames, this bundle takes 4"),
            (lambda f: np.concatenate([f, f]), "has 8 frames, this bundle takes 4"),
            (lambda f: f[:0], r"shape \[0, 60, 80, 3\]"),
            (lambda f: [Image.fromarray(f[0])], "has 1 frames, this bundle takes 4"),
            (lambda f: [f, f[:2]], "has 2 frames"),
            (lambda f: [f, None], "NoneType"),
            (lambda f: [[]], "no frames"),
            (lambda f: None, "found NoneType, expected a path"),
            (lambda f: 3, "found int"),
            (lambda f: {"video": f}, "found dict"),
            (lambda f: (frame for frame in f), "found generator"),
            (lambda f: Image.fromarray(f[0]), "found Image"),
            (lambda f: list(f), r"shape \[60, 80, 3\]"),
        ],
    )
    def test_what_is_no_video(self, model, frames, make, message):
        with pytest.raises(InputError, match=message) as caught:
            model.encode_video(make(frames))
        assert caught.value.exit_code == 3

    def test_files_that_are_none(self, model, tmp_path):
        (tmp_path / "text.mp4").write_text("no video")
        for path in (tmp_path / "missing.mp4", tmp_path, tmp_path / "text.mp4"):
            with pytest.raises(VideoError, match=path.name) as caught:
                model.encode_video(path)
            assert caught.value.exit_code == 3
            with pytest.raises(VideoError):
                model.encode_video([path])


@pytest.fixture(scope="module")
def masked_bundle(small_bundle, small_checkpoint, small_profile, tmp_path_factory):
    """A real bundle with the input `frame_mask`."""
    out = tmp_path_factory.mktemp("masked") / "masked.tempme"
    export.export(small_checkpoint, small_profile, out, frame_mask=True)
    return out


def test_bundle_with_frame_mask(masked_bundle, assert_same, reference, frames):
    with tempme_export.load(masked_bundle) as model:
        assert model.bundle.manifest["frame_mask"] is True
        assert_same(reference(frames), model.encode_video(frames))
    assert [report.status for report in tempme_export.verify(masked_bundle)] == ["passed", "passed"]


class TestWithoutTokenizer:
    def test_texts_are_refused(self, model):
        with pytest.raises(InputError, match=r"names no open_clip backbone.*Run text\.onnx on token ids"):
            model.encode_text(["a dog"])

    def test_similarity_of_embeddings(self, model, frames, score_error):
        rng = np.random.default_rng(8)
        texts = rng.standard_normal((2, 32)).astype(np.float32)
        texts /= np.linalg.norm(texts, axis=1, keepdims=True)
        videos = model.encode_video([frames, frames[::-1].copy(), frames])
        found = model.similarity(texts, videos)
        assert found.shape == (2, 3) and found.dtype == np.float32
        expected = np.exp(4.6052) * (texts.astype(np.float64) @ videos.T)
        np.testing.assert_allclose(found, expected, rtol=0, atol=score_error(32))
        np.testing.assert_allclose(found[:, 0], found[:, 2], rtol=0, atol=2 * score_error(32))
        # The same session and the same shapes, and so the same kernels in the same order.
        np.testing.assert_array_equal(found, model.similarity(texts, [frames, frames[::-1].copy(), frames]))

    def test_one_video_is_one_column(self, model, frames):
        texts = np.eye(32, dtype=np.float32)[:2]
        assert model.similarity(texts, frames).shape == (2, 1)
        assert model.similarity(texts, []).shape == (2, 0)
        assert model.similarity(texts[:0], frames).shape == (0, 1)

    def test_the_best_match_of_itself(self, model, frames, score_error, unit_error):
        videos = model.encode_video([frames, frames[::-1].copy()])
        scores = model.similarity(videos, videos)
        square = np.exp(4.6052) * 2.01 * unit_error(32)  # what a length's error adds to its square
        np.testing.assert_allclose(np.diag(scores), np.exp(4.6052), rtol=0, atol=score_error(32) + square)
        assert scores[0, 1] < scores[0, 0]


WORDED = """
name = "worded"
backbone = "tempme-mini"
frames = 2
text_length = 24

[merge]
image_r = 0
clip_layers = [0]
clip_factors = [2]
cross_percent = 30
intra_percent = 10
size_bias = true
clip_position = true

[shapes]
batch = [1, 2, 4]
"""


@pytest.fixture(scope="module")
def worded(one_thread, tmp_path_factory):
    """A small model with CLIP's whole vocabulary, exported for real, and its recipe."""
    folder = tmp_path_factory.mktemp("worded")
    (folder / "worded.toml").write_text(WORDED)
    profile = load_profile(folder / "worded.toml")
    checkpoint = draw_clip(open_clip_backbone(profile.backbone), 3, profile)
    checkpoint.tensors["logit_scale"] = torch.tensor(4.6052)
    export.export(checkpoint, profile, folder / "worded.tempme")
    return folder / "worded.tempme", prepare(checkpoint, profile)


class TestText:
    TEXTS = ("a dog runs", "Two   CATS sleep!", "a man is playing the guitar on a stage", "dog")

    @pytest.fixture
    def speaking(self, worded):
        with tempme_export.load(worded[0]) as model:
            yield model

    def test_equal_to_the_reference_on_clips_own_tokens(self, speaking, assert_same, worded, text_rounding):
        ids = Tokenizer("ViT-B-32-quickgelu", 24)(list(self.TEXTS))
        assert ids.shape == (4, 24) and ids.max() == 49407
        expected = ReferenceText(worded[1])(torch.from_numpy(ids)).numpy()
        found = speaking.encode_text(list(self.TEXTS))
        assert found.shape == (4, 128)
        assert_same(expected, found, text_rounding(worded[1].backbone))
        assert cosine_distance(found[:1], found[1:2]) > 1e-4

    def test_nothing_gives_nothing(self, speaking):
        found = speaking.encode_text([])
        assert found.shape == (0, 128) and found.dtype == np.float32
        assert speaking.similarity([], []).shape == (0, 0)

    def test_a_long_text_is_cut_aloud(self, speaking, worded, text_rounding):
        with pytest.warns(TextTruncatedWarning, match="text 1 lost"):
            found = speaking.encode_text(["short", "word " * 60])
        with pytest.warns(TextTruncatedWarning):
            longer = speaking.encode_text(["word " * 90])
        limit = text_rounding(worded[1].backbone).difference  # two texts in one batch, and one alone
        np.testing.assert_allclose(found[1:], longer, rtol=0, atol=limit)

    def test_short_texts_are_not_warned_about(self, speaking):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            speaking.encode_text(["a dog"])

    @pytest.mark.parametrize("texts", ["a dog", None, [3], [""], ["fine", "  "]])
    def test_what_is_no_list_of_texts(self, speaking, texts):
        with pytest.raises(InputError):
            speaking.encode_text(texts)

    def test_similarity_from_words_and_pixels(self, speaking, frames, score_error):
        videos = [frames[:2], frames[2:], frames[1:3]]
        found = speaking.similarity(list(self.TEXTS), videos)
        t, v = speaking.encode_text(list(self.TEXTS)), speaking.encode_video(videos)
        assert speaking.bundle.manifest["logit_scale"] == pytest.approx(4.6052, abs=2**-22)
        cosine = (t[:, None].astype(np.float64) * v[None]).sum(-1)
        assert found.shape == (4, 3)
        np.testing.assert_allclose(found, np.exp(4.6052) * cosine, rtol=0, atol=score_error(128))


class TestLoad:
    def test_takes_a_path_and_an_open_bundle(self, small_bundle, frames):
        expected = None
        for source in (small_bundle, str(small_bundle), open_bundle(small_bundle)):
            with tempme_export.load(source, backend="ort", device="cpu") as model:
                assert isinstance(model, RetrievalModel) and isinstance(model.bundle, Bundle)
                found = model.encode_video(frames)
                expected = found if expected is None else expected
                np.testing.assert_array_equal(found, expected)  # one file, one shape: one order of additions

    def test_unknown_backend(self, small_bundle):
        with pytest.raises(BackendError, match="backend: found 'tensorflow', expected one of ort") as caught:
            tempme_export.load(small_bundle, backend="tensorflow")
        assert caught.value.exit_code == 4

    def test_no_bundle(self, tmp_path):
        with pytest.raises(BundleError, match="does not exist"):
            tempme_export.load(tmp_path / "missing.tempme")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
    @pytest.mark.parametrize("device", ["cuda", "cuda:1", "tpu"])
    def test_missing_device_is_told_at_once(self, small_bundle, device):
        with pytest.raises(BackendError, match=device.split(":")[0]) as caught:
            tempme_export.load(small_bundle, device=device)
        assert caught.value.exit_code == 4

    def test_close_frees_the_sessions_and_can_be_repeated(self, small_bundle, frames):
        model = tempme_export.load(small_bundle)
        sessions = [weakref.ref(model._runner(name).opened()) for name in ("video", "text")]
        with model as entered:
            assert entered is model
            model.encode_video(frames)
            assert all(session() is not None for session in sessions)
        assert all(session() is None for session in sessions)
        model.close()
        assert model.encode_video(frames).shape == (32,), "opened again at the next use"
        model.close()

    def test_sessions_are_opened_once(self, small_bundle, frames):
        with tempme_export.load(small_bundle) as model:
            model.encode_video(frames)
            first = model._runner("video")
            model.encode_video([frames] * 4)
            assert model._runner("video") is first


def test_two_models_at_once(small_bundle, frames):
    with tempme_export.load(small_bundle) as one, tempme_export.load(small_bundle) as two:
        np.testing.assert_array_equal(one.encode_video(frames), two.encode_video(frames))


def test_profile_of_the_model_is_the_bundles(model, small_profile):
    assert model.profile == load_profile(small_profile)
    assert dataclasses.asdict(model.preprocess)["size"] == 48
