"""python -m shards.inspect DIR: shows a cache, the teachers it serves, and how good it is for one of them."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from shards.cache import ShardCache
from shards.cli.command import OneLineErrors, run_command
from shards.cli.flags.cache_flags import add_cache_flags, room_of
from shards.cli.flags.quiet_flag import add_quiet_flag
from shards.cli.flags.teacher_flags import add_teacher_flags, teacher_of
from shards.cli.text import labelled
from shards.cli.trust_text import trust_table
from shards.errors import CacheMissing, OptionError
from shards.format.scores import Response
from shards.format.writer import write_text
from shards.html.place import require_page
from shards.inspect.around import SAMPLE_ROWS, around, measure
from shards.inspect.choose import DEFAULT_SAMPLE, Choice, parse_rows
from shards.inspect.coloured import show_coloured, tops_text
from shards.inspect.page import PAGE_MB, page
from shards.inspect.text import (
    NO_TEACHER,
    plan_table,
    row_facts,
    row_table,
    teachers_table,
    values_table,
)
from shards.preferences.directions import measure_directions
from shards.progress import commanded
from shards.remote import begun
from shards.say import say
from shards.survey.counts import MIN_COUNT, TOP, By
from shards.survey.listed import Listed
from shards.survey.survey import take_survey
from shards.teacher.reward import formula, response_reward, rewarded_by
from shards.teacher.spec import TeacherSpec


def show_cache(options: argparse.Namespace) -> None:
    """Print the tables of a finished cache. For an unfinished build print the plan and raise CacheMissing."""
    folder = options.folder
    unfinished = begun(folder)
    if unfinished is not None:
        plan = unfinished.plan
        print(f"{plan_table(plan, unfinished.provenance)}\n\n{teachers_table(plan)}", flush=True)
        raise CacheMissing(
            f"{folder}: expected a finished cache, found a build with {unfinished.done:,} of {len(plan.shards):,} "
            "shards done; run it again to finish"
        )
    cache = ShardCache(folder, room_of(options))
    spec = _served(cache, options)
    print("\n\n".join(_facts(cache)), flush=True)
    if spec is None:
        print(f"\ntrust        {NO_TEACHER}")
    else:
        print(f"\n{trust_table(*measure(cache, spec, SAMPLE_ROWS))}")


def show_row(row: int, options: argparse.Namespace) -> None:
    """Print one response of a finished cache, coloured on a terminal. Raises OptionError for a row out of range."""
    cache = ShardCache(options.folder, room_of(options))
    spec = _served(cache, options)
    response, texts, (negative, beta) = _response(cache, row), cache.token_texts, rewarded_by(cache.plan, spec)
    reward_N = response_reward(response, negative, beta)
    print(row_facts(response, reward_N, formula(negative, beta)), end="\n\n")
    if texts.note is not None:
        print(f"note: {texts.note}\n")
    show_coloured(texts.pieces(response.input_ids), response, reward_N, negative)
    print(f"\n{row_table(response, spec, cache.plan, texts, reward_N)}")


def show_tops(options: argparse.Namespace) -> None:
    """Print the most rewarded and the most punished tokens and words. Raises OptionError for numbers below 1."""
    for name in ("top", "min_count"):
        if getattr(options, name) < 1:
            raise OptionError(f"{name}: expected 1 or more, got {getattr(options, name)}")
    cache = ShardCache(options.folder, room_of(options))
    negative, beta = rewarded_by(cache.plan, _served(cache, options))
    found = take_survey(cache, negative, beta, cache.token_texts)
    print(tops_text(found, options.top, options.by, options.min_count))


def write_page(file: Path, options: argparse.Namespace) -> None:
    """Write a finished cache as one HTML page, whole or not at all. Raises OptionError if it cannot be written."""
    require_page(file)
    cache = ShardCache(options.folder, room_of(options))
    spec = _served(cache, options)
    choice = _choice(cache, options)
    survey = take_survey(cache, *rewarded_by(cache.plan, spec), cache.token_texts)
    about = around(cache, spec, survey, _provenance(cache))
    written = page(cache, spec, choice, options.page_mb, Listed.of(survey), about)
    try:
        write_text(file.parent, file.name, written.html)
    except OSError as exc:
        raise OptionError(f"html: expected a place to write to, got {file} ({exc.strerror})") from exc
    say(f"{file}: {written}")


def _choice(cache: ShardCache, options: argparse.Namespace) -> Choice:
    """The rows of the page that the flags ask for."""
    if options.sample < 1:
        raise OptionError(f"sample: expected 1 or more, got {options.sample}")
    if options.page_mb <= 0:
        raise OptionError(f"page_mb: expected more than 0, got {options.page_mb:g}")
    if options.row is not None:
        pair_id = cache.index.pair_id
        return Choice(rows=np.flatnonzero(pair_id == pair_id[_checked(cache, options.row)]).tolist())
    rows = None if options.rows is None else parse_rows(options.rows)
    return Choice(rows=rows, sample=options.sample, seed=options.seed)


def _served(cache: ShardCache, options: argparse.Namespace) -> TeacherSpec | None:
    """The requested teacher. Raises TeacherUnavailable if the cache cannot give it."""
    spec = teacher_of(options, cache.plan)
    if spec is not None:
        cache.check(spec)
    return spec


def _facts(cache: ShardCache) -> list[str]:
    tables = [plan_table(cache.plan, _provenance(cache)), values_table(cache.manifest)]
    if directions := [str(direction) for direction in measure_directions(cache)]:
        tables.append("\n".join(labelled("preferences", directions)))
    return [*tables, teachers_table(cache.plan)]


def _response(cache: ShardCache, row: int) -> Response:
    return cache[_checked(cache, row)]


def _checked(cache: ShardCache, row: int) -> int:
    if not -len(cache) <= row < len(cache):
        raise OptionError(f"row: expected a number under {len(cache)}, got {row}")
    return row


def _provenance(cache: ShardCache) -> Mapping[str, Any]:
    """Paths of models and data; a cache is complete without them."""
    try:
        return cache.provenance
    except CacheMissing:
        return {}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineErrors(prog="python -m shards.inspect", description=__doc__)
    parser.add_argument("folder", metavar="DIR", nargs="?", default="shards", help="folder or URL of the cache")
    parser.add_argument("--row", type=int, help="show this response; rows count from 0")
    top_flags = parser.add_argument_group("what is rewarded and what is punished")
    top_flags.add_argument(
        "--top",
        metavar="N",
        type=int,
        nargs="?",
        const=TOP,
        help=f"show the N most rewarded and most punished tokens and words of the cache (default of N: {TOP})",
    )
    top_flags.add_argument(
        "--by", choices=get_args(By), default="total", help="what they are sorted by (default: %(default)s)"
    )
    top_flags.add_argument(
        "--min_count",
        "--min-count",
        metavar="N",
        type=int,
        default=MIN_COUNT,
        help="how often a listed one occurs at least (default: %(default)s)",
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write one page to look at instead")
    page_flags = parser.add_argument_group("what the page has")
    page_flags.add_argument("--rows", metavar="LIST", help="these rows, such as 3,17,40-59; default: a sample")
    page_flags.add_argument(
        "--sample",
        metavar="N",
        type=int,
        default=DEFAULT_SAMPLE,
        help="responses, pairs together (default: %(default)s)",
    )
    page_flags.add_argument("--seed", type=int, help="draw the sample at random; default: evenly spread")
    page_flags.add_argument(
        "--page_mb", "--page-mb", metavar="MB", type=float, default=PAGE_MB, help="largest page (default: %(default)g)"
    )
    add_teacher_flags(parser)
    add_cache_flags(parser)
    add_quiet_flag(parser)
    options = parser.parse_args(arguments)
    with commanded(quiet=options.quiet):
        if options.html is not None:
            write_page(options.html, options)
        elif options.top is not None:
            show_tops(options)
        elif options.row is None:
            show_cache(options)
        else:
            show_row(options.row, options)


if __name__ == "__main__":
    run_command(main)
