"""ObjectStore: whole objects of s3://, gs:// and az://, through obstore (extra `stores`).

Credentials, endpoint and time-outs come from the environment, as obstore names them: AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, AWS_ALLOW_HTTP, AWS_READ_TIMEOUT and so on; GOOGLE_ and AZURE_ for the others.

obstore waits for ever in a process that was forked after its first use, so such a process is refused.
"""

import functools
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shards.errors import CacheMissing, OptionError, TransferFailed
from shards.places.faults import Fault, fault_of, no_bucket
from shards.places.url import Url

Result = TypeVar("Result")

ENVIRONMENT = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
"""How the names of a store's environment variables begin."""

CLIENT_OPTIONS = (
    *("allow_http", "allow_invalid_certificates", "connect_timeout", "read_timeout", "timeout", "proxy_url"),
    *("proxy_ca_certificate", "proxy_excludes", "http1_only", "http2_only", "user_agent", "pool_idle_timeout"),
)
"""Options of the HTTP client; ours replace those of the environment unless they are read there again."""

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait, and how often to try.

    connect   for a connection, seconds
    read      for the next bytes of an answer, seconds
    whole     for one try of a whole transfer, seconds; ends one that trickles
    tries     of a transfer that fails in a way that may pass
    pause     seconds before the second try; twice as long before every further one, at most `longest_pause`
    """

    connect: float = 10
    read: float = 30
    whole: float = 900
    tries: int = 6
    pause: float = 0.25
    longest_pause: float = 15


PATIENCE = Patience()


class ObjectStore:
    """A folder of an object store. Can be pickled; the client is made at first use."""

    def __init__(self, url: Url, patience: Patience | None = None) -> None:
        self.url = url
        self.patience = patience or PATIENCE
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}

    def read(self, file: str) -> bytes:
        """The content of an object. Raises CacheMissing, TransferFailed."""
        return self._tried(file, lambda: b"".join(self._pieces(file)))

    def fetch(self, file: str, path: Path) -> None:
        """Write the content of an object into the file at `path`. Raises CacheMissing, TransferFailed."""

        def write() -> None:
            with path.open("r+b") as sink:
                for piece in self._pieces(file):
                    sink.write(piece)
                sink.truncate()

        self._tried(file, write)

    def put(self, file: str, content: bytes | Path, *, create: bool = True) -> bool:
        """Write an object as a whole, with one request. create: only if there is none. False if there was one."""
        try:
            self._tried(file, lambda: self._put(file, content, "create" if create else "overwrite"))
        except FileExistsError:
            return False
        except _NotConditional:  # some servers cannot; what is written twice is the same
            if file in self.sizes():
                return False
            self._tried(file, lambda: self._put(file, content, "overwrite"))
        return True

    def sizes(self) -> Mapping[str, int]:
        """The objects directly in the folder: name -> bytes. Raises TransferFailed."""
        import_obstore(self.url)
        import obstore

        def listed() -> dict[str, int]:
            found = obstore.list_with_delimiter(self._opened())["objects"]
            return {entry["path"].rpartition("/")[2]: int(entry["size"]) for entry in found}

        return self._tried("", listed)

    def version(self, file: str) -> tuple[str, int]:
        """(ETag, bytes) of an object. Raises CacheMissing, TransferFailed."""
        import_obstore(self.url)
        import obstore

        found = self._tried(file, lambda: obstore.head(self._opened(), file))
        return str(found["e_tag"] or found["last_modified"]), int(found["size"])

    def _pieces(self, file: str) -> Any:
        """The content of an object, in pieces. Raises what obstore raises, and _Short."""
        import obstore

        answer = obstore.get(self._opened(), file)
        arrived = 0
        for piece in answer.stream(min_chunk_size=PIECE_BYTES):
            arrived += len(piece)
            yield piece
        if arrived != answer.meta["size"]:
            raise _Short

    def _put(self, file: str, content: bytes | Path, mode: Any) -> None:
        import obstore

        obstore.put(self._opened(), file, content, mode=mode, use_multipart=False)

    def _tried(self, file: str, transfer: Callable[[], Result]) -> Result:
        """What `transfer` returns, tried again after pauses as long as its failure may pass."""
        exceptions, where = import_obstore(self.url), f"{self.url}/{file}" if file else str(self.url)
        pause = self.patience.pause
        for number in range(1, self.patience.tries + 1):
            try:
                return transfer()
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as exc:
                raise FileExistsError from exc
            except (exceptions.NotFoundError, FileNotFoundError) as exc:
                what = f"a bucket {self.url.bucket}" if no_bucket(exc) else "an object"
                raise CacheMissing(f"{where}: expected {what}, found none") from exc
            except exceptions.NotSupportedError as exc:
                raise _NotConditional from exc
            except _Short:
                fault = Fault(text="fewer bytes than announced", passes=True)
            except exceptions.BaseError as exc:
                fault = fault_of(exc)
            if fault.conditional:
                raise _NotConditional
            if not fault.passes or number == self.patience.tries:
                tried = f" ({number} tries)" if number > 1 else ""
                raise TransferFailed(f"{where}: expected a whole transfer, got {fault.text}{tried}")
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, self.patience.longest_pause)
        raise AssertionError("the last try returns or raises")

    def _opened(self) -> Any:
        """The client. Raises TransferFailed in a process that was forked after the first use."""
        if os.getpid() != _first_process():
            raise TransferFailed(
                f"{self.url}: expected transfers in the main process only, got one in a process forked from it; "
                "what a worker reads must be in the cache_dir before"
            )
        if self._client is None:
            self._client = _client(self.url, self.patience)
        return self._client


class _Short(Exception):
    """A body ended before its announced length."""


class _NotConditional(Exception):
    """The server cannot write an object only if there is none."""


@functools.cache
def _first_process() -> int:
    """The process that used obstore first; its forks inherit the number."""
    return os.getpid()


def import_obstore(url: Url) -> Any:
    """obstore's exceptions. Raises OptionError if it is not installed."""
    try:
        from obstore import exceptions
    except ImportError as exc:
        raise OptionError(f"{url}: expected obstore to be installed; install aligndistil-offline[stores]") from exc
    return exceptions


def _client(url: Url, patience: Patience) -> Any:
    """A client of obstore that tries every request once: `_tried` is the only place that tries again."""
    from obstore import exceptions
    from obstore.store import from_url

    ours = {
        "connect_timeout": f"{patience.connect * 1000:.0f}ms",
        "read_timeout": f"{patience.read * 1000:.0f}ms",
        "timeout": f"{patience.whole * 1000:.0f}ms",
    }
    start = ENVIRONMENT[url.scheme]
    _check_endpoint(url, start)
    given = {name: os.environ.get(f"{start}_{name.upper()}") for name in CLIENT_OPTIONS}
    options = ours | {name: value for name, value in given.items() if value}
    open_store: Any = from_url
    try:
        return open_store(str(url), client_options=options, retry_config={"max_retries": 0})
    except (exceptions.BaseError, ValueError) as exc:
        text = fault_of(exc).text if isinstance(exc, exceptions.BaseError) else f"{start}_ variables it cannot read"
        raise OptionError(f"{url}: expected settings that open the store, got {text}") from exc


def _check_endpoint(url: Url, start: str) -> None:
    """Raise OptionError for an endpoint that is no address; obstore ends the process for one."""
    for name in (f"{start}_ENDPOINT_URL_S3", f"{start}_ENDPOINT_URL", f"{start}_ENDPOINT"):
        value = os.environ.get(name)
        if value and not value.lower().startswith(("http://", "https://")):
            raise OptionError(f"{url}: expected {name} to begin with http:// or https://, got another text")
