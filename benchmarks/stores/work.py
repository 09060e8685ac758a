"""What a client does, each in a process of its own; the outcome goes into a queue."""

import os
import signal
import tempfile
import time
from pathlib import Path

from benchmarks.stores.clients import CLIENTS

FORKED_SECONDS = 15


def rates(queue, name, endpoint, size, objects, small):
    """Megabytes a second of large objects, and small objects a second."""
    client, content, found = CLIENTS[name](endpoint), os.urandom(size), {}
    client.put("warm", b"x"), client.read("warm")
    with tempfile.TemporaryDirectory() as folder:
        for what, action in (
            ("put_mb_s", lambda i: client.put(f"large-{i}", content)),
            ("read_mb_s", lambda i: client.read(f"large-{i}")),
            ("fetch_mb_s", lambda i: client.fetch(f"large-{i}", Path(folder) / "x")),
        ):
            start = time.perf_counter()
            for i in range(objects):
                action(i)
            found[what] = objects * size / 1e6 / (time.perf_counter() - start)
    for what, action in (("small_puts_s", lambda i: client.put(f"small-{i}", b"x" * 1000)),
                         ("small_gets_s", lambda i: client.read(f"small-{i}"))):  # fmt: skip
        start = time.perf_counter()
        for i in range(small):
            action(i)
        found[what] = small / (time.perf_counter() - start)
    queue.put(found)


def outcome(action):
    """What an action does, in words, and its seconds."""
    start = time.perf_counter()
    try:
        text = action()
    except Exception as exc:  # every client has errors of its own; here they are what is measured
        text = f"{type(exc).__name__}, {len(str(exc))} characters"
    return f"{text} ({time.perf_counter() - start:.1f} s)"


def fault(queue, name, endpoint, kind, size):
    """A GET of an object that fails once, or always."""
    content = os.urandom(size)
    client = CLIENTS[name](endpoint)
    key = f"{kind}-{name.partition(' ')[0]}"
    client.put(key, content)
    queue.put(outcome(lambda: "right" if client.read(key) == content else "WRONG BYTES, no error"))


def create(queue, name, endpoint):
    """A write of an object only if there is none."""
    client = CLIENTS[name](endpoint)
    key = f"create-{name.partition(' ')[0]}"
    queue.put(outcome(lambda: f"{client.create(key, b'first')}, then {client.create(key, b'second')}"))


def fork(queue, name, endpoint):
    """A GET in a forked process whose parent has used the client."""
    client = CLIENTS[name](endpoint)
    client.put("forked", b"x" * 1000)
    client.read("forked")
    child = os.fork()
    if child == 0:
        signal.alarm(FORKED_SECONDS)
        text = outcome(lambda: "right" if client.read("forked") == b"x" * 1000 else "wrong bytes")
        queue.put(text)
        queue.close()
        queue.join_thread()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        queue.put(
            f"the child hangs, ended after {FORKED_SECONDS} s" if status == signal.SIGALRM else f"status {status}"
        )
