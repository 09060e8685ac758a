"""Builds and copies to a bucket: they are killed at every request, before, during and after each PUT."""

import http.client
import importlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stress import forked
from stress.forked import Ended
from stress.kills.commands import Words, as_command
from stress.kills.jobs import SECONDS, AtTime, difference
from stress.kills.rules import whole_or_absent
from stress.kills.syscalls.tracer import Moment, Point

SOMEONE = {"Authorization": "AWS4-HMAC-SHA256 Credential=SOMEONE/20260101/us-east-1/s3/aws4_request, Signature=0"}
"""moto asks who it is, and believes everything."""


def moments_of_requests(step: str) -> tuple[Moment, ...]:
    return ("before", "half", "after") if step.startswith("PUT") else ("after",)


@dataclass(slots=True)
class BucketJob:
    """A command that writes to a URL.

    words   the flags, for a URL and a folder of this machine
    whole   what the bucket has to hold in the end
    """

    name: str
    module: str
    words: Callable[[str, Path], Words]
    server: Any
    ground: Path
    whole: Mapping[str, bytes]
    seconds: float = 0.0
    steps: Sequence[str] = ()
    bucket: str = ""
    asked: list[str] = field(default_factory=list)

    @property
    def here(self) -> Path:
        """The cache_dir."""
        return self.ground / "here"

    def prepare(self) -> None:
        """Run it undisturbed: its requests and its time."""
        importlib.import_module(self.module)
        self.clear()
        begun = time.monotonic()
        ended = self.run(None)
        self.seconds, self.steps = time.monotonic() - begun, list(self.asked)
        fault = ended.err[-2000:] if ended.code else self.other_than_undisturbed()
        if fault:
            raise RuntimeError(f"{self.name}: expected an undisturbed run, got {fault}")

    def clear(self) -> None:
        shutil.rmtree(self.here, ignore_errors=True)
        self.bucket = self.server.new_bucket()

    def run(self, at: Point | AtTime | None) -> Ended:
        log, pid = self.ground / "log", threading.Event()
        found: list[int] = []
        self.asked.clear()
        seen = 0

        def watch(moment: str, method: str, key: str) -> None:
            nonlocal seen
            step = f"{method} {key.rpartition('/')[2]}"
            if moment == "before":
                self.asked.append(step)
            if not isinstance(at, Point) or moment != at.moment or at.step not in (None, step):
                return
            seen += 1
            if seen == at.occurrence:
                pid.wait()
                forked.kill(found[0])
                raise ConnectionAbortedError

        self.server.proxy.watch = watch
        found.append(forked.start(self._run, log))
        pid.set()
        if isinstance(at, AtTime):
            return forked.killed(found[0], log, at.share * self.seconds)
        return forked.wait(found[0], log, SECONDS)

    def before(self) -> set[str]:
        return {name for name in self._contents() if name.startswith("part-")}

    def left(self) -> str:
        return whole_or_absent(self._contents(), self.whole)

    def went_on(self, before: Any, ended: Ended) -> str:
        again = sorted(before & {step.removeprefix("PUT ") for step in self.asked if step.startswith("PUT ")})
        return f"expected finished shards to stay, found {', '.join(again)} sent again" if again else ""

    def other_than_undisturbed(self) -> str:
        staged = [str(path) for path in self.here.rglob("*") if path.is_file()]
        return difference(self._contents(), dict(self.whole)) or (f"expected no {staged[0]}" if staged else "")

    def _run(self) -> None:
        os.environ.update(self.server.environment)
        as_command(self.module, self.words(f"s3://{self.bucket}/one", self.here))

    def _contents(self) -> dict[str, bytes]:
        """name -> content; without obstore, whose threads a fork would not have."""
        connection = http.client.HTTPConnection(*self.server.proxy.server, timeout=SECONDS)

        def get(path: str) -> bytes:
            connection.request("GET", path, headers=SOMEONE)
            return connection.getresponse().read()

        try:
            listed = get(f"/{self.bucket}?list-type=2").decode()
            names = re.findall(r"<Key>one/([^<]*)</Key>", listed)
            return {name: get(f"/{self.bucket}/one/{name}") for name in names}
        finally:
            connection.close()
