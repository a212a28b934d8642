"""Data and an encoder -> embeddings, kept on disk where asked for -> retrieval metrics."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tempme_export.data.annotations import RetrievalData
from tempme_export.data.clip_batches import readable_batches
from tempme_export.data.clip_rows import ClipRows
from tempme_export.data.decoding import made_by
from tempme_export.data.frames import FrameSource
from tempme_export.data.store import RowStore
from tempme_export.errors import InputError, sentence
from tempme_export.evaluation.encoders import Encoder
from tempme_export.evaluation.metrics import Retrieval, best_caption_retrieval, group_retrieval, retrieval
from tempme_export.names import printable
from tempme_export.progress import SILENT, Progress

BATCH = 8  # videos per call
COLUMNS: Mapping[str, type[pl.DataType]] = {
    **dict.fromkeys(("data", "model", "backend", "direction"), pl.String),
    **dict.fromkeys(("R@1", "R@5", "R@10", "R-Sum", "MdR", "MnR"), pl.Float64),
    **dict.fromkeys(("queries", "candidates", "skipped"), pl.Int64),
}
BEST_CAPTION = "video-to-text by best caption"
_TEXTS = 256  # per call


class _Memory:
    """The part that a ClipRows or a RowStore plays here, for rows that nobody wants to keep."""

    def __init__(self, n: int, width: int) -> None:
        self._rows = np.zeros((n, width), np.float32)
        self.changed = np.zeros(n, np.bool_)
        self.failures: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def todo(self, retry: bool | NDArray[np.bool_] = False) -> list[int]:
        return list(range(len(self)))

    def read(self, indices: Any) -> NDArray[np.float32]:
        return self._rows[indices]

    def write(self, i: int, row: NDArray[np.float32]) -> None:
        self._rows[i] = row

    def fail(self, i: int, reason: str) -> None:
        self.failures[i] = reason

    def locked(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a data set, as the metrics take them.

    text     [T, E] float32, one for each caption of `data`
    video    [V, E] float32, one for each video of `data`
    data     without the videos that could not be read, and their captions
    skipped  {video id: why it could not be read}
    """

    text: NDArray[np.float32]
    video: NDArray[np.float32]
    data: RetrievalData
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def not_finite(self) -> int:
        """Embeddings with a NaN or an infinity; each of them counts against the model wherever it takes part."""
        return sum(int((~np.isfinite(side).all(axis=1)).sum()) for side in (self.text, self.video))


@dataclass(frozen=True)
class Evaluation:
    """Retrieval metrics of one encoder on one data set.

    data, encoder, backend  their names
    fingerprint             the encoder's
    best_caption            video-to-text among the best captions of the videos, as the field reports it; None where
                            each video has one
    in_groups               text-to-video within groups; None where the data has none
    skipped                 {video id: why it could not be read}
    not_finite              embeddings with a NaN or an infinity
    """

    data: str
    encoder: str
    backend: str
    fingerprint: str
    text_to_video: Retrieval
    video_to_text: Retrieval
    best_caption: Retrieval | None
    in_groups: Retrieval | None
    skipped: Mapping[str, str]
    not_finite: int = 0

    @property
    def directions(self) -> dict[str, Retrieval]:
        """Every result by its label."""
        found: dict[str, Retrieval] = {one.direction: one for one in (self.text_to_video, self.video_to_text)}
        if self.best_caption is not None:
            found[BEST_CAPTION] = self.best_caption
        if self.in_groups is not None:
            found[f"{self.in_groups.direction} in group"] = self.in_groups
        return found

    def to_frame(self) -> pl.DataFrame:
        """One row for each direction, the columns of `COLUMNS`; recalls in percent."""
        rows = [
            (
                *(self.data, self.encoder, self.backend, label),
                *(one.r1, one.r5, one.r10, one.r_sum, one.median_rank, one.mean_rank),
                *(one.queries, one.candidates, len(self.skipped)),
            )
            for label, one in self.directions.items()
        ]
        return pl.DataFrame(printable(rows), schema=dict(COLUMNS), orient="row")

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON: names, fingerprint, every direction by its label, and the skipped videos with their
        reasons."""
        return {
            "data": self.data,
            "model": self.encoder,
            "backend": self.backend,
            "fingerprint": self.fingerprint,
            "retrieval": {label: one.to_dict() for label, one in self.directions.items()},
            "skipped": dict(self.skipped),
            "not_finite": self.not_finite,
        }


def _open_videos(store: Path | None, data: RetrievalData, encoder: Encoder, source: FrameSource) -> ClipRows | _Memory:
    """The videos' embeddings, in a folder below `store` that belongs to the encoder and to what made the frames."""
    if store is None:
        return _Memory(len(data.clips), encoder.embed)
    frames = made_by(source.frames, source.size)
    digest = hashlib.sha256(json.dumps(frames).encode()).hexdigest()
    folder, key = store / f"{encoder.fingerprint[:16]}-{digest[:16]}", {"encoder": encoder.fingerprint, **frames}
    return ClipRows(folder, key, data.clips, (encoder.embed,), "float32", source.allow_damaged)


def _open_texts(store: Path | None, data: RetrievalData, encoder: Encoder) -> RowStore | _Memory:
    """The captions' embeddings, in a folder below `store` that belongs to the encoder."""
    if store is None:
        return _Memory(len(data.captions), encoder.embed)
    folder, key = store / f"{encoder.fingerprint[:16]}-texts", {"encoder": encoder.fingerprint}
    return RowStore(folder, key, [(caption,) for caption in data.captions], (encoder.embed,), "float32")


def _check_source(encoder: Encoder, data: RetrievalData, source: FrameSource) -> None:
    found = (len(source), source.frames, source.size)
    expected = (len(data.video_ids), encoder.frames, encoder.preprocess.size)
    if found != expected:
        raise InputError(
            "found a source of {} videos, {} frames of {} pixels, ".format(*found)
            + "expected {} videos, {} frames of {} pixels. ".format(*expected)
            + f"Open the source for {data.name} and {encoder.name}."
        )


def _embed_videos(
    encoder: Encoder, source: FrameSource, rows: ClipRows | _Memory, progress: Progress, batch: int, workers: int
) -> None:
    """Fill the rows that are empty, and try replaced files again. What was written stays when this is interrupted."""
    todo = rows.todo(retry=rows.changed)
    total = len(rows)
    done = total - len(todo)
    with (
        progress.step("encoding videos", total, "videos", done) as step,
        closing(readable_batches(source, todo, batch, workers, lambda seen: step.advance(done + seen))) as batches,
    ):
        for clips in batches:
            for i, reason in clips.failed.items():
                rows.fail(i, reason)
            if clips.indices:
                for i, row in zip(clips.indices, encoder.encode_frames(clips.pixels), strict=True):
                    rows.write(i, row)


def _embed_texts(encoder: Encoder, data: RetrievalData, rows: RowStore | _Memory, progress: Progress) -> None:
    """Fill the rows that are empty."""
    todo = rows.todo()
    total = len(rows)
    done = total - len(todo)
    with progress.step("encoding captions", total, "captions", done) as step:
        for start in range(0, len(todo), _TEXTS):
            part = todo[start : start + _TEXTS]
            try:
                found = encoder.encode_text([data.captions[i] for i in part])
            except InputError as error:
                which = f"captions {part[0]} to {part[-1]} (text 0 is the first)"
                raise InputError(f"{data.name}, {which}: {error}") from error
            for i, row in zip(part, found, strict=True):
                rows.write(i, row)
            done += len(part)
            step.advance(done)


def embed(
    encoder: Encoder,
    data: RetrievalData,
    source: FrameSource,
    store: Path | None = None,
    progress: Progress = SILENT,
    *,
    batch: int = BATCH,
    workers: int = 0,
) -> Embeddings:
    """Encode every video and every caption.

    source   frames of `data`'s videos, in its order, as many and as large as the encoder takes
    store    folder where embeddings are kept: a file or a caption that it has for this encoder, and frames made as
             these, is not encoded again
    batch    videos per call of the encoder
    workers  processes that decode, where `source` decodes; 0: this one
    Videos that cannot be read are left out with their captions; in a store, that they could not is kept too.
    Raises InputError for a source of other videos or sizes, when no video can be read, and for a caption that the
    encoder refuses, or a store that another process is filling; ExportError for a store that cannot be written.
    """
    _check_source(encoder, data, source)
    videos = _open_videos(store, data, encoder, source)
    with videos.locked():
        _embed_videos(encoder, source, videos, progress, batch, workers)
    lost = videos.failures
    keep = [i for i in range(len(data.clips)) if i not in lost]
    skipped = {data.video_ids[i]: lost[i] for i in sorted(lost)}
    if not keep:
        first = next(iter(skipped.values()))
        raise InputError(
            f"{data.name}: found none of {len(skipped)} videos readable, the first because: {sentence(first)} "
            "Check where the videos lie (--videos)."
        )
    kept = data.select(keep)
    texts = _open_texts(store, kept, encoder)
    with texts.locked():
        _embed_texts(encoder, kept, texts, progress)
    return Embeddings(texts.read(slice(None)), videos.read(keep), kept, skipped)


def score(found: Embeddings, encoder: Encoder, backend: str = "") -> Evaluation:
    """Metrics of embeddings that an encoder made."""
    data = found.data
    text_to_video, video_to_text = retrieval(found.text, found.video, data.owner)
    return Evaluation(
        data=data.name,
        encoder=encoder.name,
        backend=backend,
        fingerprint=encoder.fingerprint,
        text_to_video=text_to_video,
        video_to_text=video_to_text,
        best_caption=best_caption_retrieval(found.text, found.video, data.owner),
        in_groups=group_retrieval(found.text, found.video, data.owner, data.groups),
        skipped=found.skipped,
        not_finite=found.not_finite,
    )


def evaluate(
    encoder: Encoder,
    data: RetrievalData,
    source: FrameSource,
    store: Path | None = None,
    progress: Progress = SILENT,
    *,
    backend: str = "",
    batch: int = BATCH,
    workers: int = 0,
) -> Evaluation:
    """Encode, then score. `backend` is a name for the report; the rest, and what is raised, as `embed`."""
    return score(embed(encoder, data, source, store, progress, batch=batch, workers=workers), encoder, backend)
