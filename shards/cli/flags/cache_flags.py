"""The flags about copies of what lies in stores, the same in every command that reads a URL."""

import argparse
from dataclasses import dataclass

from shards.cli.command import flag
from shards.places.room import Room

CACHE_DIR_HELP = (
    "where caches and data of URLs (s3://, gs://, az://, hf://) are copied to; a local disk; default: "
    "$ALIGNDISTIL_CACHE, else ~/.cache/aligndistil"
)
CACHE_LIMIT_HELP = (
    "the most bytes in it, such as 200GB or 50GiB; what was used longest ago is removed; default: no limit"
)
URL_HELP = "a folder, or a URL: s3://, gs://, az:// or hf://"


@dataclass(kw_only=True)
class CacheFlags:
    """Option fields about copies of what lies in stores."""

    cache_dir: str | None = flag(None, CACHE_DIR_HELP)
    cache_limit: str | None = flag(None, CACHE_LIMIT_HELP)

    @property
    def room(self) -> Room:
        """The folder of the copies. Raises OptionError for a limit that is no number of bytes."""
        return Room.of(self.cache_dir, self.cache_limit)


def add_cache_flags(parser: argparse.ArgumentParser) -> None:
    """--cache_dir and --cache_limit, for `room_of`."""
    parser.add_argument("--cache_dir", "--cache-dir", metavar="DIR", help=CACHE_DIR_HELP)
    parser.add_argument("--cache_limit", "--cache-limit", metavar="BYTES", help=CACHE_LIMIT_HELP)


def room_of(options: argparse.Namespace) -> Room:
    """The folder of the copies. Raises OptionError for a limit that is no number of bytes."""
    return Room.of(options.cache_dir, options.cache_limit)
