"""The rendered world: what its captions say is what its pictures show."""

import itertools
import json

import numpy as np
import polars as pl
import pytest

from tempme_export.data import synthetic
from tempme_export.data.annotations import open_data
from tempme_export.data.synthetic import MOVES, Scene, all_scenes, draw_pictures, draw_splits, write_world
from tempme_export.errors import ExportError, InputError
from tempme_export.media.video import read_frames


def centres(pictures):
    """Where the shape is, [n, 2] as (x, y) in pixels: the middle of what differs from the border's colour."""
    found = []
    for picture in pictures:
        ground = np.median(np.concatenate([picture[0], picture[-1]]), axis=0)
        weight = np.abs(picture.astype(float) - ground).sum(axis=-1)
        weight[weight < 0.5 * weight.max()] = 0
        y, x = np.indices(weight.shape)
        found.append([(x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()])
    return np.array(found)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Seven training clips and five held-out ones."""
    folder = tmp_path_factory.mktemp("worlds") / "world"
    write_world(folder, train_clips=7, test_clips=5, seed=3, workers=1)
    return folder


@pytest.mark.parametrize("motion", itertools.permutations(MOVES, 2), ids="-".join)
def test_shape_moves_as_the_caption_says(motion):
    scene = Scene("white", "circle", *motion)
    assert scene.caption == f"a white circle moves {motion[0]}, then {motion[1]}"
    path = centres(list(draw_pictures(scene, 5)))
    half = len(path) // 2
    for step, (a, b) in zip(motion, ((0, half - 1), (half, -1)), strict=True):
        direction = (path[b] - path[a]) / np.linalg.norm(path[b] - path[a])
        np.testing.assert_allclose(direction, MOVES[step], atol=0.15)


def test_shape_stays_inside_whatever_is_drawn():
    for seed, scene in enumerate(all_scenes()[:60]):
        path = centres(list(draw_pictures(scene, seed)))
        assert path.min() > 5 and path.max() < synthetic.SIDE - 5


def test_reversal_shows_the_same_places_in_another_order():
    """What averaging frames cannot tell apart: over many clips, the places of a motion and of its reversal agree."""
    forth = [centres(list(draw_pictures(Scene("white", "square", "left", "up"), seed))) for seed in range(40)]
    back = [centres(list(draw_pictures(Scene("white", "square", "down", "right"), seed))) for seed in range(40)]
    mean_forth, mean_back = np.mean(forth, axis=0), np.mean(back, axis=0)[::-1]
    np.testing.assert_allclose(mean_forth, mean_back, atol=6)
    assert np.abs(mean_forth - mean_back[::-1]).max() > 12


def test_pictures_depend_on_the_seed_alone():
    scene = Scene("red", "cross", "up", "down")
    one, same, other = (np.stack(list(draw_pictures(scene, seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert one.shape == (synthetic.PICTURES, synthetic.SIDE, synthetic.SIDE, 3) and one.dtype == np.uint8


def test_splits():
    train, test = draw_splits(train_clips=500, test_clips=200, seed=0)
    assert len(train.scenes) == 500 and len(test.scenes) == 200
    assert len({scene.caption for scene in test.scenes}) == 200, "no two held-out clips are described alike"
    counts = [train.scenes.count(scene) for scene in all_scenes()]
    assert min(counts) >= 2 and max(counts) <= 3, "every caption is trained equally often"
    assert draw_splits(500, 200, 0) == (train, test)
    assert draw_splits(500, 200, 1) != (train, test)


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (5, 241)])
def test_counts_that_cannot_be_had(counts):
    with pytest.raises(InputError, match="240"):
        draw_splits(*counts, seed=0)


def test_world_is_a_data_set(world):
    for split, count in (("train", 7), ("test", 5)):
        data = open_data(f"synthetic:{world}", split)
        assert len(data.paths) == count and all(path.is_file() for path in data.paths)
        assert all(group in caption for group, caption in zip(data.groups, data.captions, strict=True))
    frames = read_frames(open_data(f"synthetic:{world}", "test").paths[0], 8)
    assert frames.shape == (8, synthetic.SIDE, synthetic.SIDE, 3)


def test_video_holds_what_was_drawn(world):
    scene = draw_splits(7, 5, 3)[1].scenes[2]
    row = pl.read_csv(world / "test.csv").row(2, named=True)
    assert row == {"video": "test/00002.mp4", "caption": scene.caption, "group": scene.look}
    drawn = np.stack(list(draw_pictures(scene, (3, True, 2))))
    found = read_frames(world / row["video"], synthetic.PICTURES)
    assert np.abs(drawn.astype(int) - found).mean() < 6, "compressed, but the same pictures"


def test_a_world_that_is_there_is_kept(world):
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    write_world(world, train_clips=7, test_clips=5, seed=3)
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before


def test_another_world_in_the_way(world, tmp_path):
    with pytest.raises(InputError, match=r"was rendered with .*'seed': 3.*Delete it"):
        write_world(world, train_clips=7, test_clips=5, seed=4)
    (tmp_path / "thesis.txt").write_text("a thesis")
    with pytest.raises(InputError, match="is no rendered world; it is left alone"):
        write_world(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "a thesis"


def test_a_full_disk_leaves_nothing(tmp_path, largest_file):
    with largest_file(1000), pytest.raises(ExportError, match="File too large"):
        write_world(tmp_path / "world", train_clips=1, test_clips=1, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_clip(tmp_path, recording):
    told = recording()
    write_world(tmp_path / "world", 2, 1, workers=1, progress=told)
    assert told.counts == [("rendering clips", done, 3) for done in range(4)]
    assert json.loads((tmp_path / "world/world.json").read_text())["test_clips"] == 1
