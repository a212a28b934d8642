"""The C++ example beside Python: the same clips, the same embeddings?

    python examples/cpp/compare.py frames BUNDLE FRAMES.BIN
    build/cpp/encode BUNDLE/video.plan 6 FRAMES.BIN EMBEDDINGS.BIN
    python examples/cpp/compare.py embeddings BUNDLE EMBEDDINGS.BIN

The clips are those of the bundle's self-test, the embeddings to compare with those of the original path in float32.
Exits 5 where an embedding has not the length 1 or is nearer to another clip's than to its own: this finds frames or
rows in the wrong order. `tempme-export verify` checks the last digits.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tempme_export.artifacts.bundle import SELFTEST, Bundle, open_bundle
from tempme_export.errors import InputError, ParityError, TempMeExportError
from tempme_export.media.preprocess import preprocess_in
from tempme_export.parity.selftest import load_selftest
from tempme_export.parity.tolerance import UNIT_LENGTH


def write_frames(bundle: Bundle, path: Path) -> int:
    """Write the self-test's clips as the encoder takes them, float32 [V, F, 3, S, S]; how many there are."""
    preprocess = preprocess_in(bundle.manifest)
    clips = load_selftest(bundle.path / SELFTEST).clips
    path.write_bytes(np.stack([preprocess(clip) for clip in clips]).tobytes())
    return len(clips)


def cosines(bundle: Bundle, path: Path) -> NDArray[np.float64]:
    """Cosine of every embedding in a file of float32 [V, E] with every one of the original path: [V, V].

    Raises InputError for a file of another size, ParityError for an embedding that has not the length 1.
    """
    expected = load_selftest(bundle.path / SELFTEST).video_embedding.astype(np.float64)
    found = np.fromfile(path, np.float32).astype(np.float64)
    if found.size != expected.size:
        raise InputError(f"{path} holds {found.size} numbers, expected {expected.shape[0]} x {expected.shape[1]}.")
    found = found.reshape(expected.shape)
    length = np.linalg.norm(found, axis=1)
    if not (np.abs(length - 1) <= UNIT_LENGTH).all():
        raise ParityError(f"{path}: embeddings have the lengths {length.round(6).tolist()}, expected 1 for each.")
    return found @ expected.T


def check_own(table: NDArray[np.float64]) -> None:
    """Raise ParityError unless every row's largest cosine is the one with its own clip."""
    nearest = table.argmax(axis=1)
    if (nearest != np.arange(len(table))).any():
        raise ParityError(
            f"the clips are nearest to {nearest.tolist()}, expected each to itself: frames or rows differ."
        )


def main() -> None:
    """Entry point. A user's error is one message and its exit code."""
    parser = argparse.ArgumentParser(description="Compare the C++ example's embeddings with Python's.")
    parser.add_argument("what", choices=("frames", "embeddings"), help="write the frames, or compare the embeddings")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    try:
        bundle = open_bundle(given.bundle)
        if given.what == "frames":
            count = write_frames(bundle, given.file)
            print(f"wrote {count} clips to {given.file}. Encode them with:")
            print(f"  encode {bundle.path / 'video.plan'} {count} {given.file} embeddings.bin")
            return
        table = cosines(bundle, given.file)
        for clip, cosine in enumerate(table.diagonal()):
            print(f"clip {clip}: cosine {cosine:.7f} with the original path in Python")
        check_own(table)
    except (TempMeExportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code if isinstance(error, TempMeExportError) else 3) from None


if __name__ == "__main__":
    main()
