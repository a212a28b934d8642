"""Pictures to a video file, for the clips that this package renders itself."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tempme_export.errors import InputError
from tempme_export.media.video_stream import import_av

_CODECS = {".mp4": ("libx264", "mpeg4"), ".avi": ("mpeg4",)}

# One thread, since several cut the work by their number. x264's AVX-512 code gives other bytes from call to call
# (PyAV 18.1 on a Zen 5 EPYC, every clip of 96x64); its SSSE3 code gives what its AVX2 code gives, each time.
_REPEATABLE = {"libx264": {"threads": "1", "x264-params": "asm=ssse3"}, "mpeg4": {"threads": "1"}}


def check_video_path(path: Path) -> None:
    """Raises InputError unless the suffix is one that `write_video` can write."""
    if path.suffix not in _CODECS:
        raise InputError(f"found the suffix {path.suffix!r}, expected one of {', '.join(_CODECS)}. Rename the clip.")


def write_video(path: Path, pictures: Iterable[NDArray[np.uint8]], fps: int, size: tuple[int, int]) -> None:
    """Write H.264 (.mp4, where PyAV has the encoder) or MPEG-4 (.avi); an existing file is replaced.

    pictures  uint8 [H, W, 3] each, RGB
    fps       pictures per second
    size      width, height in pixels, both even
    Raises InputError for another suffix and BackendError without PyAV. The same pictures give the same bytes, on every
    x86 processor.
    """
    check_video_path(path)
    av = import_av()
    codec = next(name for name in _CODECS[path.suffix] if name in av.codecs_available)
    with av.open(f"file:{path}", "w", format=path.suffix[1:]) as container:
        stream = container.add_stream(codec, rate=fps, options=_REPEATABLE[codec])
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
