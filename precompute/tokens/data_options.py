"""DataOptions: the flags that select the data, the same in every command with --data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, TypeVar

from precompute.data.columns import parse_columns
from precompute.data.sources import Data, Source
from shards import strict_json
from shards.cli.command import flag, require_choices
from shards.cli.flags.cache_flags import CacheFlags
from shards.cli.flags.quiet_flag import QuietFlag
from shards.errors import OptionError
from shards.places.url import is_url, parse_url

Item = TypeVar("Item")


@dataclass(kw_only=True)
class DataOptions(CacheFlags, QuietFlag):
    """Sources and what to take from them. A flag with a value per source also takes one value for all sources.

    Raises OptionError for values out of range and for a wrong number of values.
    """

    data: list[str] = field(
        metadata={
            "help": "one source or several: .jsonl, .ndjson, .json, .csv, .tsv (.gz, .zst too), .parquet, .arrow, a "
            "URL of such a file, a folder or a hub name; columns as TRL has them, ShareGPT's conversations, or others "
            "with --columns"
        }
    )
    split: list[str] = flag(["train"], "split of a folder or hub data set; one for all sources, or one for each")
    data_config: list[str] | None = flag(
        None, "configuration of a folder or hub data set: one for all sources, or one for each; none: no name"
    )
    data_limit: list[str] | None = flag(
        None, "rows of a source: its first N, P%% of them evenly spread, or all; for all sources, or one for each"
    )
    limit: int | None = flag(None, "use only the first N rows of all the data")
    columns: list[str] | None = flag(
        None,
        "target=column, such as prompt=question, prompt=instruction+input (joined by a new line), system=system; "
        "2:prompt=question for the second source alone; context= leaves a column out",
    )
    chat_template_kwargs: str | None = flag(
        None,
        'JSON for the chat template of every row, such as {"chat_template": "rag"} to choose one by name',
    )
    on_label_false: Literal["error", "skip"] = flag(
        "error", "what to do with a row without a pair that is labelled false, as in KTO's data"
    )

    def __post_init__(self) -> None:
        for name in ("data", "split", "data_config", "data_limit"):  # from Python, a text means a list of one
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        require_choices(self)  # also those of the command's own flags
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"limit: expected 1 or more, got {self.limit}")
        for name in filter(is_url, self.data):
            parse_url(name)
        _ = self.data_sources

    @property
    def data_sources(self) -> Data:
        """The sources to read."""
        count = len(self.data)
        if not self.data or not all(self.data):
            raise OptionError(f"data: expected one source or more, got {self.data}")
        each = zip(
            self.data,
            _for_each("split", self.split, count),
            _for_each("data_config", self.data_config or ["none"], count),
            _for_each("data_limit", self.data_limit or ["all"], count),
            parse_columns(self.columns or [], count),
            strict=True,
        )
        found = tuple(
            Source(
                name=name, split=split, config=None if config == "none" else config, take=_take(take), columns=columns
            )
            for name, split, config, take, columns in each
        )
        skip = self.on_label_false == "skip"
        template = _template(self.chat_template_kwargs)
        return Data(sources=found, limit=self.limit, template=template, skip_bad=skip, room=self.room)


def _for_each(name: str, values: Sequence[Item], count: int) -> Sequence[Item]:
    if len(values) not in (1, count):
        raise OptionError(f"{name}: expected one value, or one for each of {count} sources, got {len(values)}")
    return values if len(values) == count else list(values) * count


def _take(text: str) -> int | Fraction | None:
    if text == "all":
        return None
    try:
        take = Fraction(text.removesuffix("%")) / 100 if text.endswith("%") else int(text)
    except (ValueError, ZeroDivisionError) as exc:
        raise OptionError(f"data_limit: expected a number of rows, a share such as 25%, or all, got {text!r}") from exc
    if take <= 0 or (isinstance(take, Fraction) and take > 1):
        raise OptionError(f"data_limit: expected 1 row or more, or a share over 0% and up to 100%, got {text!r}")
    return take


def _template(text: str | None) -> dict[str, Any]:
    try:
        found = strict_json.loads(text or "{}")
    except ValueError as exc:
        raise OptionError(f"chat_template_kwargs: expected a JSON object, got {text!r} ({exc})") from exc
    if not isinstance(found, dict):
        raise OptionError(f"chat_template_kwargs: expected a JSON object, got {text!r}")
    return found
