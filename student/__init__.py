"""Distils a student from a cache. Reads `shards`; runs no teacher model."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student.data.responses import CachedResponses
    from student.options import DistillArguments
    from student.report.run import Run
    from student.trainer import DistillTrainer

__all__ = ["CachedResponses", "DistillArguments", "DistillTrainer", "Run"]

_HOMES = {
    "CachedResponses": "student.data.responses",
    "DistillArguments": "student.options",
    "DistillTrainer": "student.trainer",
    "Run": "student.report.run",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: `student.report` needs neither torch nor transformers."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
