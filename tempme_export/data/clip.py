"""A video, or the part of one between two times."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Change = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]  # frames [F, H, W, 3] -> the same


@dataclass(frozen=True)
class Clip:
    """A video file, or a part of it. The same file with two ranges is two clips.

    start, end  seconds; None: from the beginning, to the end
    """

    path: Path
    start: float | None = None
    end: float | None = None

    def __str__(self) -> str:
        """The path; of a part, with its seconds as a media fragment: "a.mp4#t=2.5,10"."""
        if self.start is None and self.end is None:
            return str(self.path)
        ends = ("" if second is None else repr(second).removesuffix(".0") for second in (self.start, self.end))
        return f"{self.path}#t={','.join(ends)}"


@dataclass(frozen=True, kw_only=True)
class ChangedClip(Clip):
    """A clip whose frames [F, H, W, 3] are changed before they are resized, by the process that decodes them."""

    change: Change
