"""Int8 files, run: bitwise the same whoever else is in the batch, close to what they stand for, and small."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch

from tempme_export.data.synthetic import all_scenes
from tempme_export.encoder.model import TextEncoder, VideoEncoder
from tempme_export.exporters import onnx as to_onnx
from tempme_export.exporters.onnx import check_graph
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.tokenizer import Tokenizer
from tempme_export.parity.checks import centred_cosine
from tempme_export.parity.selftest import draw_token_ids
from tempme_export.quantization import export
from tempme_export.quantization.products import products
from tempme_export.quantization.qdq import find_products
from tempme_export.runtime.openvino import OpenVinoRunner
from tempme_export.runtime.ort import OrtRunner

BATCHES = (2, 3, 5, 7)


def normalised(recipe, clips):
    return np.stack([preprocess_for(recipe)(clip) for clip in clips])


def assert_alone_as_in_company(runner, output, **inputs):
    """Each row alone, and in batches of each size at every position, bit for bit."""
    count = len(next(iter(inputs.values())))

    def run(rows):
        return runner.infer({name: array[rows] for name, array in inputs.items()})[output]

    alone = np.concatenate([run([row]) for row in range(count)])
    assert len(np.unique(alone, axis=0)) > 3, "the rows are not one embedding"
    for batch in BATCHES:
        for shift in range(count):
            rows = (np.arange(batch) + shift) % count
            np.testing.assert_array_equal(run(rows), alone[rows], err_msg=f"batch {batch}, from row {shift}")


@pytest.mark.parametrize("threads", [1, 2])
class TestBatches:
    def test_videos(self, mini_video, mini_recipe, all_kinds, threads):
        with OrtRunner(mini_video.path, threads=threads) as runner:
            assert_alone_as_in_company(runner, "video_embedding", frames=all_kinds(mini_recipe))

    def test_scenes(self, mini_video, mini_recipe, scenes, threads):
        with OrtRunner(mini_video.path, threads=threads) as runner:
            frames = normalised(mini_recipe, scenes(7, 50))
            assert_alone_as_in_company(runner, "video_embedding", frames=frames)

    def test_texts(self, mini_text, mini_recipe, threads):
        with OrtRunner(mini_text.path, threads=threads) as runner:
            assert_alone_as_in_company(runner, "text_embedding", token_ids=draw_token_ids(mini_recipe, 5))


def test_products_compute_what_the_rounded_numbers_give(mini_video, mini_recipe, all_kinds, step_error):
    """Each product by itself, from what the graph gives it: no difference can hide behind an earlier one."""
    tower = mini_video.tower
    outputs = {name: node.output[0] for name, node in find_products(mini_video.proto(), tower.module).items()}
    nodes = {node.output[0]: node for node in onnx.load(mini_video.path).graph.node}
    given = {}
    for name in set(outputs) - set(tower.in_float):
        behind = nodes[nodes[outputs[name]].input[0]].input[0]  # MatMul <- DequantizeLinear <- QuantizeLinear
        given[name] = (nodes[behind].input[0], behind)
    assert len(given) >= 15
    frames = all_kinds(mini_recipe)[[0, 3]]
    model = onnx.load(mini_video.path)
    extra_outputs = sorted({one for pair in given.values() for one in pair} | {outputs[name] for name in given})
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra_outputs)
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = dict(zip(extra_outputs, session.run(extra_outputs, {"frames": frames}), strict=True))
    for name, (x, steps) in given.items():
        chosen, module = tower.ranges[name], products(tower.module)[name]
        back = (values[steps].astype(np.float64) - chosen.zero_point) * chosen.scale
        rounded = chosen.rounded(torch.from_numpy(values[x])).numpy()
        different = np.abs(back - rounded) > 0.1 * chosen.scale
        assert different.mean() < 1e-3 and np.abs(back - rounded).max() < 1.1 * chosen.scale, name
        expected = back @ module.weight.double().numpy().T
        found = values[outputs[name]]
        sizes = np.abs(back) @ np.abs(module.weight.double().numpy().T)  # of at most 768 terms
        assert (np.abs(found - expected) <= step_error(torch.float32) * sizes).all(), name
    x, steps = given["conv1.linear"]
    pixels = np.sort(np.unique(values[steps]))
    # Lossless: half a dozen roundings of numbers of at most 1 on the way there and back.
    np.testing.assert_allclose(values[x], values[steps] / 255.0, rtol=0, atol=6 * 2**-24)
    assert len(pixels) > 100


@pytest.mark.parametrize("name", ["proj", "blocks.1.attn.out_proj"])
def test_a_product_in_float_keeps_rows_apart(mini, mini_recipe, all_kinds, tmp_path, name):
    tower = dataclasses.replace(mini.video, in_float=(name,))
    export.export_video(mini_recipe, tower, tmp_path / "video.onnx")
    with OrtRunner(tmp_path / "video.onnx", threads=2) as runner:
        assert_alone_as_in_company(runner, "video_embedding", frames=all_kinds(mini_recipe))


def test_the_graph_gives_what_the_fake_quantised_tower_gives(mini_video, mini_recipe, scenes, fake_quantised):
    tower, frames = mini_video.tower, normalised(mini_recipe, scenes(8, 50))
    expected = fake_quantised(tower.module, tower.ranges, tower.in_float, torch.from_numpy(frames)).numpy()
    with OrtRunner(mini_video.path, threads=1) as runner:
        found = runner.infer({"frames": frames})["video_embedding"]
    losses = 1 - (expected * found).sum(-1)
    assert np.median(losses) < 1e-4 and losses.max() < 2e-2, "a near tie may turn, and no more"


def test_texts_are_what_the_fake_quantised_tower_gives(mini_text, mini_recipe, fake_quantised):
    tower, ids = mini_text.tower, draw_token_ids(mini_recipe, 5)
    expected = fake_quantised(tower.module, tower.ranges, tower.in_float, torch.from_numpy(ids)).numpy()
    with OrtRunner(mini_text.path, threads=1) as runner:
        found = runner.infer({"token_ids": ids})["text_embedding"]
    assert (1 - (expected * found).sum(-1)).max() < 1e-3


@torch.inference_mode()
def test_retrieval_survives(mini_video, mini_text, mini_recipe, scenes):
    """The trained model on scenes that no calibration saw: every embedding, every query's ten best, every hit."""
    count, every = 40, all_scenes()
    frames = normalised(mini_recipe, scenes(count, 90))
    captions = [every[(37 * i + 90) % len(every)].caption for i in range(count)]
    ids = Tokenizer(mini_recipe.profile.backbone, mini_recipe.profile.text_length)(captions)
    video = VideoEncoder(mini_recipe).eval()(torch.from_numpy(frames)).numpy()
    text = TextEncoder(mini_recipe).eval()(torch.from_numpy(ids)).numpy()
    with OrtRunner(mini_video.path, threads=1) as runner:
        videos = np.concatenate([runner.infer({"frames": part})["video_embedding"] for part in np.split(frames, 5)])
    with OrtRunner(mini_text.path, threads=1) as runner:
        texts = runner.infer({"token_ids": ids})["text_embedding"]
    assert centred_cosine(video, videos) >= 0.99 and centred_cosine(text, texts) >= 0.99

    def ranks(queries, candidates):
        return np.argsort(-queries @ candidates.T, axis=1)

    for original, rounded in ((ranks(text, video), ranks(texts, videos)), (ranks(video, text), ranks(videos, texts))):
        hits = [(order[:, 0] == np.arange(count)).sum() for order in (original, rounded)]
        assert hits[0] == count, "the model has learned its world"
        assert hits[1] >= count - 1
        pairs = zip(original[:, :10], rounded[:, :10], strict=True)
        assert np.mean([len(np.intersect1d(*pair)) for pair in pairs]) >= 9.5


@pytest.mark.parametrize("threads", [1, 2])
def test_openvino_keeps_rows_apart(mini_video, mini_recipe, all_kinds, threads):
    pytest.importorskip("openvino")
    with OpenVinoRunner(mini_video.path, threads=threads) as runner:
        assert_alone_as_in_company(runner, "video_embedding", frames=all_kinds(mini_recipe))


def test_openvino_agrees(mini_video, mini_text, mini_recipe, scenes):
    pytest.importorskip("openvino")
    frames, ids = normalised(mini_recipe, scenes(8, 50)), draw_token_ids(mini_recipe, 5)
    for path, inputs in ((mini_video.path, {"frames": frames}), (mini_text.path, {"token_ids": ids})):
        with OrtRunner(path, threads=1) as ort, OpenVinoRunner(path, threads=1) as openvino:
            (expected,), (found,) = ort.infer(inputs).values(), openvino.infer(inputs).values()
            assert np.median(1 - (expected * found).sum(-1)) < 1e-3
            assert centred_cosine(expected, found) > 0.97


def test_merges_can_be_exposed(mini_video, mini_recipe, all_kinds, check_assign):
    merges, blocks = mini_recipe.schedule.merges, mini_recipe.schedule.blocks
    names = [name for merge in merges for name in (merge.assign_name, merge.tokens_name)]
    frames = all_kinds(mini_recipe)[:3]
    with OrtRunner(mini_video.path, threads=1, extra_outputs=names) as runner:
        found = runner.infer({"frames": frames})
    for merge in merges:
        assign, tokens = found[merge.assign_name], found[merge.tokens_name]
        assert assign.dtype == np.int32 and len(assign) == len(tokens) == 3 * blocks[merge.block].clips
        assert int(assign.max()) + 1 == tokens.shape[1] < assign.shape[1]


def test_video_file_is_small(mini_video):
    """Beside the float32 graph of the same tower."""
    assert mini_video.tower.in_float == ()
    assert mini_video.path.stat().st_size <= 0.35 * len(mini_video.floats)


def test_text_file_is_small(mini_text, mini_recipe, tmp_path):
    to_onnx.export_text(mini_recipe, tmp_path / "text.onnx")
    assert mini_text.path.stat().st_size <= 0.35 * (tmp_path / "text.onnx").stat().st_size


@pytest.mark.parametrize("name", ["mini_video", "mini_text"])
def test_graph_is_plain(name, request):
    proto = onnx.load(request.getfixturevalue(name).path)
    check_graph(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert "Log" not in {node.op_type for node in proto.graph.node}
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata["tempme.precision"] == '"int8"'
    assert [value.name for value in proto.graph.output] == [name.replace("mini_", "") + "_embedding"]


def test_frame_mask_trace_and_outliers(planted_recipe, planted, all_kinds, tmp_path):
    """Through the exporter itself, with everything that can be asked for."""
    path = tmp_path / "video.onnx"
    export.export_video(planted_recipe, planted.video, path, 20, frame_mask=True, expose_merges=True)
    frames = all_kinds(planted_recipe)
    mask = np.ones(frames.shape[:2], np.bool_)
    mask[0, 2:], mask[4] = False, False
    with OrtRunner(path, threads=1) as runner:
        found = runner.infer({"frames": frames, "frame_mask": mask})
        assert_alone_as_in_company(runner, "video_embedding", frames=frames, frame_mask=mask)
    merges = planted_recipe.schedule.merges
    assert list(found) == ["video_embedding", *(merge.assign_name for merge in merges)]
    assert not found["video_embedding"][4].any(), "no frame of it counts"
    with torch.inference_mode():
        expected = VideoEncoder(planted_recipe).eval()(torch.from_numpy(frames), torch.from_numpy(mask)).numpy()
    moving = [0, 2, 5, 6]
    assert centred_cosine(expected[moving], found["video_embedding"][moving]) > 0.9
    assert {entry.version for entry in onnx.load(path).opset_import if entry.domain == ""} == {20}
