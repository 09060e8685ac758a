"""Owner: who has a lock, as its file says."""

import json
import os
import platform
import secrets
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

MOST_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process that has a lock. since: ISO 8601, UTC; token: tells this owner from every other one."""

    command: str
    process: int
    machine: str
    since: str
    token: str

    @classmethod
    def this(cls) -> "Owner":
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(
            command=_command(), process=os.getpid(), machine=platform.node(), since=now, token=secrets.token_hex(8)
        )

    @classmethod
    def read(cls, descriptor: int) -> "Owner | None":
        """As an open lock file says; None if it says nothing that can be read."""
        try:
            found = json.loads(os.pread(descriptor, MOST_BYTES, 0))
            texts = {name: _printable(str(found[name])) for name in ("command", "machine", "since", "token")}
            datetime.fromisoformat(texts["since"])
            return cls(process=int(found["process"]), **texts)
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            return None

    def write(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(asdict(self)) + "\n").encode(), 0)
        os.fsync(descriptor)  # else other machines may not see it over NFS

    @property
    def has_ended(self) -> bool:
        """Whether it is known to have ended. Then the lock is another one's, who is about to write into the file."""
        if self.machine != platform.node():
            return False
        try:
            os.kill(self.process, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:  # of another user
            return False
        return False

    def __str__(self) -> str:
        since = datetime.fromisoformat(self.since).astimezone()
        return f"{self.command} (process {self.process} on {self.machine}, since {since:%Y-%m-%d %H:%M})"


def _command() -> str:
    """This process's command in a few words, without its flags."""
    main = sys.modules.get("__main__")
    if (spec := getattr(main, "__spec__", None)) is not None:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return f"python {Path(sys.argv[0]).name}".rstrip() if sys.argv else "python"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])
