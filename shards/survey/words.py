"""Joins the tokens of a response to words. Pure."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Word(NamedTuple):
    """A word of a row: its text, and its tokens, begin <= index < end, of the row's input_ids."""

    text: str
    begin: int
    end: int


def words_of(pieces: Sequence[str], counted: Sequence[bool]) -> Iterator[Word]:
    """The words of a row, in order: runs of tokens with no white space where two of them meet.

    pieces: the text of each token (`TokenTexts.pieces`). counted: whether a token may be part of a word. Others, such
    as special tokens and tokens that are not distilled, separate words.

    A token is never cut: one that holds a space inside makes a word with a space. A token without a text of its own is
    the beginning of a character, and belongs to the word of that character. Tokens of white space belong to no word.
    """
    text, begin, silent = "", 0, 0  # silent: tokens without text since the last one with text
    for i, (piece, wanted) in enumerate(zip(pieces, counted, strict=True)):
        if not wanted or piece[:1].isspace():
            start = i if not wanted else i - silent
            if text.strip():
                yield Word(text.strip(), begin, start)
            text, begin = "", start
        silent = 0 if piece else silent + 1
        if not wanted:
            begin, silent = i + 1, 0
            continue
        text += piece
        if piece[-1:].isspace():
            if text.strip():
                yield Word(text.strip(), begin, i + 1)
            text, begin = "", i + 1
    if text.strip():
        yield Word(text.strip(), begin, len(pieces))
