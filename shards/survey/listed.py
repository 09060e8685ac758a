"""The tokens and words that a survey lists, and which of them a response has."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from shards.format.scores import Response
from shards.survey.counts import MIN_COUNT, TOP, By, Ranked, Tops
from shards.survey.survey import Survey, row_words


@dataclass(frozen=True, slots=True)
class Listed:
    """The most rewarded and most punished tokens and words of a survey, by total and by mean, numbered from 0.

    orders   (kind, sorted by) -> the lists
    """

    survey: Survey
    orders: dict[tuple[str, By], Tops]
    numbers: dict[int | str, int]

    @classmethod
    def of(cls, survey: Survey, limit: int = TOP) -> "Listed":
        orders: dict[tuple[str, By], Tops] = {}
        for by in get_args(By):
            orders["token", by], orders["word", by] = survey.tokens(limit, by), survey.words(limit, by)
        keys = dict.fromkeys(_key(entry) for found in orders.values() for side in found for entry in side)
        return cls(survey, orders, {key: number for number, key in enumerate(keys)})

    def in_response(self, response: Response) -> list[int]:
        """The numbers of the listed tokens and words that a response has."""
        words = row_words(response.input_ids, response.loss_mask, self.survey.texts)
        found = {*response.input_ids[response.loss_mask].tolist(), *(word.text for word in words)}
        return sorted(self.numbers[key] for key in found & self.numbers.keys())

    def to_json(self) -> dict[str, Any]:
        """entries: number -> [text, token id or null, count, total]; orders: kind -> sorted by -> side -> numbers;
        min_count: how often each occurs at least."""
        known = {self.numbers[_key(e)]: e for found in self.orders.values() for side in found for e in side}
        entries = [[e.text, e.token_id, e.count, e.total] for _, e in sorted(known.items())]
        orders: dict[str, dict[str, Any]] = {"token": {}, "word": {}}
        for (kind, by), found in self.orders.items():
            sides = zip(Tops._fields, found, strict=True)
            orders[kind][by] = {side: list(self._numbers(entries)) for side, entries in sides}
        return {"entries": entries, "orders": orders, "min_count": MIN_COUNT}

    def _numbers(self, entries: list[Ranked]) -> Iterator[int]:
        return (self.numbers[_key(entry)] for entry in entries)


def _key(entry: Ranked) -> int | str:
    return entry.text if entry.token_id is None else entry.token_id
