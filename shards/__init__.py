"""The cache: its format and its meaning. Needs numpy, pyarrow and zstandard, but not torch or transformers."""

from shards.cache import ShardCache
from shards.teacher.divergence import Divergence
from shards.teacher.spec import TeacherSpec

__all__ = ["Divergence", "ShardCache", "TeacherSpec"]
