"""`shards.html`: pages that are one file, make no request, and show text as text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from shards.html.assemble import assemble, embedded_json, package_text

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [path for room in ("shards", "student") for path in (ROOT / room).rglob("*.js") if "vendor" not in path.parts]
HOSTILE = [
    "<script>alert(1)</script>",
    "</script>",
    "<!-- &lt; &amp;",
    "\u2028\u2029",
    "\ud800",
    'a"b\\',
    "\u202eא👩‍👧\0",
]


class Page(HTMLParser):
    """What a browser finds in a page: (tag, attributes, text) of every element that holds text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.found, self.inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), ""))
        self.inside = True

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            tag, attrs, text = self.found[-1]
            self.found[-1] = (tag, attrs, text + data)

    def all(self, tag):
        return [(attrs, text) for found, attrs, text in self.found if found == tag]


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_in_the_data_comes_back_as_it_was_and_ends_no_script(text):
    found = Page(assemble("t", data={"text": text, text: 1}, scripts=["1;"]))
    data, *_ = [text for attrs, text in found.all("script") if attrs.get("id") == "data"]
    assert json.loads(data) == {"text": text, text: 1}
    assert len(found.all("script")) == 4, "data, base.js, the script, the start"
    assert not set("<>&\u2028\u2029") & set(embedded_json(text))


def test_a_title_is_escaped_once():
    found = Page(assemble("<b> &amp; </title>", data=None))
    assert [text.strip() for _, text in found.all("title")] == ["<b> &amp; </title>"]
    assert [text.strip() for _, text in found.all("h1")] == ["<b> &amp; </title>"]


def test_the_policy_forbids_requests_and_names_every_script_and_style():
    found = Page(assemble("t", data=None, scripts=["one();", "é();"], styles=["a {}"], blobs={"row-1": b"\0"}))
    (policy,) = [attrs["content"] for attrs, _ in found.all("meta") if "http-equiv" in attrs]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and "connect-src" not in rules
    scripts = [text for attrs, text in found.all("script") if "type" not in attrs]
    for name, texts in (("script-src", scripts), ("style-src", [text for _, text in found.all("style")])):
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert rules[name].split() == [f"'sha256-{digest}'" for digest in digests]
    assert not re.search(r"(src|href)=\"(?!data:,)", assemble("t", data=None))


def test_blobs_are_base64_under_their_names():
    found = Page(assemble("t", data=None, blobs={"row-12": bytes(range(256))}))
    ((_, text),) = [part for part in found.all("script") if part[0].get("id") == "row-12"]
    assert base64.b64decode(text) == bytes(range(256))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_strict_short_and_writes_no_html(path):
    text = path.read_text(encoding="utf-8")
    assert '\n"use strict";\n' in f"\n{text}"
    assert len(text.splitlines()) < 260
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|\beval\(|new Function", text)
    assert not re.search(r"fetch\(|XMLHttpRequest|https?://(?!www\.w3\.org/2000/svg)|import\(", text), "a request"


def test_a_wheel_and_a_source_distribution_carry_the_pages():
    tomllib, pathspec = pytest.importorskip("tomllib"), pytest.importorskip("pathspec")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    targets = project["tool"]["hatch"]["build"]["targets"]
    taken = pathspec.PathSpec.from_lines("gitignore", targets["sdist"]["include"])
    assets = [
        p for room in targets["wheel"]["packages"] for p in (ROOT / room).rglob("*") if p.suffix in (".js", ".css")
    ]
    assert assets and not [path for path in assets if not taken.match_file(str(path.relative_to(ROOT)))]
    assert package_text("shards.html", "style.css") == files("shards.html").joinpath("style.css").read_text()
