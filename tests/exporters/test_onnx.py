"""The exported graphs: what they hold, and what three independent runtimes compute with them."""

import dataclasses
import functools
import json
import logging
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tempme_export.encoder.model import TextEncoder, VideoEncoder
from tempme_export.encoder.profile import FROM_CHECKPOINT, BatchRange, Profile
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.reference import MergeLog, ReferenceText, ReferenceVideo
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.errors import ExportError
from tempme_export.exporters import onnx as to_onnx
from tempme_export.exporters.common import DTYPES
from tempme_export.exporters.onnx import check_graph, export_text, export_video
from tempme_export.media.preprocess import preprocess_for
from tempme_export.parity.checks import cosine_distance, embedding_checks
from tempme_export.parity.making import make_selftest
from tempme_export.parity.selftest import CLIPS, SAFE_GAP, draw_token_ids
from tempme_export.parity.tolerance import TOLERANCES

ENGINES = ("ort", "reference", "openvino")
SHAPE_OPERATORS = ("Shape", "Size", "Range", "Scatter", "Expand", "NonZero", "ConstantOfShape", "Tile", "GatherND")
CONTROL_OPERATORS = ("If", "Loop", "Scan", "SequenceAt", "Unique", "Compress", "Random", "Dropout", "TopK")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One small model and how it is exported."""

    frames: int = 4
    layers: int = 2
    clip_layers: tuple[int, ...] = (1,)
    clip_factors: tuple[int, ...] = (2,)
    image_r: int = 1
    cross_percent: int = 30
    size_bias: bool = True
    clip_position: bool = True
    activation: str = "quickgelu"
    precision: str = "fp32"
    opset: int = 18
    frame_mask: bool = False

    def merge(self):
        return MergePolicy(
            self.image_r,
            self.clip_layers,
            self.clip_factors,
            self.cross_percent,
            10,
            size_bias=self.size_bias,
            clip_position=self.clip_position,
        )


BASE = Variant(layers=3, clip_layers=(1, 2), clip_factors=(2, 2))
MASKED = Variant(frames=6, clip_factors=(3,), frame_mask=True)  # an odd number of class tokens, two clips at the end
VARIANTS = {
    "base": BASE,
    "opset-20": Variant(opset=20),
    "opset-23": Variant(opset=23),
    "gelu": Variant(opset=20, activation="gelu"),
    "frame-mask": MASKED,
    "none": Variant(frames=2, clip_layers=(), clip_factors=(), image_r=0, clip_position=False),
    "tome": Variant(frames=2, clip_layers=(), clip_factors=(), clip_position=False),
    "joined-unmerged": Variant(cross_percent=0),
    "without-size-and-position": Variant(size_bias=False, clip_position=False),
}
LOW = {precision: Variant(precision=precision) for precision in ("fp16", "bf16")}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Operators this small wait longer for a second thread than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recipe_of(checkpoint_maker):
    """Variant -> Recipe with weights drawn from seed 7."""
    from tempme_export.encoder.checkpoint import from_state_dict

    @functools.cache
    def make(variant):
        settings = checkpoint_maker.settings(
            "tiny",
            image=48,
            layers=variant.layers,
            merge_layer="-".join(map(str, variant.clip_layers or (0,))),
            merge_frame_num="-".join(map(str, variant.clip_factors or (1,))),
            frame_pos=int(variant.clip_position),
            max_frames=variant.frames,
        )
        state = checkpoint_maker.make_state_dict(settings, seed=7)
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
        profile = Profile("small", FROM_CHECKPOINT, variant.frames, 8, variant.merge(), BatchRange(1, 3, 8))
        recipe = prepare(from_state_dict(tensors, source="small"), profile)
        backbone = dataclasses.replace(recipe.backbone, activation=variant.activation)
        return dataclasses.replace(recipe, backbone=backbone)

    return make


@pytest.fixture(scope="module")
def video_file(recipe_of, tmp_path_factory):
    """Variant -> path of its exported video tower, exported once."""

    @functools.cache
    def export(variant):
        path = tmp_path_factory.mktemp("video") / "video.onnx"
        export_video(recipe_of(variant), path, variant.precision, variant.opset, variant.frame_mask)
        return path

    return export


@pytest.fixture(scope="module")
def text_file(recipe_of, tmp_path_factory):
    """Variant -> path of its exported text tower, exported once."""

    @functools.cache
    def export(variant):
        path = tmp_path_factory.mktemp("text") / "text.onnx"
        export_text(recipe_of(variant), path, variant.precision, variant.opset)
        return path

    return export


@pytest.fixture(scope="module")
def clips_of(recipe_of):
    """Variant -> float32 frames of the self-test's six clips, ties among them."""

    @functools.cache
    def make(variant):
        recipe = recipe_of(variant)
        preprocess = preprocess_for(recipe)
        return np.stack([preprocess(clip) for clip in make_selftest(recipe, seed=5).clips])

    return make


def run_ort(path, inputs, names):
    proto = onnx.load(path)
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, inputs), strict=True))


def run_reference(path, inputs, names):
    return dict(zip(names, ReferenceEvaluator(str(path)).run(names, inputs), strict=True))


def run_openvino(path, inputs, names):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    model = core.read_model(str(path))
    outputs = {name for output in model.outputs for name in output.names}
    model.add_outputs([name for name in names if name not in outputs])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    results = compiled(inputs)
    return {name: results[name] for name in names}


RUN = {"ort": run_ort, "reference": run_reference, "openvino": run_openvino}


def reference_video(recipe, frames, mask=None):
    log = MergeLog()
    video = ReferenceVideo(recipe)
    mask = None if mask is None else torch.from_numpy(mask)
    feature = video.video_feature(torch.from_numpy(frames), mask, log)
    return torch.nn.functional.normalize(feature, dim=-1).numpy(), log


@pytest.fixture(scope="module")
def assert_same_video(video_rounding, unit_error):
    """Asserts that every decision is the reference's and, but for rounding, every merged token and the embedding, which
    it returns. The decisions must be safe."""

    def check(recipe, engine, path, frames, mask=None):
        expected, log = reference_video(recipe, frames, mask)
        assert all(float(step.gap.min()) >= SAFE_GAP for step in log.steps), "the seed drew an unsafe decision"
        merges, limit = recipe.schedule.merges, video_rounding(recipe.backbone).difference
        assert len(log.steps) == len(merges)
        inputs = {"frames": frames} if mask is None else {"frames": frames, "frame_mask": mask}
        names = ["video_embedding", *(m.assign_name for m in merges), *(m.tokens_name for m in merges)]
        found = RUN[engine](path, inputs, names)
        for merge, step in zip(merges, log.steps, strict=True):
            np.testing.assert_array_equal(found[merge.assign_name], step.assign.numpy(), err_msg=str(merge))
            tokens = step.tokens.numpy()
            off = np.linalg.norm(found[merge.tokens_name] - tokens, axis=-1)
            assert (off <= limit * np.linalg.norm(tokens, axis=-1)).all(), merge
        embedding = found["video_embedding"]
        assert embedding.dtype == np.float32
        np.testing.assert_allclose(embedding, expected, rtol=0, atol=limit)
        length = np.linalg.norm(embedding.astype(np.float64), axis=-1)
        np.testing.assert_allclose(length, expected.any(axis=-1), rtol=0, atol=unit_error(embedding.shape[-1]))
        return embedding

    return check


def value_types(proto):
    """Name -> element type of every value in the graph."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, check_type=True).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def described(value):
    tensor = value.type.tensor_type
    axes = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
    return value.name, TensorProto.DataType.Name(tensor.elem_type), axes


@pytest.mark.parametrize("name", [*VARIANTS, *LOW])
def test_video_graph_is_plain(name, video_file):
    variant = VARIANTS.get(name) or LOW[name]
    proto = onnx.load(video_file(variant))
    onnx.checker.check_model(proto, full_check=True)
    check_graph(proto)
    assert {(opset.domain, opset.version) for opset in proto.opset_import} == {("", variant.opset)}
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    assert not proto.functions
    operators = {node.op_type for node in proto.graph.node}
    assert not [op for op in operators if op.startswith((*SHAPE_OPERATORS, *CONTROL_OPERATORS))]
    frames = ("frames", "FLOAT", ["batch", variant.frames, 3, 48, 48])
    mask = ("frame_mask", "BOOL", ["batch", variant.frames])
    assert [described(v) for v in proto.graph.input] == ([frames, mask] if variant.frame_mask else [frames])
    assert [described(v) for v in proto.graph.output] == [("video_embedding", "FLOAT", ["batch", 32])]


@pytest.mark.parametrize("name", ["base", "opset-20", "opset-23", "gelu", *LOW])
def test_text_graph_is_plain(name, text_file):
    variant = VARIANTS.get(name) or LOW[name]
    proto = onnx.load(text_file(variant))
    onnx.checker.check_model(proto, full_check=True)
    check_graph(proto)
    assert {(opset.domain, opset.version) for opset in proto.opset_import} == {("", variant.opset)}
    assert not proto.functions
    operators = {node.op_type for node in proto.graph.node}
    assert not [op for op in operators if op.startswith((*SHAPE_OPERATORS, *CONTROL_OPERATORS))]
    assert [described(v) for v in proto.graph.input] == [("token_ids", "INT64", ["batch", 8])]
    assert [described(v) for v in proto.graph.output] == [("text_embedding", "FLOAT", ["batch", 32])]


def test_every_merge_leaves_its_named_values(video_file, recipe_of):
    values = {name for node in onnx.load(video_file(BASE)).graph.node for name in node.output}
    schedule = recipe_of(BASE).schedule
    assert [merge.assign_name for merge in schedule.merges] == [f"assign_{k:02d}" for k in range(5)]
    for merge in schedule.merges:
        assert {merge.assign_name, merge.tokens_name} <= values


def test_metadata_says_what_it_is_and_nothing_of_the_machine(video_file, text_file, recipe_of):
    for file, variant, precision in ((video_file, BASE, "fp32"), (text_file, LOW["bf16"], "bf16")):
        path = file(variant)
        proto = onnx.load(path)
        metadata = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
        assert metadata == {"tempme.profile": recipe_of(variant).profile.to_dict(), "tempme.precision": precision}
        assert proto.producer_name == "tempme-export"
        assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
        assert b".py" not in path.read_bytes(), "a source file's path is inside"


def test_no_merge_leaves_no_merge_nodes(video_file):
    merging = {"Round", "ArgMax", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Log"}
    operators = Counter(node.op_type for node in onnx.load(video_file(VARIANTS["none"])).graph.node)
    assert not merging & operators.keys()
    tome = Counter(node.op_type for node in onnx.load(video_file(VARIANTS["tome"])).graph.node)
    assert tome["IsNaN"] == tome["ArgMax"] == 2, "one match a block"
    assert tome["Log"] == 1, "the first block has no sizes yet"


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("engine", ENGINES)
def test_video_equals_the_reference(engine, batch, video_file, recipe_of, clips_of, assert_same_video):
    frames = clips_of(BASE)[np.arange(batch)[::-1] % len(CLIPS)]
    assert_same_video(recipe_of(BASE), engine, video_file(BASE), frames)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("base", "frame-mask")])
@pytest.mark.parametrize("engine", ENGINES)
def test_variant_equals_the_reference(engine, name, video_file, recipe_of, clips_of, assert_same_video):
    variant = VARIANTS[name]
    for batch in (1, 3):
        assert_same_video(recipe_of(variant), engine, video_file(variant), clips_of(variant)[:batch])


def test_variants_differ_from_each_other(recipe_of, clips_of):
    """The comparisons above would pass a graph without the setting only if the reference ignored it too."""
    plain, gelu, joined = (VARIANTS[name] for name in ("opset-20", "gelu", "joined-unmerged"))
    frames = clips_of(plain)[:1]
    base = reference_video(recipe_of(plain), frames)[0]
    for variant in (gelu, joined):
        assert cosine_distance(base, reference_video(recipe_of(variant), frames)[0]) > 5e-6


@pytest.mark.parametrize("kind", ["static", "black", "repeated"])
@pytest.mark.parametrize("engine", ENGINES)
def test_ties_follow_the_rule(engine, kind, video_file, recipe_of, clips_of, assert_same_video):
    frames = clips_of(BASE)[CLIPS.index(kind)][None]
    first = np.unique(frames[0], axis=0)
    assert len(first) == 1, "four frames that are all the same"
    assert_same_video(recipe_of(BASE), engine, video_file(BASE), frames)


@pytest.mark.parametrize("engine", ENGINES)
def test_neighbours_do_not_matter(engine, video_file, clips_of, recipe_of, safe_embedding, video_rounding):
    """One clip alone, whose decisions are safe, and among clips, noise and pixels that are not numbers."""
    safe_embedding(recipe_of(BASE), clips_of(BASE)[:1])
    limit = video_rounding(recipe_of(BASE).backbone).difference
    clips = clips_of(BASE)
    noise = np.random.default_rng(3).standard_normal(clips[0].shape).astype(np.float32)
    names = ["video_embedding", "assign_00", "assign_04"]
    alone = RUN[engine](video_file(BASE), {"frames": clips[:1]}, names)
    batches = [(clips[[0, 3, 1]], 0), (np.stack([noise, clips[0]]), 1)]
    batches.append((np.stack([np.full_like(noise, np.nan), clips[0], noise]), 1))
    for frames, row in batches:
        among = RUN[engine](video_file(BASE), {"frames": frames}, names)
        for name in names:
            per_video = among[name].reshape(len(frames), -1, among[name].shape[-1])[row]
            if name == "video_embedding":
                np.testing.assert_allclose(per_video, alone[name], rtol=0, atol=limit)
            else:
                np.testing.assert_array_equal(per_video, alone[name])


@pytest.mark.parametrize("engine", ENGINES)
def test_frame_mask(engine, video_file, recipe_of, clips_of, assert_same_video):
    frames = clips_of(MASKED)[[0, 0, 0, 4]]
    mask = np.ones((4, 6), np.bool_)
    mask[1, 4:] = False
    mask[2] = False
    mask[3, [0, 2]] = False
    embedding = assert_same_video(recipe_of(MASKED), engine, video_file(MASKED), frames, mask)
    np.testing.assert_array_equal(embedding[2], 0)
    assert cosine_distance(embedding[:1], embedding[1:2]) > 1e-5, "the mask was ignored"


def test_all_frames_masked_in_is_the_graph_without_mask(
    video_file, recipe_of, clips_of, safe_embedding, video_rounding
):
    frames, recipe = clips_of(MASKED)[:1], recipe_of(MASKED)
    found = run_ort(
        video_file(MASKED), {"frames": frames, "frame_mask": np.ones((1, 6), np.bool_)}, ["video_embedding"]
    )
    limit = video_rounding(recipe.backbone).difference
    np.testing.assert_allclose(found["video_embedding"], safe_embedding(recipe, frames), rtol=0, atol=limit)


@pytest.mark.parametrize("name", ["base", "opset-20", "opset-23", "gelu"])
@pytest.mark.parametrize("engine", ENGINES)
def test_text_equals_the_reference(engine, name, text_file, recipe_of, text_rounding, unit_error):
    variant = VARIANTS[name]
    recipe = recipe_of(variant)
    ids = draw_token_ids(recipe, seed=11)
    expected = ReferenceText(recipe)(torch.from_numpy(ids)).numpy()
    for rows in (slice(0, 1), slice(2, 5), slice(0, 8)):
        found = RUN[engine](text_file(variant), {"token_ids": ids[rows]}, ["text_embedding"])["text_embedding"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[rows], rtol=0, atol=text_rounding(recipe.backbone).difference)
        length = np.linalg.norm(found.astype(np.float64), axis=-1)
        np.testing.assert_allclose(length, 1, rtol=0, atol=unit_error(found.shape[-1]))


def test_text_is_read_at_its_end_token(text_file, recipe_of, text_rounding):
    """What lies behind the end changes nothing; what lies before it does."""
    ids = draw_token_ids(recipe_of(BASE), seed=11)[:1]
    end = int(ids[0].argmax())
    behind, before = ids.copy(), ids.copy()
    behind[0, end + 1 :] = 17
    before[0, end - 1] += 1
    a, b, c = (
        run_ort(text_file(BASE), {"token_ids": x}, ["text_embedding"])["text_embedding"] for x in (ids, behind, before)
    )
    assert (behind != ids).any()
    np.testing.assert_allclose(a, b, rtol=0, atol=text_rounding(recipe_of(BASE).backbone).difference)
    assert cosine_distance(a, c) > 1e-5


def matmuls(proto):
    """MatMuls of the encoder (in its precision) and of the merges (float32): counts by input type."""
    types = value_types(proto)
    found = Counter()
    for node in proto.graph.node:
        if node.op_type == "MatMul":
            (kind,) = {types[name] for name in node.input}
            found[kind] += 1
    return found


@pytest.mark.parametrize("precision", LOW)
def test_low_precision_graph_keeps_what_must_be_float32(precision, video_file, text_file):
    low = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    video, text = onnx.load(video_file(LOW[precision])), onnx.load(text_file(LOW[precision]))

    weights = [tensor for proto in (video, text) for tensor in proto.graph.initializer if np.prod(tensor.dims) >= 4096]
    assert len(weights) >= 4 * (2 + 2), "four matrices a block, two towers"
    assert {tensor.data_type for tensor in weights} == {low}

    full = matmuls(onnx.load(video_file(VARIANTS["opset-20"])))
    found = matmuls(video)
    in_blocks = 6 * 2  # q k v, logits, values, output, two of the MLP
    assert found[low] == in_blocks + 2, "the patches and the projection beside the blocks"
    assert found[TensorProto.FLOAT] == full[TensorProto.FLOAT] - found[low] > 0, "merges are float32"
    assert set(found) == {low, TensorProto.FLOAT}
    assert set(matmuls(text)) == {low}

    wide = {"LayerNormalization", "Softmax", "Round", "ReduceMax", "Greater", "Sqrt", "Div", "Log", "ReduceL2"}
    for proto, absent in ((video, set()), (text, {"Round", "ReduceMax", "Greater", "Sqrt", "Log"})):
        types = value_types(proto)
        assert wide - {node.op_type for node in proto.graph.node} == absent
        for node in proto.graph.node:
            if node.op_type in wide:
                kinds = {types[name] for name in node.input if name} - {TensorProto.INT64}  # axes
                assert kinds == {TensorProto.FLOAT}, node.name


@pytest.mark.parametrize(
    ("precision", "engine"),
    [("fp16", "ort"), ("fp16", "reference"), ("bf16", "reference"), ("bf16", "openvino")],
)
def test_low_precision_is_within_its_tolerance(precision, engine, video_file, text_file, recipe_of, clips_of):
    """ONNX Runtime's CPU provider has no bfloat16 MatMul, so bf16 is judged elsewhere."""
    recipe, tolerance = recipe_of(LOW[precision]), TOLERANCES[precision]
    frames, ids = clips_of(LOW[precision]), draw_token_ids(recipe, seed=11)
    video = RUN[engine](video_file(LOW[precision]), {"frames": frames}, ["video_embedding"])["video_embedding"]
    text = RUN[engine](text_file(LOW[precision]), {"token_ids": ids}, ["text_embedding"])["text_embedding"]
    assert video.dtype == text.dtype == np.float32
    expected_text = ReferenceText(recipe)(torch.from_numpy(ids)).numpy()
    expected = reference_video(recipe, frames)[0]
    checks = embedding_checks("video", expected, video, tolerance, expected_text)
    checks += embedding_checks("text", expected_text, text, tolerance)
    assert len(checks) == 3
    assert [check for check in checks if not check.passed] == []
    assert cosine_distance(expected, video) > 1e-9, "nothing was computed in low precision"


@pytest.mark.parametrize("precision", LOW)
def test_low_precision_graph_is_the_encoder_of_that_precision(
    precision, video_file, recipe_of, clips_of, decided, rounding
):
    """By the graph's decisions the PyTorch encoder comes as near as two roundings of the same numbers do."""
    recipe, frames, dtype = recipe_of(LOW[precision]), clips_of(LOW[precision])[:1], DTYPES[precision]
    names = [merge.assign_name for merge in recipe.schedule.merges]
    found = run_reference(video_file(LOW[precision]), {"frames": frames}, ["video_embedding", *names])
    encoder = decided(VideoEncoder(recipe, dtype), [torch.from_numpy(found[name]) for name in names])
    with torch.inference_mode():
        same = encoder(torch.from_numpy(frames)).numpy()
    assert cosine_distance(same, found["video_embedding"]) <= 2 * rounding(dtype, recipe.backbone.layers).distance


def test_video_and_text_towers_share_nothing(video_file, text_file, recipe_of):
    """Each file holds its own tower only: no weights twice."""
    recipe = recipe_of(BASE)
    for path, encoder in ((video_file(BASE), VideoEncoder(recipe)), (text_file(BASE), TextEncoder(recipe))):
        values = sum(value.numel() for value in encoder.state_dict().values())
        stored = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer)
        assert values * 0.95 <= stored <= values * 1.05


def test_unknown_opset_is_refused(recipe_of, tmp_path):
    recipe = recipe_of(VARIANTS["none"])
    for export in (export_video, export_text):
        with pytest.raises(ExportError, match=r"opset: found 19, expected one of 18, 20, 23"):
            export(recipe, tmp_path / "a.onnx", opset=19)
    assert list(tmp_path.iterdir()) == []


def test_export_leaves_the_exporters_log_level_alone(recipe_of, tmp_path):
    log = logging.getLogger("torch.onnx")
    before = log.level

    class Failing(torch.nn.Module):
        def forward(self, token_ids):
            raise RuntimeError(f"no export at level {log.level}")

    prepared = to_onnx.Prepared(Failing(), lambda proto: proto)
    with pytest.raises(RuntimeError, match=f"no export at level {logging.ERROR}"):
        export_text(recipe_of(VARIANTS["none"]), tmp_path / "text.onnx", prepared=prepared)
    assert log.level == before != logging.ERROR


def hand_made(*nodes, functions=()):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "hand made", [x], [y])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("tempme", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions))


def test_check_graph_passes_standard_operators():
    check_graph(hand_made(helper.make_node("Relu", ["x"], ["y"])))
    check_graph(hand_made(helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")))


@pytest.mark.parametrize(
    "operator",
    ["Shape", "Size", "Range", "ScatterND", "ScatterElements", "NonZero", "Loop", "If", "Scan", "Unique", "Compress"],
)
def test_check_graph_refuses_operators_whose_shape_depends_on_data(operator):
    relu = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(ExportError, match=rf"ai\.onnx\.{operator}\b.*constraints\.txt"):
        check_graph(hand_made(helper.make_node(operator, ["x"], ["z"]), relu))


def test_check_graph_refuses_foreign_domains_and_functions():
    with pytest.raises(ExportError, match=r"tempme\.match_tokens"):
        check_graph(hand_made(helper.make_node("match_tokens", ["x"], ["y"], domain="tempme")))
    body = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function("tempme", "f", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    with pytest.raises(ExportError, match="local functions"):
        check_graph(hand_made(helper.make_node("Relu", ["x"], ["y"]), functions=[function]))


def test_forbidden_operator_stops_the_export(recipe_of, tmp_path):
    def count_words(proto):
        proto.graph.node.append(helper.make_node("NonZero", ["token_ids"], ["words"]))
        return proto

    recipe = recipe_of(VARIANTS["none"])
    prepared = to_onnx.Prepared(TextEncoder(recipe), count_words)
    with pytest.raises(ExportError, match=r"ai\.onnx\.NonZero"):
        export_text(recipe, tmp_path / "text.onnx", prepared=prepared)
    assert list(tmp_path.iterdir()) == []
