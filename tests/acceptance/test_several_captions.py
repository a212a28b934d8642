"""Several captions per video: video-to-text as the field ranks it, beside the count over all captions."""

import numpy as np
import pytest

import tempme_export


@pytest.fixture(scope="module")
def asked(tmp_path_factory, scenes, write_film):
    """A table: every scene with three forms of its neighbour's caption and, now and then, its own."""
    folder = tmp_path_factory.mktemp("several")
    rows = []
    for i, (pictures, caption) in enumerate(scenes):
        write_film(folder / f"{i}.avi", pictures)
        rows += [(i, f"{scenes[i - 1][1]} {word}") for word in ("again", "slowly", "today")]
        rows += [(i, caption)] if i % 3 == 0 else []
    lines = [f'{i}.avi,"{caption}"' for i, caption in rows]
    (folder / "data.csv").write_text("\n".join(["video,caption", *lines, ""]))
    return folder, rows


def test_both_counts_of_video_to_text(asked, evaluate, mini_bundle):
    """Ranks by their definition, from the embeddings that anybody gets."""
    folder, rows = asked
    found = evaluate(folder / "data.csv")
    owner = np.array([i for i, _ in rows])
    videos = sorted(set(owner.tolist()))
    model = tempme_export.load(mini_bundle)
    scores = model.similarity([caption for _, caption in rows], [str(folder / f"{i}.avi") for i in videos])
    best = np.stack([scores[owner == i].max(axis=0) for i in videos])  # [captions of, video]
    by_caption = [1 + int((scores[owner != i, i] >= best[i, i]).sum()) for i in videos]
    by_video = [1 + int((np.delete(best[:, i], i) >= best[i, i]).sum()) for i in videos]
    assert by_caption != by_video
    for label, ranks, candidates in (
        ("video-to-text", by_caption, len(rows)),
        ("video-to-text by best caption", by_video, len(videos)),
    ):
        one = found["retrieval"][label]
        assert one["mean_rank"] == pytest.approx(np.mean(ranks)) and one["median_rank"] == np.median(ranks)
        assert (one["queries"], one["candidates"]) == (len(videos), candidates)
        for k in (1, 5, 10):
            assert one[f"r{k}"] == pytest.approx(100 * np.mean(np.array(ranks) <= k))
        assert f"\n{label}  " in found["said"], "the table says which is which"
    assert found["retrieval"]["text-to-video"]["queries"] == len(rows)


def test_one_caption_each_needs_one_count(world, evaluate):
    found = evaluate(world / "test.csv")
    assert "video-to-text" in found["retrieval"] and "video-to-text by best caption" not in found["retrieval"]
