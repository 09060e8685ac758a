"""A bucket of moto on loopback that counts requests, and answers some of them badly."""

import contextlib
import threading
from collections import Counter
from dataclasses import dataclass, field

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

NAME = "bucket"


class _Quiet(WSGIRequestHandler):
    def log_request(self, *args, **kwargs):
        pass


@dataclass
class Bucket:
    """requests: (method, key) of everything that was asked, in order.

    answers: (method, key) -> what to do with that request: "lost" does it and answers 500, "refused" answers 500,
    "conditional" answers 501 if the write is conditional; None does it.
    """

    endpoint: str
    requests: list = field(default_factory=list)
    answers: object = staticmethod(lambda method, key: None)

    def puts(self) -> Counter:
        """file -> how often it was put."""
        return Counter(key.rpartition("/")[2] for method, key in self.requests if method == "PUT")

    def count(self, method) -> int:
        return sum(asked == method for asked, _ in self.requests)

    def objects(self, prefix) -> dict:
        """name -> content below a prefix, asked behind the counters."""
        import boto3

        client = boto3.client("s3", endpoint_url=self.endpoint)
        found = client.list_objects_v2(Bucket=NAME, Prefix=f"{prefix}/").get("Contents", [])
        before = list(self.requests)
        content = {
            entry["Key"].removeprefix(f"{prefix}/"): client.get_object(Bucket=NAME, Key=entry["Key"])["Body"].read()
            for entry in found
        }
        self.requests[:] = before
        return content


@contextlib.contextmanager
def bucket_server(monkeypatch):
    """A Bucket, with the environment that leads to it."""
    import boto3

    inner = DomainDispatcherApplication(create_backend_app)
    bucket = Bucket(endpoint="")

    def app(environ, start_response):
        method, key = environ["REQUEST_METHOD"], environ["PATH_INFO"].removeprefix(f"/{NAME}").strip("/")
        bucket.requests.append((method, key))
        answer = bucket.answers(method, key)
        if answer == "lost":
            b"".join(inner(environ, lambda *args: None))
        conditional = answer == "conditional" and "HTTP_IF_NONE_MATCH" in environ
        if answer in ("lost", "refused") or conditional:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("501 No" if conditional else "500 No", [("Content-Length", "0")])
            return [b""]
        return inner(environ, start_response)

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    bucket.endpoint = f"http://127.0.0.1:{server.server_port}"
    settings = {"ENDPOINT_URL": bucket.endpoint, "ALLOW_HTTP": "true", "REGION": "us-east-1"}
    settings |= {"ACCESS_KEY_ID": "name", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        boto3.client("s3", endpoint_url=bucket.endpoint).create_bucket(Bucket=NAME)
        bucket.requests.clear()
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        _forget()


def _forget():
    from moto.backends import get_backend
    from moto.core.models import base_decorator  # noqa: F401

    get_backend("s3").reset()
