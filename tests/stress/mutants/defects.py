"""Defects planted to show that the campaign finds them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from unittest import mock


DEFECTS: Mapping[str, Callable[[], contextlib.AbstractContextManager[object]]] = {}
