"""Url: the name of a folder or file in an object store or on the hub, such as s3://BUCKET/FOLDER.

A URL never goes through `Path`, which makes one slash of two.
"""

import re
from dataclasses import dataclass

from shards.errors import OptionError

SCHEMES = ("s3", "gs", "az", "hf")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
EXPECTED = ", ".join(f"{scheme}://" for scheme in SCHEMES[:-1]) + f" or {SCHEMES[-1]}://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """A place in a store. bucket: its first part; prefix: the rest, without slashes at its ends, possibly empty."""

    scheme: str
    bucket: str
    prefix: str

    def __str__(self) -> str:
        return "/".join(filter(None, (f"{self.scheme}://{self.bucket}", self.prefix)))

    @property
    def name(self) -> str:
        """The last part: of a file, its name."""
        return self.prefix.rpartition("/")[2]

    @property
    def parent(self) -> "Url":
        """The folder of a file."""
        return Url(scheme=self.scheme, bucket=self.bucket, prefix=self.prefix.rpartition("/")[0])


def is_url(text: object) -> bool:
    """Whether a place that a user gave is a URL and not a path of this machine."""
    return isinstance(text, str) and _URL.match(text) is not None


def parse_url(text: str) -> Url:
    """The parts of a URL. Raises OptionError for another scheme, and for parts that have no meaning here.

    A URL with a password or with a query, which may hold a signature, is refused without being repeated.
    """
    found = _URL.match(text)
    if found is None or found[1] not in SCHEMES:
        scheme = "none" if found is None else f"{found[1]}://"
        raise OptionError(f"expected a folder of this machine or a URL that begins with {EXPECTED}, got {scheme}")
    bucket, _, prefix = found[2].rstrip("/").partition("/")
    if "@" in bucket or any(mark in found[2] for mark in "?#"):
        raise OptionError(
            f"expected a URL {found[1]}://BUCKET/FOLDER without a user, a password or a query, got one with them; "
            "credentials are read from the environment"
        )
    if not text.isprintable():
        raise OptionError(f"expected a URL {found[1]}://BUCKET/FOLDER of printable characters, got {text!r}")
    if not bucket or (prefix and any(part in ("", ".", "..") for part in prefix.split("/"))):
        raise OptionError(f"expected a URL {found[1]}://BUCKET/FOLDER with no empty part, . or .., got {text}")
    return Url(scheme=found[1], bucket=bucket, prefix=prefix)
