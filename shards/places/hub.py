"""A data set repository of the Hugging Face hub as a store: files of one commit; one commit writes many."""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from shards.errors import CacheMissing, OptionError, TransferFailed, first_line
from shards.places.url import Url

_QUERY = re.compile(r"\?[^\s'\"]+")
_PLACE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@\s]+))?(?:/(?P<path>[^@\s]+))?")


class HubPlace(NamedTuple):
    """hf://datasets/OWNER/NAME[@REVISION][/PATH], as the hub's own tools write it."""

    repo: str
    revision: str | None
    path: str

    @classmethod
    def parse(cls, url: Url) -> "HubPlace":
        found = _PLACE.fullmatch(url.prefix)
        if url.bucket != "datasets" or found is None:
            raise OptionError(f"{url}: expected hf://datasets/OWNER/NAME[@REVISION][/PATH]")
        return cls(found["repo"], found["revision"], found["path"] or "")


class MovedOn(Exception):
    """Somebody else committed meanwhile."""


@dataclass(kw_only=True)
class HubStore:
    """A folder of a data set repository. The token is that of the environment or of `hf auth login`. Can be pickled.

    All reads are of one commit: the newest one when the hub was first asked or `newest` was called, then the one that
    this object made. Only large files have a sha256 there (`digests`), against which the hub has checked them.

    private: of a repository that does not exist yet; the first commit makes it. api: huggingface_hub.HfApi.
    """

    url: Url
    private: bool = True
    api: Any = None
    _place: HubPlace = field(init=False, repr=False)
    _commit: str | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        self._place = HubPlace.parse(self.url)
        if self.api is None:
            from huggingface_hub import HfApi  # comes with transformers; not needed for reading a folder

            self.api = HfApi(library_name="aligndistil-offline")

    def read(self, file: str) -> bytes:
        with TemporaryDirectory(prefix="aligndistil-", ignore_cleanup_errors=True) as folder:
            return self._download(file, folder).read_bytes()

    def fetch(self, file: str, path: Path) -> None:
        with TemporaryDirectory(prefix="aligndistil-", ignore_cleanup_errors=True) as folder, path.open("r+b") as sink:
            with self._download(file, folder).open("rb") as source:
                shutil.copyfileobj(source, sink, 1 << 22)
            sink.truncate()

    def put(self, file: str, content: bytes | Path, *, create: bool = True) -> bool:
        """A commit of its own: `shards.places.publisher` commits many files at once."""
        if create and file in self.newest():
            return False
        return self.commit({file: content}, on_top=create)

    def sizes(self) -> dict[str, int]:
        return {file: entry.size for file, entry in self._entries().items()}

    def newest(self) -> dict[str, int]:
        """`sizes` of the newest commit."""
        self._commit = None
        return self.sizes()

    def digests(self) -> dict[str, str]:
        """sha256 of the large files."""
        return {file: entry.lfs.sha256 for file, entry in self._entries().items() if entry.lfs is not None}

    def version(self, file: str) -> tuple[str, int]:
        entry = self._entries().get(file)
        if entry is None:
            raise CacheMissing(f"{self.url}/{file}: expected a file, found none")
        return str(entry.blob_id), int(entry.size)

    def commit(self, files: Mapping[str, bytes | Path], *, on_top: bool = False) -> bool:
        """Write files in one commit. on_top: False, and nothing is written, if the commit of `sizes` is no longer the
        newest."""
        from huggingface_hub import CommitOperationAdd

        names = list(files)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        try:
            with self._answers():
                self.api.create_repo(**self._repository, private=self.private, exist_ok=True)
                done = self.api.create_commit(
                    **self._repository,
                    operations=[CommitOperationAdd(self._inside(file), content) for file, content in files.items()],
                    commit_message=f"Add {names[-1]}{more}",
                    revision=self._place.revision,
                    parent_commit=self._head() if on_top else None,
                )
        except MovedOn:
            return False
        self._commit = done.oid
        return True

    @property
    def _repository(self) -> dict[str, str]:
        return {"repo_id": self._place.repo, "repo_type": "dataset"}

    def _inside(self, file: str) -> str:
        return f"{self._place.path}/{file}" if self._place.path else file

    def _head(self) -> str:
        """The commit of all reads."""
        if self._commit is None:
            self._commit = str(self.api.dataset_info(self._place.repo, revision=self._place.revision).sha)
        return self._commit

    def _download(self, file: str, folder: str) -> Path:
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            with self._answers(RemoteEntryNotFoundError):
                return Path(
                    self.api.hf_hub_download(
                        **self._repository, filename=self._inside(file), revision=self._head(), local_dir=folder
                    )
                )
        except RemoteEntryNotFoundError as exc:
            raise CacheMissing(f"{self.url}/{file}: expected a file, found none") from exc

    def _entries(self) -> dict[str, Any]:
        """The files of the folder at the commit, by name. None without such a repository, or such a folder in it."""
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

        try:
            with self._answers(EntryNotFoundError, RepositoryNotFoundError):
                folder, head = self._place.path or None, self._head()
                found = self.api.list_repo_tree(**self._repository, path_in_repo=folder, revision=head)
                return {Path(entry.path).name: entry for entry in found if hasattr(entry, "blob_id")}
        except (EntryNotFoundError, RepositoryNotFoundError):
            return {}

    @contextmanager
    def _answers(self, *passing: type[Exception]) -> Iterator[None]:
        """Turn an error of the hub, the network or the disk into one line. passing: kinds that the caller handles."""
        from huggingface_hub import errors

        try:
            yield
        except (errors.GatedRepoError, errors.LocalEntryNotFoundError) as exc:
            raise TransferFailed(f"{self.url}: {_why(exc)}") from exc
        except passing:
            raise
        # RuntimeError: of hf_xet, which moves the large files
        except (errors.HTTPError, errors.EntryNotFoundError, errors.HFValidationError, OSError, RuntimeError) as exc:
            if getattr(getattr(exc, "response", None), "status_code", None) == HTTPStatus.PRECONDITION_FAILED:
                raise MovedOn from exc
            raise TransferFailed(f"{self.url}: {_why(exc)}") from exc


def _why(error: Exception) -> str:
    """In one line, without the queries of URLs: those to which the hub sends a client are signed."""
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return "the hub asks for an account that may read it"
        case errors.RepositoryNotFoundError():
            return "the hub has no such data set, or shows it to other accounts only"
        case errors.RevisionNotFoundError():
            return "the hub has no such revision of it"
        case _:
            return f"expected the hub to do it, got {_QUERY.sub('', first_line(error))}"
