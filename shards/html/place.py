"""Where a page may be written."""

from pathlib import Path

from shards.errors import OptionError

PAGE_SUFFIXES = (".html", ".htm")


def require_page(file: Path) -> None:
    """Raise OptionError for a place where no page can be written."""
    if file.suffix.lower() not in PAGE_SUFFIXES:  # so that a typing error cannot overwrite a shard or a log
        raise OptionError(f"html: expected a file name that ends in {' or '.join(PAGE_SUFFIXES)}, got {file}")
    if file.is_dir() or not file.parent.is_dir():
        raise OptionError(f"html: expected a file in a folder that is there, got {file}")
