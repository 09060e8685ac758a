"""The errors that this software raises for its users.

Each one is an `AlignDistilError` and also a `ValueError` (a request that cannot be met) or an `OSError` (a file on
disk that is not as it should be). A message is one line: where, what was expected, what was found. The commands print
that line and exit with code 2.
"""

from itertools import takewhile

MAX_LINES = 4
"""The most lines taken from one sentence of another library's message."""
MAX_CHARACTERS, LAST_CHARACTERS = 1000, 120
"""The most characters of a message; so many of its end are kept, where the remedy is."""


def plain(text: str) -> str:
    """Text from anywhere, such as a damaged file, as one line of bounded length that does nothing to a terminal."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    if len(text) > MAX_CHARACTERS:
        text = f"{text[: MAX_CHARACTERS - LAST_CHARACTERS - 5]} ... {text[-LAST_CHARACTERS:]}"
    return text


def first_line(error: BaseException) -> str:
    """Another library's error in one line: its first sentence, and the first sentence of the error that caused it.

    Libraries announce ("an error occurred while ...") and keep the reason in `__cause__`. The last cause of the chain
    is added unless the message already contains it.
    """
    text, reason = _first_sentence(error), _first_sentence(root_of(error))
    return text if reason in text else f"{text.rstrip('.:')}: {reason}"


def root_of(error: BaseException) -> BaseException:
    """The last cause of an error; the error itself if it has none."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_sentence(error: BaseException) -> str:
    """The first line of a message, and the next lines as long as the sentence goes on."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if not lines:
        return type(error).__name__
    paragraph = list(takewhile(bool, lines))
    if paragraph[-1].endswith(":"):  # the text after the blank line belongs to it
        paragraph += [line for line in lines[len(paragraph) :] if line][:1]
    paragraph = paragraph[:MAX_LINES]
    ends = next((i for i, line in enumerate(paragraph) if line.endswith((".", "!", "?"))), len(paragraph) - 1)
    return " ".join(paragraph[: ends + 1])


class AlignDistilError(Exception):
    """Base of all errors of this package. Its message is `plain`, whatever a file made it say.

    given   the message as it was given; torch puts a worker's traceback there
    """

    def __init__(self, message: object) -> None:
        self.given = str(message)
        super().__init__(plain(self.given))


class OptionError(AlignDistilError, ValueError):
    """An option is out of range, or two options contradict each other."""


class DataError(AlignDistilError, ValueError):
    """A data file or one of its rows cannot be used."""


class ModelError(AlignDistilError, ValueError):
    """A model folder is incomplete, or a model computes something that this code cannot reproduce."""


class VocabularyMismatch(ModelError):
    """Two tokenizers that must be the same map a token to different ids."""


class NonFiniteLogits(ModelError):
    """A model gave a logit or a hidden state that is NaN or infinite."""


class BadStep(AlignDistilError, ValueError):
    """A step of a training gave a loss, a gradient or weights that are not finite, or far above those before."""


class ProcessLost(AlignDistilError, RuntimeError):
    """Another process of this run, or a worker of it, ended."""


class TeacherUnavailable(AlignDistilError, ValueError):
    """The cache lacks something that the requested teacher is composed from."""


class WrongValues(AlignDistilError, ValueError):
    """Values that no cache may hold were about to be written; nothing of them was."""


class CacheConflict(AlignDistilError, ValueError):
    """The output folder holds a different build, or caches to be read together differ."""


class CacheMissing(AlignDistilError, OSError):
    """There is no complete cache in the folder."""


class CacheDamaged(AlignDistilError, OSError):
    """A file of the cache is missing, truncated, altered or not in the format."""


class TransferFailed(AlignDistilError, OSError):
    """An object store gave no whole and readable answer, after all tries, or does not let us in."""
