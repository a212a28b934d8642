"""MPEG transport streams: whether the packet at some place is whole.

FFmpeg flags a packet where the counter of its stream jumps. The jump may follow a whole packet: recordings are joined
end to end.
"""

from typing import BinaryIO

_PACKET = 188  # bytes
_SYNC = 0x47


def is_whole(file: BinaryIO, position: int | None) -> bool:
    """True where the packet that begins at a byte of the file is there up to its end.

    It is when its counter goes up by one each time and its last piece is filled up, as only last pieces are. One in 184
    needs no filling; it is not known to be whole.
    """
    if position is None:
        return False
    file.seek(position)
    pid, counter = None, 0
    filled = False
    while len(piece := file.read(_PACKET)) == _PACKET and piece[0] == _SYNC:
        begins, here = piece[1] & 0x40, int.from_bytes(piece[1:3], "big") & 0x1FFF
        if pid is None:
            pid = here
            if not begins:
                return False
        elif here != pid:
            continue
        elif begins:
            return filled
        elif piece[3] & 0x0F != (counter + 1) & 0x0F:
            return False
        counter = piece[3] & 0x0F
        clock = piece[3] & 0x20 and piece[4] and piece[5] & 0x10
        filled = bool(piece[3] & 0x20) and piece[4] != (7 if clock else -1)
    return False
