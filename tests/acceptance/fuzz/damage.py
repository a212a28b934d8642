"""Damage to bytes, to documents and to archives. All of it is drawn from one `random.Random`."""

import copy
import io
import json
import math
import zipfile
from random import Random
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf,
    "", "checkpoint", "\0", "é\u202e\U0001d54f", "../../x", "x" * 5000, b"bytes",
    [], {}, [1], [[]], [1, "2", None], {"a": 1},
)  # fmt: skip
_DEEP = 100_000  # levels; Python's own limit is 1000


def _flip(rng: Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 3, 30))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(rng: Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _cut_out(rng: Random, data: bytearray) -> None:
    start, end = _region(rng, data)
    del data[start:end]


def _zero(rng: Random, data: bytearray) -> None:
    start, end = _region(rng, data)
    data[start:end] = bytes(end - start)


def _noise(rng: Random, data: bytearray) -> None:
    start, end = _region(rng, data)
    data[start:end] = rng.randbytes(end - start)


def _repeat(rng: Random, data: bytearray) -> None:
    start, end = _region(rng, data)
    data[end:end] = data[start:end] * rng.choice((1, 1, 5))


def _move(rng: Random, data: bytearray) -> None:
    start, end = _region(rng, data)
    moved = data[start:end]
    del data[start:end]
    place = rng.randrange(len(data) + 1)
    data[place:place] = moved


def _number(rng: Random, data: bytearray) -> None:
    """A length, an offset or a count becomes an extreme one."""
    width = rng.choice((1, 2, 4, 8))
    place = rng.randrange(len(data))
    value = rng.choice((0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1))
    data[place : place + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _append(rng: Random, data: bytearray) -> None:
    data += rng.choice((b"\0", b"\xff" * 100, rng.randbytes(1000), bytes(data[: rng.randrange(1, 5000)])))


_DAMAGES = (_flip, _flip, _cut, _cut_out, _zero, _noise, _repeat, _move, _number, _number, _append)


def _region(rng: Random, data: bytearray) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((1, 4, 64, 1000, len(data) // 3 + 1)))


def damage_bytes(rng: Random, data: bytes, other: bytes = b"") -> bytes:
    """One to three damages, or the beginning of `data` and the end of `other`. Half of them fall into the first or
    last kilobyte, where headers and directories lie."""
    if other and rng.random() < 0.1:
        return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.choice((slice(0, None), slice(0, None), slice(0, 1024), slice(-1024, None)))
        part = found[place]
        if part:
            rng.choice(_DAMAGES)(rng, part)
            found[place] = part
    return bytes(found)


def damage_text(rng: Random, text: str) -> bytes:
    """Damage to a text as a text: lines, brackets, nesting, encodings; or to its bytes."""
    lines = text.splitlines()
    match rng.randrange(7):
        case 0:
            rng.shuffle(lines)
        case 1:
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
        case 2:
            del lines[rng.randrange(len(lines))]
        case 3:
            begin, level = rng.choice((("", "["), ("", '{"a":'), ("a = ", "["), ("a = ", "{b = ")))
            lines[rng.randrange(len(lines))] = begin + level * rng.choice((100, _DEEP))
        case 4:
            return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
        case 5:
            lines[rng.randrange(len(lines))] += rng.choice(("\0", "é", "\u2028", "=", "]", '"', "\\u0000", "9" * 5000))
        case _:
            return damage_bytes(rng, text.encode())
    return "\n".join(lines).encode()


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path to a value inside."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [place for key, value in items for place in ((*path, key), *_places(value, (*path, key)))]


def _nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def damage_document(rng: Random, document: Any) -> Any:
    """A copy in which one to three values were replaced, removed, renamed, nested or exchanged."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = _places(document)
        if not places:
            return rng.choice(ODD_VALUES)
        path = rng.choice(places)
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        key, value = path[-1], parent[path[-1]]
        match rng.randrange(8):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice((f"{key}_", f"{key}é", "", "unknown", str(key).upper()))] = parent.pop(key)
            case 2:
                parent[key] = _nested(rng.choice((1, 50, 400)))
            case 3:
                parent[key] = rng.choice(([value], {"x": value}, str(value)))
            case 4 if isinstance(value, int | float):
                parent[key] = rng.choice((-value, value + 1, value - 1, value * 10**6, float(value), value / 3))
            case 5 if isinstance(value, list):
                parent[key] = rng.choice((value * 2, value[:-1], value[::-1], [*value, value]))
            case _:
                parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return document


def to_json(document: Any) -> bytes:
    """As JSON; what JSON has no word for becomes a text."""
    return (json.dumps(document, indent=1, ensure_ascii=False, default=repr) + "\n").encode(errors="surrogatepass")


def to_toml(document: Any) -> bytes:
    """As TOML with inline tables; not always valid TOML."""

    def value(x: Any) -> str:
        match x:
            case bool():
                return str(x).lower()
            case int() | float():
                return str(x)
            case list():
                return f"[{', '.join(map(value, x))}]"
            case dict():
                return "{" + ", ".join(f"{json.dumps(str(k))} = {value(v)}" for k, v in x.items()) + "}"
            case _:
                return json.dumps(x if isinstance(x, str) else repr(x), ensure_ascii=False)

    lines = [f"{json.dumps(str(k))} = {value(v)}" for k, v in document.items()] if isinstance(document, dict) else []
    return "\n".join(lines or [value(document)]).encode()


def damage_zip(rng: Random, data: bytes) -> bytes:
    """The archive written again with one member damaged, dropped, renamed, doubled or exchanged; checksums fit."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    weights = [1 + 20 * name.endswith((".pkl", ".npy")) for name, _ in members]
    at = rng.choices(range(len(members)), weights)[0]
    name, content = members[at]
    match rng.randrange(6):
        case 0:
            del members[at]
        case 1:
            members[at] = (rng.choice((name + "x", "x/" + name, "../" + name, "é" + name)), content)
        case 2:
            members.append((name, content[::-1]))
        case 3:
            members[at] = (name, rng.choice(members)[1])
        case _:
            members[at] = (name, damage_bytes(rng, content) if content else b"x")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def damage_safetensors(rng: Random, data: bytes) -> bytes:
    """The header damaged as a document, with its length right."""
    length = int.from_bytes(data[:8], "little")
    header = to_json(damage_document(rng, json.loads(data[8 : 8 + length])))
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
