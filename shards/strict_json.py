"""Reads JSON from files that may be damaged or hostile: one meaning for every text, and bounds on what it can hold.

Python's own reader takes more: of two equal keys the last one, NaN and Infinity, 1e999 as infinity, halves of surrogate
pairs, numbers of thousands of digits, and as many levels as its stack allows.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

MAX_LEVELS = 100
"""Objects and lists inside each other. What is read is walked by recursion later, by us and by other libraries."""
_LONG_NUMBER = re.compile(r"\d{19}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def loads(content: bytes | str, *, constants: bool = False, large: bool = False) -> Any:
    """The value of a JSON text. Raises ValueError for anything else than JSON within the bounds of this module.

    constants   also take NaN, Infinity and -Infinity, which Python's own writer writes, and numbers as large as these
    large       also take integers beyond 64 bits
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=None if constants else _refuse_constant,
            parse_float=None if constants else _finite,
            parse_int=_int64 if not large and _LONG_NUMBER.search(text) else None,
        )
    except RecursionError as exc:
        raise ValueError(f"more than {MAX_LEVELS} levels") from exc
    if _is_deeper(value):
        raise ValueError(f"more than {MAX_LEVELS} levels")
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in found if names.count(name) > 1)!r:.80} a second time")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name}, which JSON does not have")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.20}, which is beyond every float")
    return number


def _int64(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{text:.20}..., which is beyond 64 bits")
    return int(text)


def _is_deeper(value: Any) -> bool:
    """Whether there are more than MAX_LEVELS; without recursion."""
    level = [value]
    for _ in range(MAX_LEVELS + 1):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
