"""python -m shards.inspect DIR: what a cache holds and which teachers it serves; with --row one response of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.command import OneLineErrors, run_command
from shards.describe import default_spec, plan_table, row_table, teachers_table, values_table
from shards.errors import CacheMissing, OptionError
from shards.manifest import MANIFEST_FILE, PLAN_FILE, PROVENANCE_FILE, Plan, read_json
from shards.reader import ShardCache


def show_cache(folder: Path) -> None:
    """Print the tables of a finished cache. Of a build that was only begun print the plan and raise CacheMissing."""
    if not (folder / MANIFEST_FILE).exists() and (folder / PLAN_FILE).exists():
        plan = Plan.from_json(read_json(folder / PLAN_FILE), str(folder / PLAN_FILE))
        print(f"{plan_table(plan, _provenance(folder))}\n\n{teachers_table(plan)}", flush=True)
        done = sum((folder / shard.file).exists() for shard in plan.shards)
        raise CacheMissing(
            f"{folder}: expected a finished cache, found a build with {done:,} of {len(plan.shards):,} shards done; "
            "run it again to finish"
        )
    cache = ShardCache(folder)
    tables = (plan_table(cache.plan, _provenance(folder)), values_table(cache.manifest), teachers_table(cache.plan))
    print("\n\n".join(tables))


def show_row(folder: Path, row: int) -> None:
    """Print one response of a finished cache. Raises OptionError for a row that is not there."""
    cache = ShardCache(folder)
    if not -len(cache) <= row < len(cache):
        raise OptionError(f"row: expected a number under {len(cache)}, got {row}")
    print(row_table(cache[row], default_spec(cache.plan), cache.plan, cache.vocabulary))


def _provenance(folder: Path) -> Mapping[str, Any]:
    """Paths of models and data; a cache is whole without them."""
    path = folder / PROVENANCE_FILE
    return read_json(path) if path.exists() else {}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineErrors(prog="python -m shards.inspect", description=__doc__)
    parser.add_argument("folder", metavar="DIR", nargs="?", default="shards", type=Path, help="folder of the cache")
    parser.add_argument("--row", type=int, help="show this response; rows count from 0")
    options = parser.parse_args(arguments)
    if options.row is None:
        show_cache(options.folder)
    else:
        show_row(options.folder, options.row)


if __name__ == "__main__":
    run_command(main)
