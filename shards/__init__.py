"""The cache: its format and its meaning. Needs numpy, pyarrow and zstandard; no torch, no transformers."""

from shards.divergence import Divergence
from shards.reader import ShardCache
from shards.teacher import TeacherSpec

__all__ = ["Divergence", "ShardCache", "TeacherSpec"]
