import numpy as np
import pytest

from tempme_export.bench.memory import PROCESS, device_peak_mb, is_out_of_memory, measured

MB = 10**6
linux = pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="the system does not tell its memory")


@linux
def test_what_stays_and_what_was_there_for_a_while():
    def step():
        passing = np.ones(300 * MB, np.uint8)
        del passing
        return np.ones(100 * MB, np.uint8)

    kept, took = measured(step)
    assert len(kept) == 100 * MB
    assert 80 <= took.kept <= 160
    assert 280 <= took.peak <= 420


@linux
def test_a_peak_before_the_step_does_not_count():
    before = np.ones(400 * MB, np.uint8)
    del before
    _, took = measured(lambda: np.ones(50 * MB, np.uint8))
    assert took.peak <= 150


@linux
def test_memory_that_was_freed_counts_when_it_is_taken_again():
    small = [bytearray(50_000) for _ in range(4000)]  # below malloc's mmap threshold: freed, it stays on the heap
    del small
    _, took = measured(lambda: sum(map(len, [bytearray(50_000) for _ in range(4000)])))
    assert took.peak >= 150


@pytest.mark.parametrize("folder", ["nowhere", "."], ids=["no files", "a status without the field"])
def test_a_system_that_does_not_tell(tmp_path, folder):
    (tmp_path / "status").write_text("Name: python\n")
    assert measured(lambda: 7, tmp_path / folder) == (7, None)


def test_a_step_that_fails_fails():
    with pytest.raises(ZeroDivisionError):
        measured(lambda: 1 / 0)


def test_no_gpu_no_figure():
    assert device_peak_mb(lambda: pytest.fail("called"), "cpu") is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=str,
)
def test_every_runtime_says_it_in_its_own_way(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("a shape"), KeyboardInterrupt("out of memory")], ids=repr)
def test_other_errors_are_not_about_memory(error):
    assert not is_out_of_memory(error)
