"""The errors that this software raises for its users.

Every one is an `AlignDistilError` and also a `ValueError` (what was asked for cannot be) or an `OSError` (what lies on
disk is not what it should be). Messages are one line: where, what was expected, what was found. The commands print
that line and exit with code 2.
"""

from itertools import takewhile

MAX_LINES = 4
"""Lines of one sentence that are taken from another library's message."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line: its first sentence, and that of the cause it was raised from.

    Libraries announce ("an error occurred while ...") and keep the reason in `__cause__`; the last of that chain is
    added unless the message names it already.
    """
    text = _first_sentence(error)
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    reason = _first_sentence(root)
    return text if reason in text else f"{text.rstrip('.:')}: {reason}"


def _first_sentence(error: BaseException) -> str:
    """The first line of a message, with the lines behind it for as long as the sentence goes on."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if not lines:
        return type(error).__name__
    paragraph = list(takewhile(bool, lines))
    if paragraph[-1].endswith(":"):  # it announces what stands behind the blank line
        paragraph += [line for line in lines[len(paragraph) :] if line][:1]
    paragraph = paragraph[:MAX_LINES]
    ends = next((i for i, line in enumerate(paragraph) if line.endswith((".", "!", "?"))), len(paragraph) - 1)
    return " ".join(paragraph[: ends + 1])


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
