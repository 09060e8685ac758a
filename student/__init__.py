"""Distils a student from a cache. Reads `shards`; runs no teacher model."""

from student.data.responses import CachedResponses
from student.options import DistillArguments
from student.trainer import DistillTrainer

__all__ = ["CachedResponses", "DistillArguments", "DistillTrainer"]
