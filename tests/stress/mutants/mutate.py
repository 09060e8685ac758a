"""Makes hostile bytes from sound ones: damage to bytes, to JSON values, and to the lines of a text. Pure."""

import json
import random
from collections.abc import Callable
from typing import Any

WORDS = (
    *(b"null", b"NaN", b"-Infinity", b"1e999", b"-0.0", b"true", b"1" * 4400, b"9" * 400, b"18446744073709551616"),
    *(
        b'"\\ud800"',
        b'"\\u0000"',
        b"\x1b[31m",
        b"\r\n",
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"[" * 2000,
        b'{"":' * 300,
    ),
    *(
        b"../" * 8,
        b"/etc/passwd",
        b"\xe2\x80\xae",
        b"%s%n",
        b"{}",
        b"[]",
        b'""',
        b"*a",
        b"&a ",
        b"!!python/object:os.x {}",
    ),
)
SIZES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = (
    "",
    "../../outside",
    "/etc/passwd",
    "a\x00b",
    "\x1b]0;x\x07",
    "a\nb",
    "\u202e",
    "x" * 3000,
    "\ud800",
    "nan",
    "-1",
    "true",
)
NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    10**30,
    10**400,
    1e308,
    0.5,
    float("inf"),
    float("nan"),
    True,
)


def mutant(seed: bytes, draw: random.Random, others: tuple[bytes, ...] = (), *, is_json: bool = False) -> bytes:
    """One to four damages of sound content."""
    content = seed
    if is_json and draw.random() < 0.6:
        content = json_mutant(content, draw)
        if draw.random() < 0.8:
            return content
    for _ in range(draw.choice((1, 1, 1, 2, 2, 4))):
        content = draw.choice(DAMAGES)(content, draw, others)
    return content


def json_mutant(content: bytes, draw: random.Random) -> bytes:
    """One to three values of a JSON text replaced, left out, doubled or put one level down. Lines are one text each."""
    lines = content.splitlines(keepends=True) if content.count(b"\n{") else [content]
    at = draw.randrange(len(lines)) if lines else 0
    try:
        value = json.loads(lines[at])
    except (ValueError, IndexError, RecursionError):
        return content
    for _ in range(draw.choice((1, 1, 2, 3))):
        value = _changed(value, draw)
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")
    if draw.random() < 0.1:
        text = text.replace(b"{", b'{"' + draw.choice((b"rows", b"files", b"")) + b'": 1, ', 1)
    return b"".join([*lines[:at], text, b"\n" if len(lines) > 1 else b"", *lines[at + 1 :]])


def _changed(value: Any, draw: random.Random) -> Any:
    """The value with one of its parts, at any depth, replaced."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        if draw.random() < 0.15:
            return {name: inner for name, inner in value.items() if name != key}
        if draw.random() < 0.1:
            return value | {str(_hostile(draw)): value[key]}
        return value | {key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        if draw.random() < 0.2:
            return [*value[:at], *value[at + 1 :]] if draw.random() < 0.5 else [*value, value[at]]
        return [*value[:at], _changed(value[at], draw), *value[at + 1 :]]
    if isinstance(value, (int, float)) and abs(value) < 1e300 and draw.random() < 0.4:
        return value + draw.choice((-1, 1, 0.5, 10**6))
    if isinstance(value, str) and draw.random() < 0.4:
        at = draw.randint(0, len(value))
        return value[:at] + draw.choice(TEXTS) + value[at:]
    return _hostile(draw, value)


def _hostile(draw: random.Random, inner: Any = None) -> Any:
    kind = draw.random()
    if kind < 0.3:
        return draw.choice(NUMBERS)
    if kind < 0.6:
        return draw.choice(TEXTS)
    if kind < 0.75:
        return draw.choice((None, [], {}, [[]], [{}], {"": None}, [None], {"a": {"a": {}}}))
    if kind < 0.85:
        return [inner] * draw.choice((1, 2, 30))
    for _ in range(draw.choice((1, 5, 60, 400))):
        inner = [inner] if draw.random() < 0.5 else {"a": inner}
    return inner


# ---- damages of bytes


def _flip(content: bytes, draw: random.Random, _: Any) -> bytes:
    if not content:
        return b"\x00"
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _set_byte(content: bytes, draw: random.Random, _: Any) -> bytes:
    if not content:
        return b"\xff"
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    return bytes(changed)


def _set_size(content: bytes, draw: random.Random, _: Any) -> bytes:
    """Four or eight bytes, aligned, become a number of a size: offsets and lengths are stored so."""
    width = draw.choice((4, 8))
    if len(content) < width:
        return content
    at = draw.randrange(len(content) // 4) * 4
    number = draw.choice(SIZES) if draw.random() < 0.7 else draw.randrange(2 ** draw.randint(1, 8 * width))
    return content[:at] + (number % 2 ** (8 * width)).to_bytes(width, "little") + content[at + width :]


def _cut(content: bytes, draw: random.Random, _: Any) -> bytes:
    begin, length = _part(content, draw)
    return content[:begin] if draw.random() < 0.3 else content[:begin] + content[begin + length :]


def _double(content: bytes, draw: random.Random, _: Any) -> bytes:
    begin, length = _part(content, draw)
    return content[: begin + length] + content[begin:]


def _zero(content: bytes, draw: random.Random, _: Any) -> bytes:
    begin, length = _part(content, draw)
    return content[:begin] + bytes(min(length, len(content) - begin)) + content[begin + length :]


def _insert(content: bytes, draw: random.Random, _: Any) -> bytes:
    begin, length = _part(content, draw)
    return content[:begin] + draw.choice(WORDS) + content[begin if draw.random() < 0.5 else begin + length :]


def _splice(content: bytes, draw: random.Random, others: tuple[bytes, ...]) -> bytes:
    other = draw.choice(others) if others else content
    begin, _ = _part(content, draw)
    at, length = _part(other, draw)
    return content[:begin] + other[at : at + length] + content[begin + length * draw.randrange(2) :]


def _swap(content: bytes, draw: random.Random, _: Any) -> bytes:
    begin, length = _part(content, draw)
    middle = begin + length // 2
    return content[:begin] + content[middle : begin + length] + content[begin:middle] + content[begin + length :]


def _part(content: bytes, draw: random.Random) -> tuple[int, int]:
    """Where a part begins, and how long it is: short ones more often."""
    begin = draw.randint(0, len(content))
    return begin, draw.randint(0, 2 ** draw.randint(0, max(1, len(content).bit_length() - 1)))


Damage = Callable[[bytes, random.Random, tuple[bytes, ...]], bytes]
DAMAGES: tuple[Damage, ...] = (_flip, _set_byte, _set_size, _set_size, _cut, _double, _zero, _insert, _splice, _swap)
