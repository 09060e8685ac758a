"""The clients that are compared, each with the same four calls. A client that is not installed is left out."""

import http.client
import urllib.parse

from shards.places.objects import ObjectStore, Patience
from shards.places.url import parse_url

BUCKET = "bucket"
PATIENCE = Patience(read=2, whole=60, tries=3, pause=0.1)


class Plain:
    """The floor: Python's own http.client, one connection, no signature, no retries."""

    name = "http.client (floor)"

    def __init__(self, endpoint):
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(endpoint).netloc)

    def ask(self, method, key, body=None):
        self.connection.request(method, f"/{BUCKET}/{key}", body)
        answer = self.connection.getresponse()
        return answer, answer.read() if method == "PUT" else b""

    def put(self, key, content):
        self.ask("PUT", key, content)

    def read(self, key):
        self.connection.request("GET", f"/{BUCKET}/{key}")
        return self.connection.getresponse().read()

    def fetch(self, key, path):
        self.connection.request("GET", f"/{BUCKET}/{key}")
        answer = self.connection.getresponse()
        with path.open("wb") as sink:
            while piece := answer.read(1 << 20):
                sink.write(piece)

    def create(self, key, content):
        self.connection.request("PUT", f"/{BUCKET}/{key}", content, {"If-None-Match": "*"})
        answer = self.connection.getresponse()
        answer.read()
        return answer.status == 200


class Obstore:
    """obstore through `shards.places.objects`: our time-outs, our tries."""

    name = "obstore"

    def __init__(self, endpoint):
        self.store = ObjectStore(parse_url(f"s3://{BUCKET}"), PATIENCE)

    def put(self, key, content):
        self.store.put(key, content, create=False)

    def read(self, key):
        return self.store.read(key)

    def fetch(self, key, path):
        path.touch()
        self.store.fetch(key, path)

    def create(self, key, content):
        return self.store.put(key, content)


class S3fs:
    """fsspec's s3fs, with the same time-outs."""

    name = "s3fs"

    def __init__(self, endpoint):
        import s3fs

        settings = {"connect_timeout": 10, "read_timeout": 2, "retries": {"max_attempts": 3, "mode": "standard"}}
        self.files = s3fs.S3FileSystem(endpoint_url=endpoint, config_kwargs=settings, skip_instance_cache=True)

    def put(self, key, content):
        self.files.pipe_file(f"{BUCKET}/{key}", content)

    def read(self, key):
        return self.files.cat_file(f"{BUCKET}/{key}")

    def fetch(self, key, path):
        self.files.get_file(f"{BUCKET}/{key}", str(path))

    def create(self, key, content):
        try:
            self.files.pipe_file(f"{BUCKET}/{key}", content, mode="create")
        except FileExistsError:
            return False
        return True


CLIENTS = {kind.name: kind for kind in (Plain, Obstore, S3fs)}
