"""Bytes that each fused call has to move: every input read once and every output written once.

B rows, N tokens of D channels, R tokens merged; `e` bytes per channel of a token. Scores, split rows and anything
else a kernel keeps to itself are not counted, so a rate above the device's copy means that caches helped, and a low
one that the time goes elsewhere. Sizes, biases and LayerNorm parameters are float32, assignments int32: 4 bytes.
"""

_WIDE = 4


def add_norm(rows: int, tokens: int, width: int, e: int) -> int:
    """Reads x, delta, weight, bias; writes the sum and its LayerNorm: 4 B N D e + 2 * 4 D."""
    return 4 * rows * tokens * width * e + 2 * _WIDE * width


def attention(rows: int, tokens: int, width: int, e: int, *, bias: bool) -> int:
    """Reads qkv (3 B N D e) and the bias (4 B N); writes B N D e."""
    return 4 * rows * tokens * width * e + bias * _WIDE * rows * tokens


def attention_match(rows: int, tokens: int, width: int, e: int, *, bias: bool) -> int:
    """As `attention`, since the keys are read once for both; also writes the assignment: 4 B N."""
    return attention(rows, tokens, width, e, bias=bias) + _WIDE * rows * tokens


def match_clips(rows: int, tokens: int, width: int, e: int, *, delta: bool) -> int:
    """Reads x and delta (B N D e each, of the joined clips); writes the assignment: 4 B N."""
    return (1 + delta) * rows * tokens * width * e + _WIDE * rows * tokens


def merge_norm(
    rows: int, tokens: int, width: int, e: int, r: int, *, delta: bool, size: bool, positions: int = 0
) -> int:
    """Reads x and delta (B N D e each), assignment and sizes (4 B N each), positions (P D e), weight and bias (4 D
    each); writes merged tokens and their LayerNorm (B (N - R) D e each), sizes and their logarithms
    (4 B (N - R) each)."""
    read = (1 + delta) * rows * tokens * width * e + (1 + size) * _WIDE * rows * tokens
    read += positions * width * e + 2 * _WIDE * width
    return read + 2 * rows * (tokens - r) * (width * e + _WIDE)
