"""A hub of one process: what HubStore asks of huggingface_hub.HfApi, on commits that are kept in memory."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError


def _answer(status):
    return SimpleNamespace(status_code=status, headers={}, request=None)


class HubStandIn:
    """Data set repositories. commits: repo -> file tables, the newest last. meanwhile: called before each commit."""

    def __init__(self):
        self.commits = {}
        self.private = {}
        self.asked = []
        self.meanwhile = lambda: None

    def files(self, repo):
        return self.commits[repo][-1]

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        assert repo_type == "dataset" and exist_ok
        if repo_id not in self.commits:
            self.commits[repo_id], self.private[repo_id] = [{".gitattributes": b"*.arrow"}], private

    def dataset_info(self, repo_id, *, revision):
        self._require(repo_id)
        return SimpleNamespace(sha=f"{len(self.commits[repo_id]) - 1:040d}" if revision is None else revision)

    def list_repo_tree(self, repo_id, *, repo_type, path_in_repo, revision):
        self._require(repo_id)
        start = f"{path_in_repo}/" if path_in_repo else ""
        for name, content in self.commits[repo_id][int(revision)].items():
            if name.startswith(start) and "/" not in name.removeprefix(start):
                lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if name.endswith(".arrow") else None
                yield SimpleNamespace(path=name, size=len(content), lfs=lfs, blob_id=hashlib.sha1(content).hexdigest())

    def hf_hub_download(self, repo_id, filename, *, repo_type, revision, local_dir):
        self._require(repo_id)
        self.asked.append(filename)
        content = self.commits[repo_id][int(revision)].get(filename)
        if content is None:
            raise RemoteEntryNotFoundError("no such file", response=_answer(404))
        path = Path(local_dir) / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    def create_commit(self, repo_id, operations, *, repo_type, commit_message, revision, parent_commit):
        self._require(repo_id)
        self.meanwhile()
        commits = self.commits[repo_id]
        if parent_commit is not None and int(parent_commit) != len(commits) - 1:
            raise HfHubHTTPError("a commit has happened since", response=_answer(412))
        added = {}
        for operation in operations:
            with operation.as_file() as file:
                added[operation.path_in_repo] = file.read()
        commits.append(commits[-1] | added)
        return SimpleNamespace(oid=f"{len(commits) - 1:040d}")

    def _require(self, repo_id):
        if repo_id not in self.commits:
            raise RepositoryNotFoundError("no such repository", response=_answer(404))
