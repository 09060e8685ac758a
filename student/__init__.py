"""Distilling a student from a cache. Reads `shards`; never sees the models that built it."""

from student.data import CachedResponses
from student.options import DistillArguments
from student.trainer import DistillTrainer

__all__ = ["CachedResponses", "DistillArguments", "DistillTrainer"]
