"""One model, several threads: every caller gets its own answer, and each file is opened once."""

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

import tempme_export

THREADS, ROUNDS = 8, 3
TEXTS = [f"a {word} ball {moves}" for word in ("red", "green") for moves in ("rolls", "falls", "flies", "stays")]


@pytest.fixture(scope="module")
def videos(mini_bundle):
    """One for each thread, of odd sizes."""
    with tempme_export.load(mini_bundle) as model:
        frames = model.profile.frames
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (frames, 51 + i, 67 - i, 3), dtype=np.uint8) for i in range(THREADS)]


def at_once(work):
    """`work(i)` in as many threads, all let go at the same moment."""
    barrier = Barrier(THREADS)

    def run(i):
        barrier.wait()
        return work(i)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


def test_every_thread_gets_its_own_embeddings(mini_bundle, videos):
    """To the bit: one session and one shape choose one kernel, which adds up in one order, whoever calls it. The
    threads of a session share out rows and columns of a product, never its terms."""
    with tempme_export.load(mini_bundle) as model:
        video = [model.encode_video(one) for one in videos]
        text = [model.encode_text([one]) for one in TEXTS]

        def encode(i):
            return [(model.encode_video(videos[i]), model.encode_text([TEXTS[i]])) for _ in range(ROUNDS)]

        for i, rounds in enumerate(at_once(encode)):
            for found in rounds:
                np.testing.assert_array_equal(found[0], video[i])
                np.testing.assert_array_equal(found[1], text[i])
    assert len(np.unique(np.stack(video), axis=0)) == THREADS, "a mix-up would show"


@pytest.mark.parametrize("kind", ["loaded", "closed", "copied"])
def test_each_file_is_opened_once(mini_bundle, videos, kind, runs):
    """A copy opens its files anew, as an unpickled model does."""
    runtimes = [runs(name) for name in ("ort", "text-ort")]
    model = tempme_export.load(mini_bundle)
    if kind == "closed":
        model.close()
    elif kind == "copied":
        model = copy.copy(model)
    for runtime in runtimes if kind != "loaded" else ():
        runtime.opened.clear()
    at_once(lambda i: (model.encode_text([TEXTS[i]]), model.encode_video(videos[i])))
    assert [runtime.opened for runtime in runtimes] == [["video.onnx"], ["text.onnx"]]


def test_many_texts_are_run_in_bounded_parts(mini_bundle, mini_rounding, runs):
    """A model takes any number of texts; the memory for it does not grow with them. The last part is a smaller batch,
    for which a kernel may add up in another order."""
    text = runs("text-ort")
    with tempme_export.load(mini_bundle) as model:
        found = model.encode_text([TEXTS[i % 8] for i in range(1003)])
    batches = [len(inputs["token_ids"]) for inputs in text.seen]
    assert sum(batches) == 1003 and max(batches) <= 256
    np.testing.assert_allclose(found[1000:], found[:3], rtol=0, atol=mini_rounding["text"].difference)
