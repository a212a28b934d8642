"""The pictures of the films beside this file: each shows its number, and colours without edges, where converters to
RGB differ."""

import numpy as np

BITS = 8  # the first is white and the last black: which way up


def picture(number: int, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: above the number as a bar code, below a bright square that moves over colours."""
    y, x = np.mgrid[:height, :width]
    found = np.stack(
        [x * 150 // width + 20, y * 150 // height + 20, 180 - x * 150 // width], axis=2
    )
    left = number * 3 % (width - 16)
    found[height * 5 // 8 : height * 7 // 8, left : left + 16] += 60
    code = 1 << BITS - 1 | number << 1
    found[: height // 2] = (code >> (BITS - 1 - x * BITS // width) & 1)[
        : height // 2, :, None
    ] * 255
    return found.astype(np.uint8)


def number_of(picture: np.ndarray) -> int | None:
    """The number that a picture shows; None where it is not upright."""
    height, width = picture.shape[:2]
    white = [
        picture[height // 4, (2 * bit + 1) * width // (2 * BITS)].mean() > 127
        for bit in range(BITS)
    ]
    return (
        sum(int(bit) << place for place, bit in enumerate(white[-2:0:-1]))
        if white[0] and not white[-1]
        else None
    )


def colours(picture: np.ndarray) -> list[int]:
    """Mean R, G and B of 2 x 4 fields of the lowest three eighths."""
    rows = np.array_split(picture[picture.shape[0] * 5 // 8 :].astype(float), 2)
    return [
        round(float(mean))
        for row in rows
        for field in np.array_split(row, 4, 1)
        for mean in field.mean((0, 1))
    ]


def digest(pictures: np.ndarray | list[np.ndarray]) -> dict[str, object]:
    """What a reader made of a film: the shape of a picture, the number of each, colours of three of them."""
    return {
        "shape": list(pictures[0].shape),
        "numbers": [number_of(picture) for picture in pictures],
        "colours": [colours(pictures[place]) for place in (0, len(pictures) // 2, -1)],
    }
