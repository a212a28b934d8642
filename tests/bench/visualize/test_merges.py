"""Patches are followed through all merges exactly: an independent composition and the reference's sizes agree."""

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from tempme_export.artifacts import registry
from tempme_export.artifacts.bundle import open_bundle, write_manifest
from tempme_export.artifacts.registry import VIDEO_ONNX
from tempme_export.bench.cases import Case, open_case
from tempme_export.bench.visualize.merges import drawn_blocks, merge_stages, video_merges
from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.reference import MergeLog, ReferenceVideo
from tempme_export.encoder.schedule import MergePolicy, build_schedule
from tempme_export.errors import BundleError, InputError, VideoError
from tempme_export.media.preprocess import preprocess_for
from tempme_export.media.render import render_clip
from tempme_export.media.video import read_frames
from tempme_export.parity.selftest import draw_clip
from tempme_export.pipeline import export
from tempme_export.pipeline.spec import ExportSpec
from tempme_export.runtime import ort

GRID = 4  # of the tiny model: 64 pixels, patches of 16


@pytest.fixture(scope="module")
def recipe(tiny):
    checkpoint, profile = tiny
    return prepare(load_checkpoint(checkpoint), profile)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Path of a rendered clip."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    render_clip(path, seconds=4, fps=5, size=(96, 64), seed=3)
    return path


@pytest.fixture(scope="module")
def merges_bundle(recipe, tiny_bundle, tmp_path_factory):
    """The tiny bundle with its merges as outputs, as `tempme-export --expose-merges` declares them. Its path."""
    folder = tmp_path_factory.mktemp("merged.tempme")
    proto = onnx.load(tiny_bundle / VIDEO_ONNX.file)
    proto.graph.output.extend(onnx.ValueInfoProto(name=merge.assign_name) for merge in recipe.schedule.merges)
    onnx.save(proto, folder / VIDEO_ONNX.file)
    write_manifest(folder, export._manifest(ExportSpec("", expose_merges=True), recipe, export.Built()))
    return folder


def running(open_runner):
    """The backend of every bundle's graph, its runners opened by a function."""
    return dataclasses.replace(
        registry.BACKENDS[0], runner=SimpleNamespace(open_runner=open_runner, describe=ort.describe)
    )


def original(recipe, frames):
    """What the reference did with uint8 frames [F, S, S, 3]."""
    log = MergeLog()
    pixels = preprocess_for(recipe).normalise(frames)
    ReferenceVideo(recipe).frame_features(torch.from_numpy(pixels[None]), log)
    return log


def assigns_of(log):
    return [step.assign.numpy() for step in log.steps]


def by_definition(log, schedule):
    """After each block, {token: the original patches in it}, by the words of the spec: lists that join and merge.

    A token is (clip, row), an original patch (frame, patch); class tokens hold none.
    """
    clips = [
        [{("class", f)}, *({(f, p)} for p in range(schedule.tokens_per_frame - 1))] for f in range(schedule.frames)
    ]
    n_cls, steps, after = 1, iter(log.steps), []
    for block in schedule.blocks:
        joined = []
        for start in range(0, len(clips), block.factor):
            together = clips[start : start + block.factor]
            leading = [token for clip in together for token in clip[:n_cls]]
            joined.append(leading + [token for clip in together for token in clip[n_cls:]])
        clips, n_cls = joined, n_cls * block.factor
        for r in (block.r_cross, block.r_intra):
            if r:
                step = next(steps)
                merged = []
                for clip, rows in zip(clips, step.assign.tolist(), strict=True):
                    out = [set() for _ in range(len(clip) - r)]
                    for token, row in zip(clip, rows, strict=True):
                        out[row] |= token
                    merged.append(out)
                clips = merged
        after.append(
            {
                (c, n): {patch for patch in token if patch[0] != "class"}
                for c, clip in enumerate(clips)
                for n, token in enumerate(clip)
            }
        )
    assert next(steps, None) is None
    return after


def regions(groups):
    """The partition of all patches, whatever the ids: a set of frozensets of (frame, patch)."""
    found = {}
    for frame, of_frame in enumerate(groups.reshape(len(groups), -1).tolist()):
        for patch, token in enumerate(of_frame):
            found.setdefault(token, set()).add((frame, patch))
    return {frozenset(patches) for patches in found.values()}


def assert_followed(recipe, frames, grid):
    """Every stage is the partition by definition, with the reference's sizes; returns the stages."""
    log, schedule = original(recipe, frames), recipe.schedule
    stages = merge_stages(assigns_of(log), schedule, grid)
    expected = by_definition(log, schedule)
    assert len(stages) == len(drawn_blocks(schedule)) > 0
    for stage, index in zip(stages, drawn_blocks(schedule), strict=True):
        block = schedule.blocks[index]
        assert stage.groups.shape == (schedule.frames, grid, grid) and stage.groups.dtype == np.int64
        assert regions(stage.groups) == {frozenset(token) for token in expected[index].values() if token}
        assert (stage.clips, stage.tokens) == (block.clips, block.clips * block.tokens_mlp)
        sizes = log.sizes[index].numpy().copy()
        sizes[:, : block.n_cls] -= 1  # class tokens never merge and are not drawn
        np.testing.assert_array_equal(np.bincount(stage.groups.ravel(), minlength=stage.tokens), sizes.ravel())
        assert stage.patch_tokens == stage.tokens - schedule.frames
    return stages


class TestComposition:
    @pytest.mark.parametrize("kind", ["moving", "static", "black", "repeated"])
    def test_tiny(self, recipe, kind):
        assert_followed(recipe, draw_clip(kind, 4, 64, seed=1), GRID)

    @pytest.mark.parametrize("name", ["tiny_default", "tiny_schedule", "tiny_clamp"])
    def test_reference_case(self, golden_case, name):
        """Twelve blocks and clip layers as in the paper, elsewhere, and with clamped merges."""
        recipe = golden_case(name).recipe
        size, patch = recipe.backbone.image_size, recipe.backbone.patch
        assert_followed(recipe, draw_clip("moving", recipe.schedule.frames, size, seed=2), size // patch)

    def test_frozen_video_merges_across_frames(self, recipe):
        """Every frame merges as its equals do, and what lies in one token at the end lies in several frames."""
        within, *_, last = assert_followed(recipe, draw_clip("static", 4, 64, seed=0), GRID)
        first, *others = (regions(within.groups[f : f + 1]) for f in range(4))
        assert others == [first] * 3
        assert all(len({frame for frame, _ in region}) == 1 for region in regions(within.groups))
        assert any(len({frame for frame, _ in region}) > 1 for region in regions(last.groups))

    def test_black_video(self, recipe):
        stages = assert_followed(recipe, draw_clip("black", 4, 64, seed=0), GRID)
        assert max(Counter(stages[-1].groups.ravel().tolist()).values()) > 4

    def test_another_video_has_other_groups(self, recipe):
        one, other = (
            merge_stages(assigns_of(original(recipe, draw_clip("moving", 4, 64, seed))), recipe.schedule, GRID)
            for seed in (1, 2)
        )
        assert regions(one[-1].groups) != regions(other[-1].groups)


class TestByHand:
    """Two frames of four patches, two blocks; the second joins them."""

    SCHEDULE = build_schedule(MergePolicy(1, (1,), (2,), 25, 0), layers=2, frames=2, tokens_per_frame=5)

    def test_plan(self):
        assert [
            (b.tokens_in, b.r_cross, b.tokens_attention, b.r_intra, b.tokens_mlp) for b in self.SCHEDULE.blocks
        ] == [
            (5, 0, 5, 1, 4),
            (4, 2, 6, 0, 6),
        ]

    def test_ids(self):
        # Tokens: class 0, patches 1 to 4. Patch 2 joins 1 in the first frame, patch 4 joins 3 in the second.
        within = np.array([[0, 2, 2, 3, 1], [0, 2, 1, 3, 3]], np.int32)
        # Joined: two class tokens, then the rows 1 to 3 of each frame, tokens 2 to 7. Tokens 2 and 6 join 7.
        across = np.array([[0, 1, 5, 3, 2, 4, 5, 5]], np.int32)
        first, second = merge_stages([within, across], self.SCHEDULE, 2)
        assert [(stage.clips, stage.tokens, stage.patch_tokens) for stage in (first, second)] == [(2, 8, 6), (1, 6, 4)]
        assert (first.title, second.title) == (
            "after block 0: 2 clips of 4 tokens",
            "after block 1: 1 clip of 6 tokens",
        )
        np.testing.assert_array_equal(first.groups, [[[2, 2], [3, 1]], [[6, 5], [7, 7]]])
        np.testing.assert_array_equal(second.groups, [[[3, 3], [2, 5]], [[5, 4], [5, 5]]])

    def test_no_merge_at_all(self):
        schedule = build_schedule(MergePolicy(0, (), (), 0, 0), layers=3, frames=2, tokens_per_frame=5)
        (stage,) = merge_stages([], schedule, 2)
        assert stage.title == "after block 2: 2 clips of 5 tokens"
        assert len(regions(stage.groups)) == 8


class TestDrawnBlocks:
    @pytest.mark.parametrize(
        ("image_r", "layers", "factors", "blocks"),
        [
            (2, (8, 9, 10), (2, 2, 3), (7, 8, 9, 10, 11)),
            (2, (4, 7, 10), (2, 2, 3), (3, 4, 7, 10, 11)),
            (2, (7, 9, 11), (2, 2, 3), (6, 7, 9, 11)),
            (0, (8,), (12,), (8, 11)),
            (2, (0, 11), (2, 6), (0, 11)),
            (2, (3, 5), (1, 12), (4, 5, 11)),
            (2, (), (), (11,)),
            (0, (), (), (11,)),
        ],
    )
    def test_table(self, image_r, layers, factors, blocks):
        schedule = build_schedule(
            MergePolicy(image_r, layers, factors, 30, 10), layers=12, frames=12, tokens_per_frame=50
        )
        assert drawn_blocks(schedule) == blocks


class TestRefused:
    @pytest.fixture
    def assigns(self, recipe):
        return assigns_of(original(recipe, draw_clip("moving", 4, 64, seed=1)))

    def test_number_of_assignments(self, assigns, recipe):
        count = len(recipe.schedule.merges)
        with pytest.raises(InputError, match=f"found {count - 1} assignments, expected {count}"):
            merge_stages(assigns[:-1], recipe.schedule, GRID)

    def test_grid(self, assigns, recipe):
        with pytest.raises(InputError, match="found 5 x 5 patches a frame, expected 16"):
            merge_stages(assigns, recipe.schedule, 5)

    def test_two_videos(self, assigns, recipe):
        """The first axis counts the clips of all videos; one is drawn at a time."""
        doubled = [np.concatenate([assign, assign]) for assign in assigns]
        with pytest.raises(InputError, match=r"assign_00: found shape \[8, 17\], expected \[4, 17\]"):
            merge_stages(doubled, recipe.schedule, GRID)

    @pytest.mark.parametrize("row", [-1, 99])
    def test_rows_out_of_range(self, assigns, recipe, row):
        assigns[1] = assigns[1].copy()
        assigns[1][0, -1] = row
        with pytest.raises(InputError, match=r"assign_01: found rows .* expected every row from 0 to"):
            merge_stages(assigns, recipe.schedule, GRID)

    def test_a_row_that_nothing_goes_to(self, assigns, recipe):
        assigns[0] = np.where(assigns[0] == 3, 4, assigns[0])
        with pytest.raises(InputError, match=r"assign_00: .* in every clip"):
            merge_stages(assigns, recipe.schedule, GRID)


class TestVideoMerges:
    def test_frames_are_what_the_encoder_saw(self, recipe, video):
        merged = video_merges(Case(recipe), video)
        np.testing.assert_array_equal(merged.frames, preprocess_for(recipe).crop(read_frames(video, 4)))
        assert merged.frames.shape == (4, 64, 64, 3) and merged.frames.dtype == np.uint8

    def test_all_ways_agree(self, recipe, tiny_bundle, merges_bundle, video):
        """The original path, a bundle, and one with its merges as outputs."""
        case = Case(recipe)
        expected = assert_followed(recipe, preprocess_for(recipe).crop(read_frames(video, 4)), GRID)
        plain, merged = open_bundle(tiny_bundle), open_bundle(merges_bundle)
        for model in (case, plain, merged, open_case(str(tiny_bundle), None, None)):
            stages = video_merges(model, video).stages
            assert [stage.title for stage in stages] == [stage.title for stage in expected]
            for found, stage_expected in zip(stages, expected, strict=True):
                np.testing.assert_array_equal(found.groups, stage_expected.groups)

    def test_origin(self, recipe, tiny_bundle, video):
        assert video_merges(Case(recipe), video).origin == f"the original path with {recipe.checkpoint.source}"
        expected = f"{tiny_bundle / VIDEO_ONNX.file} under ONNX Runtime, cpu"
        assert video_merges(Case(recipe, tiny_bundle), video).origin == expected
        assert video_merges(open_bundle(tiny_bundle), video).origin == expected

    def test_a_traced_bundle_is_run_as_it_is(self, merges_bundle, video):
        seen = []

        def open_runner(path, facts, setting):
            seen.append(setting.extra_outputs)
            return ort.open_runner(path, facts, setting)

        video_merges(open_bundle(merges_bundle), video, backend=running(open_runner))
        assert seen == [()]

    def test_every_frame_counts(self, tiny_bundle, video):
        """A graph with a frame mask is given one that leaves nothing out."""
        seen = []

        class Masked(ort.OrtRunner):
            def __init__(self, path, *, extra_outputs):
                super().__init__(path, extra_outputs=extra_outputs)
                self.inputs["frame_mask"] = (np.dtype(np.bool_), (None, 4))

            def _infer(self, inputs):
                seen.append(inputs["frame_mask"])
                return super()._infer({"frames": inputs["frames"]})

        backend = running(lambda path, facts, setting: Masked(path, extra_outputs=setting.extra_outputs))
        video_merges(open_bundle(tiny_bundle), video, backend=backend)
        (mask,) = seen
        assert mask.shape == (1, 4) and mask.all()

    def test_missing_video(self, recipe, tmp_path):
        with pytest.raises(VideoError, match=r"missing\.mp4"):
            video_merges(Case(recipe), tmp_path / "missing.mp4")

    def test_a_graph_without_the_values(self, recipe, tmp_path, video):
        """A manifest may name merges that a foreign graph does not hold."""
        write_manifest(tmp_path, export._manifest(ExportSpec(""), recipe, export.Built()))
        with pytest.raises(BundleError, match=VIDEO_ONNX.file):
            video_merges(open_bundle(tmp_path), Path(video))
