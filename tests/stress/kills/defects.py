"""Defects planted on purpose, which the campaign must find."""

import contextlib
from collections.abc import Callable

DEFECTS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {}
