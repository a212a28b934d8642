"""What is kept, what a kill leaves, and what is refused."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tempme_export.data.disk import Disk
from tempme_export.data.store import EMPTY, FAILED, FILLED, RowStore, bytes_needed
from tempme_export.errors import ExportError, InputError

KEY = {"model": "a", "frames": 3}
N, SHAPE, DTYPE = 5, (2, 3), "float32"
NAMES = [("caf\udce9", i, None) for i in range(N)]


def open_store(folder, key=KEY, n=N, shape=SHAPE, dtype=DTYPE, **disk):
    return RowStore(folder, key, [("caf\udce9", i, None) for i in range(n)], shape, dtype, **disk)


def row(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def refusal(error, call, *arguments, **named):
    with pytest.raises(error, match=r"found (.|\n)*expected (.|\n)*\.") as caught:
        call(*arguments, **named)
    return str(caught.value)


def run_until_killed(code, folder):
    """Run code that ends in its own SIGKILL, with `store` open in the folder."""
    start = (
        "import os, signal, sys\nimport numpy as np\nfrom pathlib import Path\n"
        "from tempme_export.data.store import RowStore\n"
        f"store = RowStore(Path(sys.argv[1]), {KEY!r}, {NAMES!r}, {SHAPE}, {DTYPE!r})\n"
    )
    code = f"{start}{code}\nos.kill(os.getpid(), signal.SIGKILL)\n"
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


# what is kept


def test_rows_in_any_order_are_there_again(tmp_path):
    store = open_store(tmp_path / "store")
    assert store.states().tolist() == [EMPTY] * N and not store.read(slice(None)).any()
    for i in (3, 0):
        store.write(i, row(i))
    store.fail(1, "no such video")
    del store
    again = open_store(tmp_path / "store")
    assert again.states().tolist() == [FILLED, FAILED, EMPTY, FILLED, EMPTY]
    np.testing.assert_array_equal(again.read([0, 3]), [row(0), row(3)])
    assert again.failures == {1: "no such video"}
    assert again.read(0).dtype == np.float32 and again.read(slice(None)).shape == (N, *SHAPE)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, N - 1), st.one_of(st.integers(0, 99), st.text(max_size=6))), max_size=20))
def test_the_last_word_on_each_row_counts(tmp_path_factory, events):
    """A number writes the row, a text fails it; the store is opened anew halfway."""
    folder = tmp_path_factory.mktemp("store") / "store"
    store = open_store(folder)
    expected = {}
    for number, (i, event) in enumerate(events):
        if number == len(events) // 2:
            store = open_store(folder)
        if isinstance(event, int):
            store.write(i, row(event))
        else:
            store.fail(i, event)
        expected[i] = event
    for found in (store, open_store(folder)):
        assert found.failures == {i: event for i, event in expected.items() if isinstance(event, str)}
        states = [EMPTY if i not in expected else FILLED if isinstance(expected[i], int) else FAILED for i in range(N)]
        assert found.states().tolist() == states
        for i in np.flatnonzero(found.states() == FILLED):
            np.testing.assert_array_equal(found.read(i), row(expected[int(i)]))


def test_another_opener_sees_rows_at_once(tmp_path):
    store, reader = open_store(tmp_path), open_store(tmp_path)
    store.write(2, row(2))
    assert reader.states(2) == FILLED
    np.testing.assert_array_equal(reader.read(2), row(2))


def test_the_byte_comes_after_the_row(tmp_path):
    class Full:
        shape, dtype = (N, *SHAPE), np.dtype(DTYPE)

        def __setitem__(self, i, value):
            raise OSError(errno.EIO, "the disk is gone")

    store = open_store(tmp_path)
    store._rows = Full()
    with pytest.raises(OSError):
        store.write(0, row(0))
    assert store.states(0) == EMPTY


def test_every_block_is_allocated(tmp_path):
    n, shape = 100, (1000,)
    open_store(tmp_path, n=n, shape=shape, dtype="uint8")
    stats = [(tmp_path / name).stat() for name in ("rows.bin", "done.bin")]
    assert [stat.st_size for stat in stats] == [100_000, 100]
    assert sum(stat.st_size for stat in stats) == bytes_needed(n, shape, "uint8")
    assert all(stat.st_blocks * 512 >= stat.st_size for stat in stats)
    assert bytes_needed(7, (2, 3), "float32") == 7 * (2 * 3 * 4 + 1)


class Refusing(Disk):
    """A disk that refuses to allocate, from the second time on where `once` it may."""

    def __init__(self, refusal, once=False):
        self.refusal, self.left = refusal, int(once)

    def allocate(self, descriptor, start, size):
        self.left -= 1
        if self.left < 0:
            raise self.refusal
        super().allocate(descriptor, start, size)


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL])
def test_file_systems_that_cannot_allocate_are_written_through(tmp_path, error):
    n, size = 5, (1 << 24) // 3  # five thirds of a block
    store = open_store(tmp_path, n=n, shape=(size,), dtype="uint8", disk=Refusing(OSError(error, "no")))
    stat = (tmp_path / "rows.bin").stat()
    assert stat.st_size == n * size and stat.st_blocks * 512 >= stat.st_size
    assert not store.read(slice(None)).any()


# what a kill leaves


def test_a_killed_process_loses_no_row(tmp_path):
    run_until_killed(
        "for i in (4, 1):\n    store.write(i, np.full((2, 3), i, np.float32))\nstore.fail(0, 'x')", tmp_path
    )
    store = open_store(tmp_path)
    assert store.states().tolist() == [FAILED, FILLED, EMPTY, EMPTY, FILLED]
    assert store.read([1, 4])[:, 1, 2].tolist() == [1, 4] and store.failures == {0: "x"}


def test_half_a_line_of_a_reason_is_passed_over(tmp_path):
    store = open_store(tmp_path)
    store.fail(0, "first")
    with (tmp_path / "failed.jsonl").open("ab") as stream:
        stream.write(b'{"row": 1, "rea')
    store = open_store(tmp_path)
    assert store.failures == {0: "first"}
    store.fail(2, "gr\u00fc\u00dfe\n\u2028")
    assert open_store(tmp_path).failures == {0: "first", 2: "gr\u00fc\u00dfe\n\u2028"}


def test_a_reason_without_its_byte_is_no_failure(tmp_path):
    open_store(tmp_path)
    (tmp_path / "failed.jsonl").write_text('{"row": 1, "reason": "killed before the byte"}\n')
    assert open_store(tmp_path).failures == {}


def test_a_byte_without_its_reason_is_a_failure(tmp_path):
    open_store(tmp_path).fail(np.int64(3), "gone soon")
    (tmp_path / "failed.jsonl").unlink()
    assert open_store(tmp_path).failures == {3: "its reason is not on record"}


def test_a_store_killed_in_the_making_is_made_anew(tmp_path):
    for name in ("lock", "rows.bin", "done.bin", "key.json.new", "failed.jsonl"):
        (tmp_path / name).write_bytes(b"" if name == "lock" else b'{"row": 0, "reason": "of old"}\n' * 20)
    store = open_store(tmp_path)
    assert not store.read(slice(None)).any() and not store.states().any()
    store.fail(1, "of now")
    assert open_store(tmp_path).failures == {1: "of now"}


# one process fills


def test_the_second_who_fills_is_refused(tmp_path):
    first, second = open_store(tmp_path), open_store(tmp_path)
    with first.locked():
        said = refusal(InputError, second.locked().__enter__)
        assert str(tmp_path) in said and "being filled by another process" in said
    with second.locked():
        second.write(0, row(0))


def test_a_killed_process_keeps_no_lock(tmp_path):
    run_until_killed("held = store.locked()\nheld.__enter__()", tmp_path)
    with open_store(tmp_path).locked():
        pass


def test_the_end_of_filling_forces_the_disk(tmp_path):
    forced = []

    class Watched(Disk):
        def force(self, rows):
            forced.append(rows.shape)

    store = open_store(tmp_path, disk=Watched())
    with store.locked():
        assert forced == []
    assert forced == [(N, *SHAPE), (N,)]  # rows before their bytes


def test_no_disk_to_force_is_said(tmp_path):
    class Broken(Disk):
        def force(self, rows):
            raise OSError(errno.EIO, "input/output error")

    store = open_store(tmp_path, disk=Broken())
    with pytest.raises(ExportError, match="input/output error"), store.locked():
        pass


def test_a_store_in_the_making_is_refused(tmp_path):
    store = open_store(tmp_path)
    with store.locked():
        (tmp_path / "key.json").unlink()
        assert "another process" in refusal(InputError, open_store, tmp_path)
    assert (tmp_path / "rows.bin").exists()


def test_no_locks_on_the_file_system(tmp_path):
    class Lockless(Disk):
        def lock(self, stream):
            raise OSError(errno.ENOLCK, "No locks available")

    assert "without locks" in refusal(ExportError, open_store, tmp_path / "store", disk=Lockless())


# other rows


@pytest.mark.parametrize(
    ("changes", "was", "expected"),
    [
        ({"key": {"model": "b", "frames": 3}}, "model a,", "model b."),
        ({"key": {"model": "b", "frames": 4}}, "model a, frames 3,", "model b, frames 4."),
        ({"key": {"model": "a"}}, "frames 3,", "frames None."),
        ({"key": {**KEY, "extra": 1}}, "extra None,", "extra 1."),
        ({"shape": (3, 2)}, "shape [2, 3],", "shape [3, 2]."),
        ({"dtype": "int32"}, "dtype <f4,", "dtype <i4."),
    ],
)
def test_another_key_is_refused(tmp_path, changes, was, expected):
    open_store(tmp_path).write(0, row(0))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    said = refusal(InputError, open_store, tmp_path, **changes)
    assert f"found rows kept for {was}" in said and f"expected {expected}" in said and f"Delete {tmp_path}" in said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_equal_key_opens(tmp_path):
    open_store(tmp_path, key={"sizes": (1, 2), "of": {"a": 1.5}})
    open_store(tmp_path, key={"of": {"a": 1.5}, "sizes": [1, 2]})


@pytest.mark.parametrize(
    "wrong", [row(0)[0], row(0).astype(np.float64), row(0)[None], row(0).T, np.float32(1).reshape(())]
)
def test_a_row_of_another_kind_is_refused(tmp_path, wrong):
    store = open_store(tmp_path)
    said = refusal(InputError, store.write, 0, wrong)
    assert str(list(wrong.shape)) in said and str(wrong.dtype) in said and "[2, 3] and dtype float32" in said
    assert not store.states().any() and not store.read(slice(None)).any()


@pytest.mark.parametrize("i", [-1, N])
def test_no_such_row(tmp_path, i):
    store = open_store(tmp_path)
    for call in (lambda: store.write(i, row(0)), lambda: store.fail(i, "x")):
        with pytest.raises(IndexError, match=f"row {i} of {N}"):
            call()
    assert not store.states().any() and not (tmp_path / "failed.jsonl").exists()


@pytest.mark.parametrize(("n", "shape"), [(0, (2,)), (3, (2, 0))])
def test_a_store_of_nothing(tmp_path, n, shape):
    assert f"{n} rows" in refusal(InputError, open_store, tmp_path / "store", n=n, shape=shape)
    assert not (tmp_path / "store").exists()


# growth


def test_new_names_are_added_and_old_rows_stay(tmp_path):
    store = open_store(tmp_path)
    store.write(3, row(3))
    entries = [("new", 0.5, "x"), NAMES[3], ("new", 0.5, "x"), ("new", 1, "x")]
    grown = RowStore(tmp_path, KEY, entries, SHAPE, DTYPE)
    assert grown.states().tolist() == [EMPTY, FILLED, EMPTY, EMPTY] and grown.todo() == [0, 2, 3]
    np.testing.assert_array_equal(grown.read(1), row(3))
    grown.write(2, row(7))
    grown.fail(3, "lost")
    assert grown.todo() == [] and grown.failures == {3: "lost"}
    store.write(0, row(0))  # who opened it before goes on
    assert [path.stat().st_size for path in (tmp_path / "rows.bin", tmp_path / "done.bin")] == [7 * 24, 7]
    again = RowStore(tmp_path, KEY, [*NAMES, *entries], SHAPE, DTYPE)
    np.testing.assert_array_equal(again.read([0, 3, 5, 7]), [row(0), row(3), row(7), row(7)])
    again.clear(5)
    assert again.states().tolist() == [FILLED, EMPTY, EMPTY, FILLED, EMPTY, EMPTY, FILLED, EMPTY, FAILED]


def test_what_a_kill_left_of_a_growth_goes(tmp_path):
    open_store(tmp_path).write(0, row(0))
    for name, left in (("rows.bin", b"x" * 30), ("done.bin", b"\1\1"), ("names.jsonl", b'["half')):
        with (tmp_path / name).open("ab") as stream:
            stream.write(left)
    assert open_store(tmp_path).states(0) == FILLED
    store = open_store(tmp_path, n=7)
    assert store.states().tolist() == [FILLED, *[EMPTY] * 6] and not store.read([5, 6]).any()


def test_a_store_that_is_being_filled_does_not_grow(tmp_path):
    store = open_store(tmp_path)
    with store.locked():
        open_store(tmp_path)
        assert "another process" in refusal(InputError, open_store, tmp_path, n=N + 1)


def test_a_growth_that_fails_leaves_the_store_as_it_was(tmp_path, largest_file):
    open_store(tmp_path).write(1, row(1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with largest_file(8 * 24):
        assert "GB free" in refusal(ExportError, open_store, tmp_path, n=9)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_older_layout_is_refused(tmp_path):
    open_store(tmp_path)
    key = json.loads((tmp_path / "key.json").read_text())
    for content in ({**key, "layout": 3}, {name: value for name, value in key.items() if name != "layout"}):
        (tmp_path / "key.json").write_text(json.dumps(content))
        said = refusal(InputError, open_store, tmp_path)
        assert f"layout {content.get('layout', 1)}, expected layout 2. Delete {tmp_path}" in said


# damage


def cut_rows(folder):
    os.truncate(folder / "rows.bin", 7)


@pytest.mark.parametrize(
    "damage",
    [
        cut_rows,
        lambda folder: (folder / "done.bin").unlink(),
        lambda folder: (folder / "names.jsonl").unlink(),
        lambda folder: (folder / "names.jsonl").write_text("3\n"),
        lambda folder: (folder / "key.json").write_text("[]"),
        lambda folder: (folder / "key.json").write_text('{"model": '),
        lambda folder: (folder / "key.json").write_bytes(b"\xff"),
    ],
)
def test_a_damaged_store_is_refused(tmp_path, damage):
    open_store(tmp_path)
    damage(tmp_path)
    said = refusal(InputError, open_store, tmp_path)
    assert "damaged" in said and f"Delete {tmp_path}" in said


# no room


def test_too_little_space_is_said_before(tmp_path):
    said = refusal(ExportError, open_store, tmp_path / "a" / "b", n=3000, shape=(10**15,), dtype="uint8")
    assert "GB free" in said and "3000000000.000 GB for 3000 rows" in said and str(tmp_path / "a" / "b") in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("room", "rows"),
    [(0, {}), (N * 24 - 1, {}), (N, {"shape": (1,), "dtype": "uint8"})],
    ids=["nothing", "half a store", "rows and no names"],
)
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, largest_file, room, rows):
    with largest_file(room):
        assert "GB free" in refusal(ExportError, open_store, tmp_path / "a" / "b", **rows)
    assert list(tmp_path.iterdir()) == []
    open_store(tmp_path / "a" / "b").write(0, row(0))  # and can be had later


def test_a_disk_with_largest_file_all_but_the_key_leaves_nothing(tmp_path, largest_file):
    with largest_file(N * 24), pytest.raises(ExportError, match=r"key\.json"):
        open_store(tmp_path / "a" / "b", key=KEY | {"model": "m" * 200})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_or_a_quota_that_is_full_is_told_by_its_size(tmp_path, error):
    disk = Refusing(OSError(error, "full"), once=True)
    assert "GB free" in refusal(ExportError, open_store, tmp_path / "a" / "b", disk=disk)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays(tmp_path, largest_file):
    with largest_file(7):
        refusal(ExportError, open_store, tmp_path)
    assert tmp_path.is_dir() and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.EIO, "input/output error")])
def test_stopped_in_the_making_leaves_nothing(tmp_path, stop):
    expected = ExportError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        open_store(tmp_path / "store", disk=Refusing(stop))
    assert expected is KeyboardInterrupt or "input/output error" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("months of work")
    assert "something else" in refusal(InputError, open_store, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "cannot be written" in refusal(ExportError, open_store, folder)


def test_the_key_can_be_read_by_people(tmp_path):
    open_store(tmp_path)
    assert json.loads((tmp_path / "key.json").read_text()) == {
        **KEY,
        "layout": 2,
        "shape": [2, 3],
        "dtype": "<f4",
    }
