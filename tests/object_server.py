"""An S3 server on this machine: moto's, behind a proxy of ours that counts requests and makes them fail.

    proxy.fail("truncated", key="part-00001.arrow")      # the next GET of this key
    proxy.fail("500", method="PUT", times=3)

Faults: drop (no answer), silent (no answer, and the connection stays), a status such as 500, truncated (half of the
body, then the end), stall (half of the body, then nothing), slow (a byte at a time), altered (a byte of the body
changed), lost (done by the server, but the answer does not arrive).
"""

import http.client
import http.server
import itertools
import logging
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

LONGEST_WAIT = 30
KEY_ID, SECRET = "AKIAIDOFTHEKEY", "secretofthekey"
SLOW_PAUSE = 0.02


@dataclass
class Fault:
    """What happens to the next `times` requests of a method whose key ends in `key`."""

    kind: str
    method: str
    key: str
    times: int


@dataclass
class Proxy:
    """Passes requests on to the server, and counts them.

    requests   (method, key), in order; a list has the key ""
    watch      called with "before", "half" (of the body has come) or "after" (done, not answered), method and key
    """

    server: tuple[str, int]
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    watch: Callable[[str, str, str], None] = lambda moment, method, key: None

    def fail(self, kind: str, *, method: str = "GET", key: str = "", times: int = 1) -> None:
        self.faults.append(Fault(kind, method, key, times))

    def forget(self) -> None:
        """Begin to count anew, without faults."""
        self.requests.clear()
        self.faults.clear()

    def count(self, method: str) -> Counter[str]:
        """Requests of a method by the last part of their key."""
        return Counter(key.rpartition("/")[2] for found, key in self.requests if found == method)

    def fault_of(self, method: str, key: str) -> str:
        for fault in self.faults:
            if fault.times and fault.method == method and key.endswith(fault.key):
                fault.times -= 1
                return fault.kind
        return ""


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection to the proxy."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, *_) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client has given up
            self.close_connection = True

    def answer(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        _, _, *rest = urllib.parse.unquote(parts.path).split("/", 2)
        key = "" if "list-type" in parts.query or not rest else rest[0]
        self.proxy.requests.append((self.command, key))
        self.proxy.watch("before", self.command, key)
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size // 2)
        self.proxy.watch("half", self.command, key)
        body += self.rfile.read(size - len(body))
        if len(body) < size:
            raise ConnectionAbortedError
        kind = self.proxy.fault_of(self.command, key)
        if kind in ("drop", "silent"):
            self.close_connection = True
            if kind == "silent":
                self.proxy.over.wait(LONGEST_WAIT)
        elif kind.isdigit():
            text = f"<Error><Code>Fault{kind}</Code><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId></Error>".encode()
            self.send(int(kind), {"Content-Type": "application/xml"}, text)
        else:
            self.pass_on(key, body, kind)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

    def pass_on(self, key: str, body: bytes, kind: str) -> None:
        connection = http.client.HTTPConnection(*self.proxy.server, timeout=LONGEST_WAIT)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            found = connection.getresponse()
            content, headers = found.read(), dict(found.getheaders())
        finally:
            connection.close()
        self.proxy.watch("after", self.command, key)
        if kind == "altered":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if kind == "lost":
            self.close_connection = True
        else:
            self.send(found.status, headers, content, kind)

    def send(self, status: int, headers: dict, content: bytes, kind: str = "") -> None:
        self.send_response_only(status)
        size = headers.get("Content-Length", len(content)) if self.command == "HEAD" else len(content)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind in ("truncated", "stall"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            if kind == "stall":
                self.proxy.over.wait(LONGEST_WAIT)
        elif kind == "slow":
            for byte in content:
                self.wfile.write(bytes([byte]))
                time.sleep(SLOW_PAUSE)
        else:
            self.wfile.write(content)


class ObjectServer:
    """moto's server and the proxy, on threads of this process, until `close`."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self.proxy = Proxy(server=self._moto.get_host_and_port())
        handler = type("OurHandler", (Handler,), {"proxy": self.proxy})
        self._proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self._numbers = itertools.count()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a client; AWS_ALLOW_HTTP as for any server without TLS."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._proxy.server_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def new_bucket(self) -> str:
        """The name of an empty bucket."""
        name = f"bucket-{next(self._numbers)}"
        connection = http.client.HTTPConnection(*self.proxy.server, timeout=LONGEST_WAIT)
        try:
            connection.request("PUT", f"/{name}")
            assert connection.getresponse().status == 200
        finally:
            connection.close()
        return name

    def close(self) -> None:
        self.proxy.over.set()
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stop()


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of the server, for one test."""

    name: str
    proxy: Proxy

    def url(self, *parts: str) -> str:
        return "/".join((f"s3://{self.name}", *parts))

    def upload(self, folder: Path, *parts: str) -> str:
        """Put the files of a folder there, as they are; returns the URL. The requests are forgotten."""
        from shards.places.stores import store_of
        from shards.places.url import parse_url

        store = store_of(parse_url(self.url(*parts)))
        for path in sorted(folder.iterdir()):
            store.put(path.name, path)
        self.proxy.forget()
        return self.url(*parts)
