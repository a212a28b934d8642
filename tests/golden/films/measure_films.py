"""Ask decord and OpenCV what the films beside this file show: `python measure_films.py` writes expected.json.

Needs decord 0.6.0 and opencv-python-headless 4.10.0.84, whose FFmpeg (4 and 5) are others than PyAV's.
"""

import json
from pathlib import Path

import cv2
import decord
import numpy as np
from barcode import digest

HERE = Path(__file__).parent


def by_decord(path: Path) -> list[np.ndarray]:
    reader = decord.VideoReader(str(path))
    return [reader[place].asnumpy() for place in range(len(reader))]


def by_opencv(path: Path) -> list[np.ndarray]:
    reader, found = cv2.VideoCapture(str(path)), []
    while (answer := reader.read())[0]:
        found.append(answer[1][..., ::-1])
    return found


def seen(read, path: Path) -> dict[str, object] | None:
    try:
        pictures = read(path)
    except decord.DECORDError:
        return None
    return digest(pictures) if pictures else None


if __name__ == "__main__":
    films = sorted(
        path
        for path in HERE.iterdir()
        if path.is_file() and path.suffix not in (".py", ".json")
    )
    lines = [
        f" {json.dumps(path.name)}: {{\n"
        f'  "decord": {json.dumps(seen(by_decord, path))},\n'
        f'  "opencv": {json.dumps(seen(by_opencv, path))}\n }}'
        for path in films
    ]
    (HERE / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
