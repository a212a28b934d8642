"""`video.plugin.onnx`: the nodes it holds, and what four runtimes without plugins and our operators compute with it."""

import dataclasses
import functools
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from tempme_export.encoder.checkpoint import from_state_dict
from tempme_export.encoder.profile import FROM_CHECKPOINT, BatchRange, Profile
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.reference import MergeLog, ReferenceText, ReferenceVideo
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.errors import ExportError
from tempme_export.exporters.plugin_onnx import check_plugin_graph, export_plugin_video, plugin_nodes
from tempme_export.kernels.native.build import build, find_compiler
from tempme_export.media.preprocess import preprocess_for
from tempme_export.parity.checks import cosine_distance, embedding_checks
from tempme_export.parity.making import make_selftest
from tempme_export.parity.selftest import CLIPS, SAFE_GAP, draw_token_ids
from tempme_export.parity.tolerance import TOLERANCES

GOLDEN = ("tiny_default", "tiny_clamp", "tiny_schedule")
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One small model and how it is exported."""

    frames: int = 4
    layers: int = 2
    clip_layers: tuple[int, ...] = (1,)
    clip_factors: tuple[int, ...] = (2,)
    image: int = 48
    image_r: int = 1
    size_bias: bool = True
    clip_position: bool = True
    precision: str = "fp32"
    frame_mask: bool = False


BASE = Variant(layers=3, clip_layers=(1, 2), clip_factors=(2, 2))
MASKED = Variant(frames=6, clip_factors=(3,), frame_mask=True)
VARIANTS = {
    "base": BASE,
    "frame-mask": MASKED,
    "first-block": Variant(layers=1, clip_layers=(0,)),
    "unsized-unplaced": Variant(image_r=0, clip_position=False, size_bias=False),
    "streamed": Variant(frames=2, layers=1, clip_layers=(), clip_factors=(), image=272, clip_position=False),
}
JOINED = "SplitClips {0}, ScoreRows {0}, SelectRows {0}"
OPERATORS = {
    "base": f"MatchKeys 3, MergeNorm 1, MergeNormSized 2, {JOINED.format(2)}, MergeNormSizedPlaced 2",
    "frame-mask": f"MatchKeys 2, MergeNorm 1, MergeNormSized 1, {JOINED.format(1)}, MergeNormSizedPlaced 1",
    "first-block": f"{JOINED.format(1)}, MergeNormPlaced 1, MatchKeys 1, MergeNormSized 1",
    "unsized-unplaced": f"{JOINED.format(1)}, MergeNorm 1, MatchKeys 1, MergeNormSized 1",
    "streamed": "SplitKeys 1, ScoreRows 1, SelectRows 1, MergeNorm 1",
}
LOW = {precision: Variant(precision=precision) for precision in ("fp16", "bf16")}


@pytest.fixture(scope="module")
def recipe_of(checkpoint_maker):
    """Variant -> Recipe with weights drawn from seed 7."""

    @functools.cache
    def make(variant):
        settings = checkpoint_maker.settings(
            "tiny",
            image=variant.image,
            layers=variant.layers,
            merge_layer="-".join(map(str, variant.clip_layers or (0,))),
            merge_frame_num="-".join(map(str, variant.clip_factors or (1,))),
            frame_pos=int(variant.clip_position),
            max_frames=variant.frames,
        )
        state = checkpoint_maker.make_state_dict(settings, seed=7)
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
        merge = MergePolicy(
            variant.image_r,
            variant.clip_layers,
            variant.clip_factors,
            30,
            10,
            size_bias=variant.size_bias,
            clip_position=variant.clip_position,
        )
        profile = Profile("small", FROM_CHECKPOINT, variant.frames, 8, merge, BatchRange(1, 3, 8))
        return prepare(from_state_dict(tensors, source="small"), profile)

    return make


@pytest.fixture(scope="module")
def file_of(recipe_of, tmp_path_factory):
    """Variant -> path of its plugin graph, exported once."""

    @functools.cache
    def export(variant):
        path = tmp_path_factory.mktemp("plugin") / "video.plugin.onnx"
        export_plugin_video(recipe_of(variant), path, variant.precision, variant.frame_mask)
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


def extra_outputs(path, names):
    proto = onnx.load(path)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names[1:])
    return proto


@functools.cache
def library():
    """Folder with the library of our operators, which goes when this process ends, and its path."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "library.so"
    build(compiler, path, path.parent)
    return folder, path


def run_ort(path, inputs, names, inline=False, operators=False):
    proto = extra_outputs(path, names)
    if inline:
        proto = onnx.inliner.inline_local_functions(proto)
        assert not proto.functions
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if operators:
        options.register_custom_ops_library(str(library()[1]))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, inputs), strict=True))


def run_reference(path, inputs, names):
    return dict(zip(names, ReferenceEvaluator(extra_outputs(path, names)).run(names, inputs), strict=True))


def run_openvino(path, inputs, names):
    openvino = pytest.importorskip("openvino")
    inlined = onnx.inliner.inline_local_functions(extra_outputs(path, names)).SerializeToString()
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    results = core.compile_model(core.read_model(inlined), "CPU", settings)(inputs)
    return {name: results[name] for name in names}


RUN = {
    "ort": run_ort,
    "inlined": functools.partial(run_ort, inline=True),
    "ort-ops": functools.partial(run_ort, operators=True),
    "reference": run_reference,
    "openvino": run_openvino,
}


def reference_video(recipe, frames, mask=None):
    log = MergeLog()
    mask = None if mask is None else torch.from_numpy(mask)
    feature = ReferenceVideo(recipe).video_feature(torch.from_numpy(frames), mask, log)
    return torch.nn.functional.normalize(feature, dim=-1).numpy(), log


@pytest.fixture(scope="module")
def assert_same_video(video_rounding, unit_error):
    """Asserts that every decision is the reference's and, but for rounding, every merged token and the embedding, which
    it returns. The decisions must be safe."""

    def check(recipe, engine, path, frames, mask=None):
        expected, log = reference_video(recipe, frames, mask)
        assert all(float(step.gap.min()) >= SAFE_GAP for step in log.steps), "the seed drew an unsafe decision"
        merges, limit = recipe.schedule.merges, video_rounding(recipe.backbone).difference
        assert len(log.steps) == len(merges) > 0
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


@pytest.mark.parametrize("case", GOLDEN)
@pytest.mark.parametrize("engine", ["ort", "ort-ops"])
def test_reference_cases_equal_the_reference(engine, case, golden_case, tmp_path, assert_same_video):
    golden = golden_case(case)
    path = tmp_path / "video.plugin.onnx"
    export_plugin_video(golden.recipe, path)
    for batch in (1, 3):
        rows = np.arange(batch) % len(golden.video)
        assert_same_video(golden.recipe, engine, path, golden.video.numpy()[rows])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("engine", RUN)
def test_variant_equals_the_reference(engine, name, file_of, recipe_of, clips_of, assert_same_video):
    variant = VARIANTS[name]
    for batch in (1, 3):
        mask = np.ones((batch, variant.frames), np.bool_) if variant.frame_mask else None
        assert_same_video(recipe_of(variant), engine, file_of(variant), clips_of(variant)[:batch], mask)


@pytest.mark.parametrize("kind", ["static", "black", "repeated"])
@pytest.mark.parametrize("engine", RUN)
def test_ties_follow_the_rule(engine, kind, file_of, recipe_of, clips_of, assert_same_video):
    frames = clips_of(BASE)[CLIPS.index(kind)][None]
    assert len(np.unique(frames[0], axis=0)) == 1, "four frames that are all the same"
    assert_same_video(recipe_of(BASE), engine, file_of(BASE), frames)


@pytest.mark.parametrize("engine", RUN)
def test_frame_mask(engine, file_of, recipe_of, clips_of, assert_same_video):
    frames = clips_of(MASKED)[[0, 0, 0]]
    mask = np.ones((3, 6), np.bool_)
    mask[1, 4:] = False
    mask[2] = False
    embedding = assert_same_video(recipe_of(MASKED), engine, file_of(MASKED), frames, mask)
    np.testing.assert_array_equal(embedding[2], 0)
    assert cosine_distance(embedding[:1], embedding[1:2]) > 1e-5, "the mask was ignored"


@pytest.mark.parametrize(
    ("precision", "engine"),
    [
        ("fp16", "ort"),
        ("fp16", "ort-ops"),
        ("fp16", "inlined"),
        ("fp16", "reference"),
        ("bf16", "reference"),
        ("bf16", "openvino"),
    ],
)
def test_low_precision_is_within_its_tolerance(precision, engine, file_of, recipe_of, clips_of):
    """ONNX Runtime's CPU provider has no bfloat16 MatMul, so bf16 is judged elsewhere."""
    variant = LOW[precision]
    recipe, frames = recipe_of(variant), clips_of(variant)
    found = RUN[engine](file_of(variant), {"frames": frames}, ["video_embedding"])["video_embedding"]
    assert found.dtype == np.float32
    expected, _ = reference_video(recipe, frames)
    text = ReferenceText(recipe)(torch.from_numpy(draw_token_ids(recipe, seed=11))).numpy()
    checks = embedding_checks("video", expected, found, TOLERANCES[precision], text)
    assert checks and [check for check in checks if not check.passed] == []
    assert cosine_distance(expected, found) > 1e-9, "nothing was computed in low precision"


@pytest.mark.parametrize("name", [*VARIANTS, *LOW])
def test_the_graph_holds_the_described_nodes(name, file_of, recipe_of):
    variant = VARIANTS.get(name) or LOW[name]
    proto = onnx.load(file_of(variant))
    onnx.checker.check_model(proto, full_check=True)
    nodes = plugin_nodes(recipe_of(variant))
    check_plugin_graph(proto, nodes)
    ours = [node for node in proto.graph.node if node.domain == "tempme"]
    counted = Counter(node.op_type for node in ours)
    if name in OPERATORS:
        assert counted == {op: int(n) for op, n in (part.split() for part in OPERATORS[name].split(", "))}
    assert {(one.domain, one.version) for one in proto.opset_import} == {("", 20), ("tempme", 1)}
    assert {function.name for function in proto.functions} == set(counted)
    standard = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert not set(counted) & standard, "parsers look a name up whatever its domain"
    for node, described in zip(ours, nodes, strict=True):
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        assert attributes.pop("plugin_namespace") == b"tempme"
        assert attributes.pop("plugin_version") == b"1"
        assert attributes == dict(described.attributes)
        assert len(node.input) == len(described.inputs) and all(node.input)
        assert len(node.output) == len(described.outputs) and all(node.output)


@pytest.mark.parametrize("name", ["base", "frame-mask", "unsized-unplaced", "streamed", *LOW])
def test_described_types_and_shapes_are_those_of_the_graph(name, file_of, recipe_of, clips_of):
    variant, batch = VARIANTS.get(name) or LOW[name], 2
    proto = onnx.load(file_of(variant))
    ours = [node for node in proto.graph.node if node.domain == "tempme"]
    described = {}
    for node, one in zip(ours, plugin_nodes(recipe_of(variant)), strict=True):
        described |= dict(zip([*node.input, *node.output], [*one.inputs, *one.outputs], strict=True))
    parameters = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    inputs = {"frames": clips_of(variant)[:batch]}
    if variant.frame_mask:
        inputs["frame_mask"] = np.ones((batch, variant.frames), np.bool_)
    names = [name for name in described if name not in parameters]
    found = parameters | run_reference(file_of(variant), inputs, names)
    for name, value in described.items():
        assert value.batched == (name not in parameters), value
        first = value.shape[0] * (batch if value.batched else 1)
        assert found[name].shape == (first, *value.shape[1:]), value
        kind = PRECISIONS[variant.precision] if value.kind == "T" else value.kind
        assert found[name].dtype.name == kind, value


def test_nothing_else_is_taken_out_of_the_graph(file_of):
    """Attention, the other LayerNorms and the MLP stay standard operators."""
    operators = Counter(node.op_type for node in onnx.load(file_of(BASE)).graph.node)
    assert operators["Softmax"] == 3
    assert operators["MatMul"] == 1 + 3 * 6 + 1, "of the patches, the blocks and the projection"
    assert operators["LayerNormalization"] == 1 + 1 + 1, "of the stem, the first block and the output"
    assert not {"Round", "ArgMax", "IsNaN", "Sqrt", "Log", "Range", "CastLike"} & operators.keys()


def test_every_merge_leaves_its_named_values(file_of, recipe_of):
    values = {name for node in onnx.load(file_of(BASE)).graph.node for name in node.output}
    for merge in recipe_of(BASE).schedule.merges:
        assert {merge.assign_name, merge.tokens_name} <= values


def test_a_profile_without_merges_is_refused(recipe_of, tmp_path):
    recipe = recipe_of(Variant(clip_layers=(), clip_factors=(), image_r=0, clip_position=False))
    assert plugin_nodes(recipe) == ()
    with pytest.raises(ExportError, match=r"profile small merges no tokens.*without --trt"):
        export_plugin_video(recipe, tmp_path / "video.plugin.onnx")
    assert list(tmp_path.iterdir()) == []


def test_unknown_opset_is_refused(recipe_of, tmp_path):
    with pytest.raises(ExportError, match=r"opset: found 19, expected one of 18, 20, 23"):
        export_plugin_video(recipe_of(BASE), tmp_path / "video.plugin.onnx", opset=19)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_lost_or_changed_a_node_of_ours_is_refused(file_of, recipe_of):
    nodes = plugin_nodes(recipe_of(BASE))
    whole = onnx.load(file_of(BASE))
    at = next(k for k, node in enumerate(whole.graph.node) if node.domain == "tempme")
    lost, changed, foreign = (onnx.load(file_of(BASE)) for _ in range(3))
    del lost.graph.node[at]
    next(one for one in changed.graph.node[at].attribute if one.name == "r").i += 1
    foreign.graph.node.append(onnx.helper.make_node("Other", ["frames"], ["y"], domain="elsewhere"))
    for proto in (lost, changed):
        with pytest.raises(ExportError, match=r"nodes of domain tempme.*constraints\.txt"):
            check_plugin_graph(proto, nodes)
    with pytest.raises(ExportError, match=r"elsewhere\.Other"):
        check_plugin_graph(foreign, nodes)
