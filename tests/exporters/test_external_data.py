"""Weights beside a graph: what goes out, what stays, and that the graph computes what it did."""

import numpy as np
import onnx
import pytest
import torch

from tempme_export.artifacts.graph_files import data_path, graph_bytes, graph_files
from tempme_export.artifacts.registry import PLUGIN_ONNX
from tempme_export.encoder.backbone import Backbone
from tempme_export.encoder.checkpoint import from_state_dict
from tempme_export.encoder.profile import FROM_CHECKPOINT, BatchRange, Profile
from tempme_export.encoder.recipe import Recipe, prepare
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.exporters.external_data import message_of
from tempme_export.exporters.onnx import export_text, export_video
from tempme_export.exporters.plugin_onnx import export_plugin_video
from tempme_export.media.preprocess import preprocess_for
from tempme_export.parity.checks import check_text, check_video
from tempme_export.parity.making import make_selftest
from tempme_export.parity.tolerance import TOLERANCES
from tempme_export.pipeline.drafts import write_draft
from tempme_export.pipeline.spec import ExportSpec
from tempme_export.quantization import export as int8
from tempme_export.quantization.towers import prepare_text
from tempme_export.runtime.engine_facts import SOURCE
from tempme_export.runtime.openvino import OpenVinoRunner
from tempme_export.runtime.ort import OrtRunner

LIMIT = 400_000  # bytes; more than the graphs without their weights, less than with them


@pytest.fixture(scope="module")
def recipe(checkpoint_maker):
    """One block each, four frames of 48 pixels, joined two by two; text of 8 tokens."""
    settings = checkpoint_maker.settings(
        "tiny", image=48, layers=1, text_layers=1, merge_layer="0", merge_frame_num="2", max_frames=4
    )
    state = checkpoint_maker.make_state_dict(settings, seed=7)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    profile = Profile("small", FROM_CHECKPOINT, 4, 8, MergePolicy(1, (0,), (2,), 30, 10), BatchRange(1, 3, 6))
    return prepare(from_state_dict(tensors, source="small"), profile)


@pytest.fixture(scope="module")
def selftest(recipe):
    return make_selftest(recipe)


def outside(graph):
    """Names of the weights that a graph does not hold."""
    weights = onnx.load(graph, load_external_data=False).graph.initializer
    return {one.name for one in weights if one.data_location == onnx.TensorProto.EXTERNAL}


def whole(graph):
    """Every constant of a graph, wherever it lies."""
    return {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(graph).graph.initializer}


def nodes(graph):
    """Every operation of a graph, in order."""
    return [one.SerializeToString(deterministic=True) for one in onnx.load(graph, load_external_data=False).graph.node]


def assert_passed(checks):
    assert checks and all(check.passed for check in checks), checks


@pytest.mark.parametrize("export", [export_video, export_plugin_video], ids=["onnx", "plugin"])
def test_a_video_tower(recipe, selftest, tmp_path, export):
    export(recipe, tmp_path / "one.onnx")
    export(recipe, tmp_path / "two.onnx", largest_file=LIMIT)
    assert graph_files(tmp_path / "one.onnx") == (tmp_path / "one.onnx",)
    assert graph_files(tmp_path / "two.onnx") == (tmp_path / "two.onnx", tmp_path / "two.onnx.data")
    assert (tmp_path / "two.onnx").stat().st_size < LIMIT < graph_bytes(tmp_path / "two.onnx")
    one, two = whole(tmp_path / "one.onnx"), whole(tmp_path / "two.onnx")
    assert list(one) == list(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert outside(tmp_path / "two.onnx") == {name for name, value in two.items() if value.nbytes >= 2**16}
    # What a judge looks at, through a graph with further outputs.
    names = [name for merge in recipe.schedule.merges for name in (merge.assign_name, merge.tokens_name)]
    with OrtRunner(tmp_path / "two.onnx", threads=1, extra_outputs=names) as with_merges:
        assert_passed(check_video(selftest, recipe.schedule, preprocess_for(recipe), with_merges, TOLERANCES["fp32"]))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("runner", [OrtRunner, OpenVinoRunner], ids=["ort", "openvino"])
def test_a_text_tower(recipe, selftest, tmp_path, runner, precision):
    export_text(recipe, tmp_path / "text.onnx", precision, largest_file=LIMIT)
    assert outside(tmp_path / "text.onnx")
    with runner(tmp_path / "text.onnx", threads=1) as opened:
        assert_passed(check_text(selftest, opened, TOLERANCES[precision]))


def test_an_int8_tower(recipe, tmp_path, unit_error):
    """Its products are found by their weights, so that these leave the graph last: what is computed is the same node by
    node and weight by weight. What a runtime makes of it may differ in a float's last bit, which turns a step of 8."""
    calls = torch.randint(1, 100, (3, 2, 8), generator=torch.Generator().manual_seed(5))
    tower = prepare_text(recipe, list(calls))
    int8.export_text(recipe, tower, tmp_path / "one.onnx")
    int8.export_text(recipe, tower, tmp_path / "two.onnx", largest_file=30_000)
    assert graph_files(tmp_path / "one.onnx") == (tmp_path / "one.onnx",) and outside(tmp_path / "two.onnx")
    one, two = whole(tmp_path / "one.onnx"), whole(tmp_path / "two.onnx")
    assert list(one) == list(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert nodes(tmp_path / "one.onnx") == nodes(tmp_path / "two.onnx")
    with OrtRunner(tmp_path / "two.onnx", threads=1) as runner:
        embedding = runner.infer({"token_ids": calls[0].numpy()})["text_embedding"].astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=-1), 1, rtol=0, atol=unit_error(embedding.shape[-1]))


def test_the_limit_itself_still_fits(tmp_path):
    """With one byte less the weights go out, although alone they would fit."""
    weight = onnx.numpy_helper.from_array(np.arange(2**15, dtype=np.float32), "w")
    value = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2**15])
    graph = onnx.helper.make_graph([], "g", [], [value], [weight])
    proto = onnx.helper.make_model(graph)
    size, path = proto.ByteSize(), tmp_path / "g.onnx"
    assert message_of(proto, path, size) == proto.SerializeToString() and not data_path(path).exists()
    path.write_bytes(message_of(proto, path, size - 1))
    assert outside(path) == {"w"} and data_path(path).stat().st_size == 4 * 2**15
    np.testing.assert_array_equal(whole(path)["w"], np.arange(2**15, dtype=np.float32))


def test_what_will_be_written(recipe):
    assert ExportSpec("", options=frozenset({"trt"})).files(recipe) == [
        *("selftest.npz", "video.onnx", "text.onnx", "video.plugin.onnx", "video.plan"),
    ]
    assert ExportSpec("", options=frozenset({"trt"}), largest_file=LIMIT).files(recipe) == [
        *("selftest.npz", "video.onnx", "video.onnx.data", "text.onnx", "text.onnx.data"),
        *("video.plugin.onnx", "video.plugin.onnx.data", "video.plan"),
    ]


def test_a_graph_for_another_machine(recipe, tmp_path):
    """A dry run writes it under the bundle's name, by which it finds its weights."""
    path = tmp_path / "clip.video.plugin.onnx"
    assert write_draft(PLUGIN_ONNX, recipe, ExportSpec("", largest_file=LIMIT), path) == (path, data_path(path))
    assert sorted(one.name for one in tmp_path.iterdir()) == [path.name, f"{path.name}.data"]
    with OrtRunner(path, threads=1) as runner:
        assert "frames" in runner.inputs
    assert write_draft(PLUGIN_ONNX, recipe, ExportSpec(""), path) == (path,)
    assert [one.name for one in tmp_path.iterdir()] == [path.name], "the old weights are gone"


def test_room_for_an_engine_counts_the_weights(tmp_path):
    (tmp_path / SOURCE).write_bytes(bytes(1000))
    data_path(tmp_path / SOURCE).write_bytes(bytes(50_000))
    assert graph_bytes(tmp_path / SOURCE) == 51_000


class TestHeads:
    """ViT-H, which is what needs all this, has heads of 80 channels."""

    @pytest.fixture(scope="class")
    def open_clip_model(self):
        """The vision tower of a small CLIP with two such heads, as open_clip builds it."""
        from open_clip.model import CLIP

        torch.manual_seed(5)
        vision = {"image_size": 48, "layers": 2, "width": 160, "head_width": 80, "patch_size": 16}
        text = {"context_length": 8, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1}
        return CLIP(32, vision, text, quick_gelu=True).eval()

    def test_a_named_backbone(self, open_clip_model, video_rounding, tmp_path):
        checkpoint = from_state_dict(open_clip_model.state_dict(), source="small")
        backbone = Backbone("small", 48, 16, 160, 2, 2, 32, 64, 1, 1, 8, 100)
        profile = Profile(
            "small", FROM_CHECKPOINT, 1, 8, MergePolicy(0, (), (), 0, 0, False, False), BatchRange(1, 1, 1)
        )
        export_video(Recipe(checkpoint, profile, backbone, profile.schedule(backbone)), tmp_path / "video.onnx")
        frames = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            expected = open_clip_model.encode_image(frames, normalize=True).numpy()
        with OrtRunner(tmp_path / "video.onnx", threads=1) as runner:
            found = runner.infer({"frames": frames[:, None].numpy()})["video_embedding"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=video_rounding(backbone).difference)
