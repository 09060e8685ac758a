"""A lean S3 server in memory, in a process of its own: PUT, GET and HEAD of whole objects, and faults by name.

The first GETs of a key that begins with stall, cut or status fail so: half of the body and then nothing, half of
the body and then the end, or status 500. `python -m benchmarks.stores.server` prints its port.
"""

import hashlib
import http.server
import threading
import time
from collections import Counter
from typing import ClassVar

FAILING = {"stall": 1, "cut": 1, "status": 1, "stallalways": 10**9, "cutalways": 10**9, "statusalways": 10**9}
LONGEST_SECONDS = 120


class Objects(http.server.BaseHTTPRequestHandler):
    """One connection. Objects and failures are shared by all."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}
    failed: ClassVar[Counter] = Counter()
    requests: ClassVar[Counter] = Counter()
    lock = threading.Lock()
    wbufsize = 1 << 16

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def handle_expect_100(self):
        """botocore waits for this answer before it sends a body."""
        done = super().handle_expect_100()
        self.wfile.flush()
        return done

    @property
    def key(self):
        return self.path.partition("?")[0]

    def do_PUT(self):
        size = int(self.headers["Content-Length"])
        content = self.rfile.read(size)
        self.requests["PUT"] += 1
        if self.headers.get("If-None-Match") == "*" and self.key in self.objects:
            self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        self.objects[self.key] = content
        self.answer(200, b"", {"ETag": f'"{hashlib.md5(content[:1000]).hexdigest()}"'})

    def do_GET(self):
        self.requests["GET"] += 1
        name = self.key.rpartition("/")[2]
        kind = name.partition("-")[0]
        with self.lock:
            self.failed[name] += 1
            fails = self.failed[name] <= FAILING.get(kind, 0)
        if name == "counts":
            self.answer(200, repr(dict(self.requests)).encode())
            self.requests.clear()
        elif self.key not in self.objects:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif fails and kind.startswith("status"):
            self.answer(500, b"<Error><Code>InternalError</Code></Error>")
        else:
            self.answer(200, self.objects[self.key], broken=kind if fails else "")

    def do_HEAD(self):
        self.requests["HEAD"] += 1
        found = self.objects.get(self.key)
        self.send_response_only(404 if found is None else 200)
        self.send_header("Content-Length", str(len(found or b"")))
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", self.date_time_string())
        self.end_headers()

    def answer(self, status, content, headers=None, broken=""):
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Last-Modified", self.date_time_string())
        self.send_header("ETag", '"x"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if broken else content)
        self.wfile.flush()
        if broken:
            self.close_connection = True
        if broken.startswith("stall"):
            time.sleep(LONGEST_SECONDS)


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Objects)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
