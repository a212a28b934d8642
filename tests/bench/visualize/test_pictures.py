"""Merge pictures: every pixel says which token its patch belongs to, and no file that was there is touched."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tempme_export.artifacts.bundle import open_bundle
from tempme_export.bench.cases import Case
from tempme_export.bench.visualize.merges import Stage
from tempme_export.bench.visualize.pictures import draw_merges, draw_stage, save_pictures, token_colours
from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.encoder.recipe import prepare
from tempme_export.errors import ExportError, InputError, UsageError, VideoError
from tempme_export.media.render import render_clip

NAMES = ["stage-1.png", "stage-2.png", "merges.png", "merges.gif"]
GAP = 6  # pixels between drawn frames

# Two frames of 2 x 2 patches: token 5 lies in both frames, 9 is two patches of the second, the rest are alone.
GROUPS = np.array([[[5, 5], [1, 2]], [[5, 3], [9, 9]]], np.int64)


@pytest.fixture
def frames():
    """uint8 [2, 8, 8, 3]: noise."""
    return np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


@pytest.fixture
def stages():
    return [Stage("first: 2 clips", GROUPS, 2, 8), Stage("second: 1 clip", np.minimum(GROUPS, 3), 1, 5)]


def drawn(picture, count, grid):
    """The drawn frames without what lies around them: uint8 [F, T, T, 3]; one row of frames."""
    pixels = np.asarray(picture)
    side = (pixels.shape[1] - (count - 1) * GAP) // count
    assert side % grid == 0
    return np.stack([pixels[:side, f * (side + GAP) : f * (side + GAP) + side] for f in range(count)])


def patch_of(tiles, frame, row, column, grid):
    side = tiles.shape[1] // grid
    return tiles[frame, row * side : (row + 1) * side, column * side : (column + 1) * side]


class TestDrawStage:
    def test_fill_is_the_mean_of_all_the_tokens_patches(self, frames):
        tiles = drawn(draw_stage(frames, GROUPS), 2, 2)
        mean = np.rint(np.concatenate([frames[0, :4].reshape(-1, 3), frames[1, :4, :4].reshape(-1, 3)]).mean(axis=0))
        for frame, row, column in ((0, 0, 0), (0, 0, 1), (1, 0, 0)):
            inside = patch_of(tiles, frame, row, column, 2)[10:-10, 10:-10]
            assert inside.size > 0
            np.testing.assert_array_equal(inside, np.broadcast_to(mean, inside.shape))

    def test_border_lies_on_the_outer_edges_alone(self, frames):
        tiles = drawn(draw_stage(frames, GROUPS), 2, 2)
        colour = token_colours(GROUPS)[np.unique(GROUPS).tolist().index(5)]
        left, right = patch_of(tiles, 0, 0, 0, 2), patch_of(tiles, 0, 0, 1, 2)
        middle = slice(20, -20)
        for edge in (left[0, :], left[-1, :], left[:, 0], right[0, :], right[-1, :], right[:, -1]):
            np.testing.assert_array_equal(edge, np.broadcast_to(colour, edge.shape))
        for seam in (left[middle, -1], right[middle, 0]):
            assert not (seam == colour).all(axis=-1).any(), "patches of one token have no border between them"
        alone = patch_of(tiles, 1, 0, 0, 2)
        for edge in (alone[0], alone[-1], alone[:, 0], alone[:, -1]):
            np.testing.assert_array_equal(edge, np.broadcast_to(colour, edge.shape))

    def test_inner_corner_of_a_bent_region_is_closed(self, frames):
        bent = np.array([[[0, 0], [0, 1]]] * 2) + np.array([[[0]], [[2]]])
        tiles = drawn(draw_stage(frames, bent), 2, 2)
        colour = token_colours(bent)[0]
        np.testing.assert_array_equal(patch_of(tiles, 0, 0, 0, 2)[-1, -1], colour)
        assert not (patch_of(tiles, 0, 0, 0, 2)[-1, 20:-20] == colour).all(axis=-1).any()

    def test_a_token_of_one_patch_keeps_its_pixels(self, frames):
        side = 112
        expected = np.asarray(Image.fromarray(frames[0]).resize((side, side), Image.Resampling.BICUBIC))[side // 2 :]
        tiles = drawn(draw_stage(frames, GROUPS), 2, 2)
        for column in (0, 1):
            found = patch_of(tiles, 0, 1, column, 2)
            picture = expected[:, column * side // 2 : (column + 1) * side // 2]
            np.testing.assert_array_equal(found[1:-1, 1:-1], picture[1:-1, 1:-1])
            edge = np.rint(0.55 * picture[0].astype(float) + 0.45 * 128)
            assert np.abs(found[0].astype(float) - edge).max() <= 1, "a thin grey border"

    def test_the_ids_themselves_do_not_matter(self, frames):
        assert draw_stage(frames, GROUPS).tobytes() == draw_stage(frames, GROUPS * 1000 + 7).tobytes()

    def test_another_partition_is_another_picture(self, frames):
        other = GROUPS.copy()
        other[1, 0, 1] = 5
        assert draw_stage(frames, GROUPS).tobytes() != draw_stage(frames, other).tobytes()

    def test_the_frames_are_not_changed(self, frames):
        before = frames.copy()
        draw_stage(frames, GROUPS, 1)
        np.testing.assert_array_equal(frames, before)

    @pytest.mark.parametrize(
        ("count", "grid", "side", "columns", "rows"),
        [(1, 7, 112, 1, 1), (12, 7, 112, 12, 1), (64, 7, 112, 16, 4), (12, 14, 168, 12, 1), (21, 4, 112, 11, 2)],
    )
    def test_layout(self, count, grid, side, columns, rows):
        """A whole number of pixels for each patch; many frames are wrapped into rows of one length."""
        pixels = np.zeros((count, grid * 2, grid * 2, 3), np.uint8)
        groups = np.arange(count * grid**2).reshape(count, grid, grid)
        picture = draw_stage(pixels, groups)
        assert picture.size == (columns * (side + GAP) - GAP, rows * (side + GAP) - GAP)

    @pytest.mark.parametrize(("clips", "bars"), [(1, 1), (2, 2), (4, 4)])
    def test_a_bar_spans_each_clip(self, clips, bars):
        pixels = np.zeros((4, 8, 8, 3), np.uint8)
        picture = np.asarray(draw_stage(pixels, np.arange(16).reshape(4, 2, 2), clips))
        below = (picture[112 + 4] != 255).any(axis=-1)
        starts = below & ~np.concatenate([[False], below[:-1]])
        assert starts.sum() == bars
        assert below.sum() == 4 * 112 + (4 - bars) * GAP

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"groups": GROUPS[:1]}, r"groups of shape \[1, 2, 2\], expected \[2, g, g\]"),
            ({"groups": np.zeros((2, 3, 3), np.int64)}, "g a divisor of 8 pixels"),
            ({"groups": np.zeros((2, 2, 4), np.int64)}, r"groups of shape \[2, 2, 4\]"),
            ({"groups": np.zeros((2, 0, 0), np.int64)}, r"groups of shape \[2, 0, 0\]"),
            ({"frames": np.zeros((2, 8, 8, 3))}, r"frames float64 \[2, 8, 8, 3\], expected uint8 \[F, S, S, 3\]"),
            ({"frames": np.zeros((2, 8, 6, 3), np.uint8)}, r"frames uint8 \[2, 8, 6, 3\]"),
            ({"frames": np.zeros((2, 8, 8, 4), np.uint8)}, r"frames uint8 \[2, 8, 8, 4\]"),
            ({"frames": np.zeros((0, 8, 8, 3), np.uint8)}, r"frames uint8 \[0, 8, 8, 3\]"),
            ({"frames": np.zeros((8, 8, 3), np.uint8)}, r"frames uint8 \[8, 8, 3\]"),
            ({"clips": 3}, "found 3 clips of 2 frames"),
            ({"clips": 0}, "found 0 clips of 2 frames"),
        ],
    )
    def test_refused(self, frames, change, said):
        with pytest.raises(InputError, match=said):
            draw_stage(**{"frames": frames, "groups": GROUPS, **change})


class TestColours:
    @pytest.fixture(scope="class")
    def blocks(self):
        """[3, 14, 14]: regions of a few patches, some of them in two frames."""
        rng = np.random.default_rng(1)
        base = np.arange(49).reshape(7, 7).repeat(2, axis=0).repeat(2, axis=1)
        groups = np.stack([base, base + 49 * rng.integers(0, 2, (14, 14)), base + 98])
        return groups

    def test_tokens_that_touch_differ_clearly(self, blocks):
        ids = np.unique(blocks, return_inverse=True)[1].reshape(blocks.shape)
        counts, colours = np.bincount(ids.ravel()), token_colours(blocks).astype(float)
        pairs = set()
        for a, b in ((ids[:, 1:], ids[:, :-1]), (ids[:, :, 1:], ids[:, :, :-1])):
            pairs |= {(x, y) for x, y in zip(a.ravel(), b.ravel(), strict=True) if x != y}
        compared = [np.linalg.norm(colours[x] - colours[y]) for x, y in pairs if counts[x] > 1 and counts[y] > 1]
        assert len(compared) > 100
        assert min(compared) >= 90

    def test_no_two_tokens_share_one(self, blocks):
        counts = np.unique(blocks, return_counts=True)[1]
        colours = {tuple(colour) for colour in token_colours(blocks)[counts > 1].tolist()}
        assert len(colours) == (counts > 1).sum() > 100

    def test_none_for_a_token_of_one_patch(self):
        assert not token_colours(np.arange(8).reshape(2, 2, 2)).any()

    def test_the_same_every_time(self, blocks):
        np.testing.assert_array_equal(token_colours(blocks), token_colours(blocks.copy()))

    def test_bright_enough_for_a_dark_picture(self, blocks):
        counts = np.unique(blocks, return_counts=True)[1]
        assert (token_colours(blocks)[counts > 1] @ [0.299, 0.587, 0.114]).min() >= 88

    def test_a_token_that_stays_keeps_its_colour(self):
        """The last rows merge; the first row is as it was."""
        before = np.array([[[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5], [6, 6, 7, 7]]])
        after = np.where(before >= 6, 6, before)
        np.testing.assert_array_equal(token_colours(before)[:6], token_colours(after)[:6])

    def test_more_neighbours_than_colours(self):
        """The colour that differs most is taken; none is refused, and none is given twice in a row."""
        colours = token_colours(np.arange(32).repeat(2).reshape(1, 8, 8), apart=1000.0)
        assert len({tuple(colour) for colour in colours.tolist()}) == 32


class TestSavePictures:
    def test_files(self, frames, stages, tmp_path):
        paths = save_pictures(frames, stages, tmp_path / "new" / "folder")
        assert [path.name for path in paths] == NAMES
        assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(NAMES)

    def test_a_stage_is_drawn_as_it_is(self, frames, stages, tmp_path):
        paths = save_pictures(frames, stages, tmp_path)
        for path, stage in zip(paths, stages, strict=False):
            with Image.open(path) as picture:
                assert picture.format == "PNG"
                pixels = np.asarray(picture.convert("RGB"))
            expected = np.asarray(draw_stage(frames, stage.groups, stage.clips))
            assert contains(pixels, expected), path.name

    def test_overview_holds_the_video_and_every_stage_in_order(self, frames, stages, tmp_path):
        *_, overview, _ = save_pictures(frames, stages, tmp_path)
        with Image.open(overview) as picture:
            pixels = np.asarray(picture)
        tops = [top_of(pixels, np.asarray(draw_stage(frames, s.groups, s.clips))) for s in stages]
        plain = np.asarray(Image.fromarray(frames[0]).resize((112, 112), Image.Resampling.BICUBIC))
        tops.insert(0, top_of(pixels, plain))
        assert None not in tops
        assert all(below - above > 112 for above, below in itertools.pairwise(tops))

    def test_animation(self, frames, stages, tmp_path):
        *_, animation = save_pictures(frames, stages, tmp_path)
        with Image.open(animation) as picture:
            assert picture.format == "GIF"
            assert (picture.n_frames, picture.info["loop"]) == (1 + len(stages), 0)
            sizes, shown = set(), []
            for index in range(picture.n_frames):
                picture.seek(index)
                assert picture.info["duration"] == 1200
                sizes.add(picture.size)
                shown.append(picture.convert("RGB").tobytes())
        assert len(sizes) == 1 and len(set(shown)) == 3

    def test_the_same_every_time(self, frames, stages, tmp_path):
        first, second = (save_pictures(frames, stages, tmp_path / name) for name in "ab")
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]

    def test_titles_are_drawn(self, frames, stages, tmp_path):
        renamed = [Stage("another title", stage.groups, stage.clips, stage.tokens) for stage in stages]
        first, second = (save_pictures(frames, s, tmp_path / name) for s, name in ((stages, "a"), (renamed, "b")))
        assert all(a.read_bytes() != b.read_bytes() for a, b in zip(first, second, strict=True))

    def test_a_long_title_has_room(self, frames, stages, tmp_path):
        long = [Stage("words " * 60, stage.groups, stage.clips, stage.tokens) for stage in stages]
        with Image.open(save_pictures(frames, long, tmp_path)[0]) as picture:
            assert picture.width > 1000

    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_there_is_kept(self, frames, stages, tmp_path, name):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UsageError, match=f"already holds {name}"):
            save_pictures(frames, stages, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == "mine"

    def test_a_dangling_link_is_kept(self, frames, stages, tmp_path):
        (tmp_path / "merges.gif").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UsageError, match=r"already holds merges\.gif"):
            save_pictures(frames, stages, tmp_path)

    def test_other_files_are_no_hindrance(self, frames, stages, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        assert len(save_pictures(frames, stages, tmp_path)) == 4
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_folder_is_a_file(self, frames, stages, tmp_path):
        (tmp_path / "file").write_text("mine")
        for out in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(UsageError, match="cannot be a folder"):
                save_pictures(frames, stages, out)

    def test_full_disk(self, frames, stages, tmp_path, largest_file):
        with largest_file(1000), pytest.raises(ExportError, match="could not be written"):
            save_pictures(frames, stages, tmp_path)
        assert not list(tmp_path.iterdir())


def top_of(pixels, part):
    """The row at which `part` [h, w, 3] lies in `pixels` at the left margin; None where it does not."""
    height, width = part.shape[:2]
    margin = 20
    for top in range(pixels.shape[0] - height + 1):
        if np.array_equal(pixels[top : top + height, margin : margin + width], part):
            return top
    return None


def contains(pixels, part):
    return top_of(pixels, part) is not None


class TestDrawMerges:
    @pytest.fixture(scope="class")
    def video(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("video") / "clip.mp4"
        render_clip(path, seconds=2, fps=5, size=(96, 64), seed=3)
        return path

    @pytest.fixture(scope="class")
    def case(self, tiny):
        checkpoint, profile = tiny
        return Case(prepare(load_checkpoint(checkpoint), profile))

    def test_checkpoint(self, case, video, tmp_path):
        found = draw_merges(case, video, tmp_path / "out")
        names = [*(f"stage-{k}.png" for k in (1, 2, 3)), "merges.png", "merges.gif"]
        assert [path.name for path in found.paths] == names
        assert all(path.parent == tmp_path / "out" and path.stat().st_size > 0 for path in found.paths)
        assert [stage.title for stage in found.stages] == [
            "after block 1: 4 clips of 13 tokens",
            "after block 2: 2 clips of 18 tokens",
            "after block 3: 1 clip of 24 tokens",
        ]
        assert found.origin == f"the original path with {case.weights}"

    def test_bundle(self, case, tiny_bundle, video, tmp_path):
        """The graph decides as the original path does, so the pictures are the same."""
        first = draw_merges(open_bundle(tiny_bundle), video, tmp_path / "a")
        assert "video.onnx" in first.origin
        second = draw_merges(case, video, tmp_path / "b")
        assert [path.read_bytes() for path in first.paths] == [path.read_bytes() for path in second.paths]

    def test_refused_before_the_model_runs(self, case, tmp_path):
        """Nor is the video asked for, which is not there."""
        (tmp_path / "stage-3.png").write_text("mine")
        with pytest.raises(UsageError, match=r"already holds stage-3\.png"):
            draw_merges(case, tmp_path / "none.mp4", tmp_path)
        with pytest.raises(UsageError, match="cannot be a folder"):
            draw_merges(case, tmp_path / "none.mp4", tmp_path / "stage-3.png")

    def test_broken_video(self, case, tmp_path):
        (tmp_path / "broken.mp4").write_bytes(b"\0" * 100)
        with pytest.raises(VideoError, match=r"broken\.mp4"):
            draw_merges(case, tmp_path / "broken.mp4", tmp_path / "out")
        assert not list(Path(tmp_path / "out").glob("*.png"))
