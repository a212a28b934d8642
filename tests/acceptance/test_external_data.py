"""A graph that one protobuf message cannot hold: its weights lie beside it, and every door of a bundle knows."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import ExternalDataInfo

import tempme_export
from tempme_export.errors import BundleError

LIMIT = 200_000  # bytes; both towers of the small model take more
GRAPHS = ("video.onnx", "text.onnx")
PLAIN = """
import sys
import numpy as np
import onnxruntime
video = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
text = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
given = np.load(sys.argv[3])
np.savez(
    sys.argv[4],
    video=video.run(["video_embedding"], {"frames": given["frames"]})[0],
    text=text.run(["text_embedding"], {"token_ids": given["token_ids"]})[0],
)
"""


@pytest.fixture(scope="module")
def divided(mini, tmp_path_factory):
    """`mini` as a bundle of graphs whose weights lie beside them. Copy it before changing it."""
    out = tmp_path_factory.mktemp("divided") / "mini.tempme"
    return tempme_export.export(mini, out=out, batch=(1, 2, 3), largest_file=LIMIT).path


@pytest.fixture
def copy(divided, tmp_path):
    """A copy of the bundle to damage."""
    return shutil.copytree(divided, tmp_path / "copy.tempme")


@pytest.fixture(scope="module")
def expected(mini_bundle, safe_clips):
    """What the bundle of whole files makes of the clips and of a text."""
    with tempme_export.load(mini_bundle) as model:
        return model.encode_video(list(safe_clips)), model.encode_text(["a red ball"])


def places(graph):
    """What a graph says of its weights outside."""
    proto = onnx.load(graph, load_external_data=False)
    outside = [one for one in proto.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    return [ExternalDataInfo(one) for one in outside]


def run_plainly(folder, video, text, clips, mini_bundle):
    """Run two files with onnxruntime alone, in another process and folder; both embeddings."""
    from tempme_export.media.preprocess import preprocess_in
    from tempme_export.media.tokenizer import Tokenizer

    manifest = json.loads((mini_bundle / "manifest.json").read_bytes())
    profile, preprocess = manifest["profile"], preprocess_in(manifest)
    token_ids = Tokenizer(profile["backbone"], profile["text_length"])(["a red ball"])
    np.savez(folder / "given.npz", frames=np.stack([preprocess(clip) for clip in clips]), token_ids=token_ids)
    command = [sys.executable, "-I", "-c", PLAIN, video, text, folder / "given.npz", folder / "found.npz"]
    subprocess.run(command, check=True, cwd="/", timeout=300)
    with np.load(folder / "found.npz") as found:
        return found["video"], found["text"]


@pytest.fixture(scope="module")
def assert_equal(mini_rounding):
    """Asserts that (video, text) are what they should be, but for rounding: a runtime may choose other kernels for
    weights that it finds elsewhere."""

    def check(found, expected):
        for one, other, tower in zip(found, expected, ("video", "text"), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=mini_rounding[tower].difference)

    return check


class TestWhole:
    def test_the_manifest_accounts_for_both_files(self, divided):
        files = json.loads((divided / "manifest.json").read_bytes())["files"]
        weights = ["text.onnx", "text.onnx.data", "video.onnx", "video.onnx.data"]
        assert sorted(files) == sorted(["selftest.npz", "tokenizer.json", *weights])
        for name in GRAPHS:
            assert files[name]["bytes"] < 500_000 and files[f"{name}.data"]["bytes"] > LIMIT

    @pytest.mark.parametrize("name", GRAPHS)
    def test_places_can_be_mapped_into_memory(self, divided, name):
        found = sorted(places(divided / name), key=lambda place: place.offset)
        assert {place.location for place in found} == {f"{name}.data"}
        assert all(place.offset % 65536 == 0 for place in found)
        ends = [place.offset + place.length for place in found]
        assert all(end <= place.offset for end, place in zip(ends, found[1:], strict=False)), "none overlap"
        assert ends[-1] == (divided / f"{name}.data").stat().st_size

    def test_a_graph_below_the_limit_is_one_file(self, mini_bundle):
        assert not list(mini_bundle.glob("*.data")) and not places(mini_bundle / "video.onnx")

    def test_verify(self, run, divided):
        done = run("tempme-export", "verify", divided)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("FAIL") == 0 and "6 files" in done.stderr

    def test_load(self, divided, safe_clips, expected, assert_equal):
        with tempme_export.load(divided) as model:
            assert_equal((model.encode_video(list(safe_clips)), model.encode_text(["a red ball"])), expected)

    def test_load_from_another_folder(self, divided, safe_clips, expected, assert_equal, monkeypatch):
        monkeypatch.chdir(divided.parent)
        with tempme_export.load(divided.name) as model:
            assert_equal((model.encode_video(list(safe_clips)), model.encode_text(["a red ball"])), expected)

    def test_onnxruntime_alone(self, copy, safe_clips, expected, assert_equal, mini_bundle, tmp_path):
        found = run_plainly(tmp_path, copy / "video.onnx", copy / "text.onnx", safe_clips, mini_bundle)
        assert_equal(found, expected)

    def test_openvino_alone(self, copy, mini_rounding):
        openvino = pytest.importorskip("openvino")
        with np.load(copy / "selftest.npz") as stored:
            token_ids, embeddings = stored["token_ids"], stored["text_embedding"]
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(str(copy / "text.onnx"), "CPU", settings)
        np.testing.assert_allclose(compiled(token_ids)[0], embeddings, rtol=0, atol=mini_rounding["text"].difference)

    def test_a_server_gets_both_files(self, run, divided, safe_clips, expected, assert_equal, mini_bundle, tmp_path):
        repository = tmp_path / "models"
        done = run("tempme-export", "triton-repo", divided, repository, "--json")
        assert done.returncode == 0, done.stderr
        written = {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}
        assert {"video/1/model.onnx", "video/1/video.onnx.data", "text/1/model.onnx", "text/1/text.onnx.data"} < written
        listed = {path.removeprefix(f"{repository}/") for path in json.loads(done.stdout)["repository"]}
        assert listed == written
        video, text = (repository / name / "1" / "model.onnx" for name in ("video", "text"))
        assert_equal(run_plainly(tmp_path, video, text, safe_clips, mini_bundle), expected)


def remove(data):
    data.unlink()


def cut(data):
    data.write_bytes(data.read_bytes()[:-70_000])


def empty(data):
    data.write_bytes(b"")


def change(data):
    content = bytearray(data.read_bytes())
    content[1000] ^= 0x40
    data.write_bytes(content)


def link_outside(data):
    outside = data.parent.with_name("outside.data")
    data.rename(outside)
    data.symlink_to(outside)


def make_a_folder(data):
    data.unlink()
    data.mkdir()


def point_elsewhere(location):
    def point(data):
        shutil.copyfile(data, data.parent.with_name("outside.data"))
        graph = data.with_suffix("")
        proto = onnx.load(graph, load_external_data=False)
        for one in proto.graph.initializer:
            for entry in one.external_data:
                if entry.key == "location":
                    entry.value = location.format(data.parent.parent)
        graph.write_bytes(proto.SerializeToString())

    return point


UNREADABLE = {
    "missing": remove,
    "cut": cut,
    "empty": empty,
    "linked": link_outside,
    "folder": make_a_folder,
    "above": point_elsewhere("../outside.data"),
    "absolute": point_elsewhere("{}/outside.data"),
}


class TestDamaged:
    @pytest.mark.parametrize("damage", [*UNREADABLE.values(), change], ids=[*UNREADABLE, "changed"])
    @pytest.mark.parametrize("name", GRAPHS)
    def test_verify(self, copy, damage, name):
        damage(copy / f"{name}.data")
        with pytest.raises(BundleError, match=rf"{name}.*\. Export the bundle again\.$"):
            tempme_export.verify(copy)

    @pytest.mark.parametrize("damage", UNREADABLE.values(), ids=UNREADABLE)
    def test_load(self, copy, damage):
        damage(copy / "text.onnx.data")

        def use():
            with tempme_export.load(copy) as model:
                model.encode_text(["a red ball"])

        with pytest.raises(BundleError, match=r"text\.onnx"):
            use()

    def test_a_command_says_so_in_one_sentence(self, run, copy):
        change(copy / "video.onnx.data")
        done = run("tempme-export", "verify", copy)
        assert done.returncode == 3
        assert f"{copy}: video.onnx.data was changed. Export the bundle again." in " ".join(done.stderr.split())
