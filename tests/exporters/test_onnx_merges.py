"""`--expose-merges`: the decisions become outputs of the video graph, and nothing else of it changes."""

import dataclasses
import functools

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from tempme_export.encoder.checkpoint import from_state_dict
from tempme_export.encoder.profile import FROM_CHECKPOINT, BatchRange, Profile
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.reference import MergeLog, ReferenceVideo
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.exporters.onnx import export_video
from tempme_export.media.preprocess import preprocess_for
from tempme_export.parity.selftest import SAFE_GAP, draw_clip
from tempme_export.runtime.ort import OrtRunner


@dataclasses.dataclass(frozen=True)
class Variant:
    """A small model."""

    frames: int
    clip_layers: tuple[int, ...]
    clip_factors: tuple[int, ...]
    frame_mask: bool = False

    @property
    def layers(self):
        return self.clip_layers[-1] + 1


TWO_CLIPS = Variant(6, (1,), (3,), frame_mask=True)
ONE_CLIP = Variant(4, (1, 2), (2, 2))
AXES = {
    TWO_CLIPS: ["batch_times_6", "batch_times_2", "batch_times_2"],
    ONE_CLIP: ["batch_times_4", "batch_times_2", "batch_times_2", "batch", "batch"],
}
IDS = {TWO_CLIPS: "two-clips", ONE_CLIP: "one-clip"}


@pytest.fixture(scope="module")
def recipe_of(checkpoint_maker):
    """Variant -> Recipe of two or three blocks with weights drawn from seed 7."""

    @functools.cache
    def make(variant):
        settings = checkpoint_maker.settings(
            "tiny",
            image=48,
            layers=variant.layers,
            merge_layer="-".join(map(str, variant.clip_layers)),
            merge_frame_num="-".join(map(str, variant.clip_factors)),
            max_frames=variant.frames,
        )
        state = checkpoint_maker.make_state_dict(settings, seed=7)
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
        merge = MergePolicy(1, variant.clip_layers, variant.clip_factors, 30, 10)
        profile = Profile("small", FROM_CHECKPOINT, variant.frames, 8, merge, BatchRange(1, 3, 8))
        return prepare(from_state_dict(tensors, source="small"), profile)

    return make


@pytest.fixture(scope="module")
def file_of(recipe_of, tmp_path_factory):
    """Variant, with its merges or without -> path of its video tower."""

    @functools.cache
    def export(variant, with_merges):
        path = tmp_path_factory.mktemp("video") / "video.onnx"
        export_video(recipe_of(variant), path, frame_mask=variant.frame_mask, expose_merges=with_merges)
        return path

    return export


def described(value):
    tensor = value.type.tensor_type
    axes = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
    return value.name, TensorProto.DataType.Name(tensor.elem_type), axes


@pytest.fixture(scope="module")
def assert_same(video_rounding):
    """Asserts that what a graph gave for float32 frames [B, F, 3, S, S] are the reference's decisions and, but for
    rounding, its tokens and embeddings. The decisions must be safe."""

    def check(found, recipe, frames):
        limit, outputs = video_rounding(recipe.backbone).difference, expected_outputs(recipe, frames)
        for name, value in found.items():
            assert value.dtype == outputs[name].dtype
            if value.dtype == np.int32:
                np.testing.assert_array_equal(value, outputs[name], err_msg=name)
            else:
                off, length = (np.linalg.norm(x, axis=-1) for x in (value - outputs[name], outputs[name]))
                assert (off <= limit * length).all(), name

    return check


def frames_of(recipe, batch):
    """Moving clips, normalised: float32 [B, F, 3, S, S]."""
    preprocess = preprocess_for(recipe)
    clips = [draw_clip("moving", recipe.profile.frames, preprocess.size, seed) for seed in range(batch)]
    return np.stack([preprocess(clip) for clip in clips])


def expected_outputs(recipe, frames):
    """The reference's embedding, assignments and merged tokens for float32 frames [B, F, 3, S, S]."""
    log = MergeLog()
    feature = ReferenceVideo(recipe).video_feature(torch.from_numpy(frames), log=log)
    assert all(float(step.gap.min()) >= SAFE_GAP for step in log.steps), "the seed drew an unsafe decision"
    embedding = torch.nn.functional.normalize(feature, dim=-1).numpy()
    outputs = {"video_embedding": embedding}
    for merge, step in zip(recipe.schedule.merges, log.steps, strict=True):
        outputs |= {merge.assign_name: step.assign.numpy(), merge.tokens_name: step.tokens.numpy()}
    return outputs


def run_ort(path, inputs):
    with OrtRunner(path, threads=1) as runner:
        return runner.infer(inputs)


def run_reference(path, inputs):
    evaluator = ReferenceEvaluator(str(path))
    return dict(zip(evaluator.output_names, evaluator.run(None, inputs), strict=True))


def run_openvino(path, inputs):
    openvino = pytest.importorskip("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    found = compiled(inputs)
    return {port.any_name: found[port] for port in compiled.outputs}


RUN = {"ort": run_ort, "reference": run_reference, "openvino": run_openvino}


@pytest.mark.parametrize("variant", AXES, ids=IDS.get)
def test_the_outputs_are_declared(variant, file_of, recipe_of):
    """Every merge in execution order, and an axis that counts the clips of all videos."""
    proto = onnx.load(file_of(variant, True))
    onnx.checker.check_model(proto, full_check=True)
    schedule = recipe_of(variant).schedule
    first, *others = map(described, proto.graph.output)
    assert first == ("video_embedding", "FLOAT", ["batch", 32])
    assert [name for name, _, _ in others] == [f"assign_{k:02d}" for k in range(len(schedule.merges))]
    assert [axes[0] for _, _, axes in others] == AXES[variant]
    for merge, (_, dtype, axes) in zip(schedule.merges, others, strict=True):
        block = schedule.blocks[merge.block]
        tokens = block.tokens_attention + (merge.r if merge.kind == "cross" else 0)
        assert (dtype, axes[1:]) == ("INT32", [tokens]), merge


def test_without_it_no_output_is_added(file_of):
    assert [value.name for value in onnx.load(file_of(ONE_CLIP, False)).graph.output] == ["video_embedding"]


def test_nothing_else_of_the_graph_changes(file_of):
    plain, merging = (onnx.load(file_of(ONE_CLIP, with_merges)) for with_merges in (False, True))
    del merging.graph.output[1:]
    assert merging.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", AXES, ids=IDS.get)
@pytest.mark.parametrize("engine", RUN)
def test_the_outputs_are_the_references(engine, variant, batch, file_of, recipe_of, assert_same):
    recipe = recipe_of(variant)
    frames = frames_of(recipe, batch)
    inputs = {"frames": frames}
    if variant.frame_mask:
        inputs["frame_mask"] = np.ones(frames.shape[:2], np.bool_)
    found = RUN[engine](file_of(variant, True), inputs)
    assert list(found) == ["video_embedding", *(merge.assign_name for merge in recipe.schedule.merges)]
    assert_same(found, recipe, frames)


@pytest.mark.parametrize("with_merges", [False, True])
def test_values_can_be_exposed_besides(file_of, recipe_of, assert_same, with_merges):
    """Parity asks for assignments and merged tokens of every bundle, with merge outputs or without."""
    recipe = recipe_of(ONE_CLIP)
    names = [name for merge in recipe.schedule.merges for name in (merge.assign_name, merge.tokens_name)]
    frames = frames_of(recipe, 2)
    with OrtRunner(file_of(ONE_CLIP, with_merges), extra_outputs=names, threads=1) as runner:
        found = runner.infer({"frames": frames})
    assert set(found) == {"video_embedding", *names}
    assert_same(found, recipe, frames)
