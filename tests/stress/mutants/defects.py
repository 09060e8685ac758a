"""Defects planted to show that the campaign finds them."""

import contextlib
from collections.abc import Callable, Mapping

DEFECTS: Mapping[str, Callable[[], contextlib.AbstractContextManager[object]]] = {}
