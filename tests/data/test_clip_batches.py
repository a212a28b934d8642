"""One loader, two ways with what cannot be read: left out of every batch, or black in its place."""

from contextlib import closing

import numpy as np
import pytest

from tempme_export.data.clip_batches import placed_batches, readable_batches
from tempme_export.errors import VideoError


class Numbered:
    """A source without files: clip i is full of i + 1; some cannot be read."""

    frames, size, allow_damaged = 2, 3, False

    def __init__(self, unreadable=()):
        self.unreadable, self.asked, self.taken, self.closed = set(unreadable), None, 0, False

    def __len__(self):
        return 100

    def stream(self, selected, workers=0, changes=None):
        self.asked = (list(selected), workers, changes)
        try:
            for i in selected:
                self.taken += 1
                yield i, VideoError(f"{i} is torn") if i in self.unreadable else self.picture(i)
        finally:
            self.closed = True

    @staticmethod
    def picture(i):
        return np.full((2, 3, 3, 3), i + 1, np.uint8)


def assert_full_of(batch, numbers):
    assert batch.pixels.dtype == np.uint8 and batch.pixels.shape == (len(numbers), 2, 3, 3, 3)
    assert all((pixels == number).all() for pixels, number in zip(batch.pixels, numbers, strict=True))


class TestReadable:
    @pytest.mark.parametrize(
        ("unreadable", "expected"),
        [
            ((), [(7, 2, 9), (4, 5)]),
            ((2,), [(7, 9, 4), (5,)]),
            ((7, 5), [(2, 9, 4), ()]),
            ((7, 2, 9, 4, 5), [()]),
        ],
    )
    def test_batches_are_full_of_what_can_be_read(self, unreadable, expected):
        source, failed = Numbered(unreadable), {}
        found = list(readable_batches(source, [7, 2, 9, 4, 5], 3, workers=4))
        assert [batch.indices for batch in found] == expected
        for batch in found:
            assert_full_of(batch, [i + 1 for i in batch.indices])
            assert not failed.keys() & batch.failed.keys()
            failed |= batch.failed
        assert failed == {i: f"{i} is torn" for i in unreadable}
        assert source.asked == ([7, 2, 9, 4, 5], 4, None) and source.closed

    def test_nothing_selected_is_an_empty_batch(self):
        (batch,) = readable_batches(Numbered(), [], 3)
        assert (batch.indices, batch.failed) == ((), {})
        assert_full_of(batch, [])

    def test_a_clip_twice_is_two_rows(self):
        batch, _ = readable_batches(Numbered(), [1, 1], 2)
        assert batch.indices == (1, 1)
        assert_full_of(batch, [2, 2])

    def test_no_clip_is_read_ahead_and_each_is_counted_when_it_is_done_with(self):
        source, seen = Numbered({0}), []
        with closing(readable_batches(source, range(9), 2, seen=seen.append)) as batches:
            assert next(batches).indices == (1, 2)
            assert (source.taken, seen) == (3, [1, 2])
            next(batches)
            assert (source.taken, seen) == (5, [1, 2, 3, 4])
        assert source.closed

    def test_an_error_of_the_source_is_raised(self):
        class Broken(Numbered):
            def picture(self, i):
                raise OSError("no disk")

        with pytest.raises(OSError, match="no disk"):
            next(readable_batches(Broken(), [0], 1))


class TestPlaced:
    def test_each_group_keeps_its_rows(self):
        source = Numbered({4})
        changes = [np.fliplr] * 6
        found = list(placed_batches(source, [[4, 0, 4], [], [8, 1, 2]], 1, changes))
        assert [list(batch.indices) for batch in found] == [[4, 0, 4], [], [8, 1, 2]]
        assert [batch.failed for batch in found] == [{4: "4 is torn"}, {}, {}]
        for batch, numbers in zip(found, ([0, 1, 0], [], [9, 2, 3]), strict=True):
            assert_full_of(batch, numbers)
        assert source.asked == ([4, 0, 4, 8, 1, 2], 1, changes) and source.closed

    def test_closing_it_closes_the_source(self):
        source = Numbered()
        batches = placed_batches(source, [[1], [2]])
        next(batches)
        batches.close()
        assert source.closed and source.taken == 1
