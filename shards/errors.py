"""The errors that this software raises for its users.

Every one is an `AlignDistilError` and also a `ValueError` (what was asked for cannot be) or an `OSError` (what lies on
disk is not what it should be). Messages are one line: where, what was expected, what was found. The commands print
that line and exit with code 2.
"""


def first_line(error: BaseException) -> str:
    """An error of another library in one line: the first of its message, with the next where it only announces it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


class AlignDistilError(Exception):
    """Base of all errors of this package."""


class OptionError(AlignDistilError, ValueError):
    """An option is out of its range, or two options contradict each other."""


class DataError(AlignDistilError, ValueError):
    """A data file or one of its rows cannot be used."""


class ModelError(AlignDistilError, ValueError):
    """A model folder is incomplete, or a model computes something that the code cannot follow."""


class VocabularyMismatch(ModelError):
    """Two tokenizers that must be the same map a token to different ids."""


class NonFiniteLogits(ModelError):
    """A model gave NaN or an infinite logit."""


class TeacherUnavailable(AlignDistilError, ValueError):
    """The cache does not hold what the asked-for teacher is composed from."""


class CacheConflict(AlignDistilError, ValueError):
    """The output folder holds another build, or caches that were to be read together differ."""


class CacheMissing(AlignDistilError, OSError):
    """There is no complete cache in the folder."""


class CacheDamaged(AlignDistilError, OSError):
    """A file of the cache is missing, cut short, altered or not of the format."""
