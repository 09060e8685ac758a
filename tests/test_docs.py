"""The pages: links, anchors and file names are valid, the index is complete, README stays short."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("shards", "precompute", "student", "benchmarks", "examples", "tests")
FOLDERS = (".", "docs", "docs/decisions", "examples", "benchmarks")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
SOURCES = sorted(file for name in PACKAGES for ending in ("py", "yaml") for file in (ROOT / name).rglob(f"*.{ending}"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE_PATH = re.compile(rf"`((?:{'|'.join(PACKAGES)})/[\w/]+\.(?:py|yaml))`")
PAGE_NAME = re.compile(r"\b(?:docs|examples|benchmarks)/[\w/-]+\.md\b")
WITHOUT_AN_ENTRY = {"docs/README.md"}


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _prose(page: Path) -> str:
    """The page without its code: blocks between fences, and indented ones after an empty line."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
    return re.sub(r"(?<=\n\n)(?: {4}.*\n)+", "", text)


def _anchors(page: Path) -> set[str]:
    """GitHub's anchors for a page's headings: lower case, no punctuation, hyphens for spaces; a number on repeats."""
    found: dict[str, int] = {}
    anchors = set()
    for title in re.findall(r"(?m)^#{1,6} (.+?)\s*$", _prose(page)):
        anchor = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", title).lower()).replace(" ", "-")
        times = found.get(anchor, 0)
        found[anchor] = times + 1
        anchors.add(f"{anchor}-{times}" if times else anchor)
    return anchors


def _broken(page: Path) -> Iterator[str]:
    for link in LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: there is no {path}"
        elif anchor and anchor not in _anchors(target):
            yield f"{link}: {_name(target)} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_relative_link_and_anchor_resolves(page: Path):
    assert list(_broken(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_source_file_that_a_page_names_is_there(page: Path):
    named = CODE_PATH.findall(page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_that_the_code_names_is_there():
    named = {(file, name) for file in SOURCES for name in PAGE_NAME.findall(file.read_text(encoding="utf-8"))}
    assert named
    assert [(_name(file), name) for file, name in named if not (ROOT / name).exists()] == []


def test_the_index_has_an_entry_for_every_page_of_docs():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(_prose(index))}
    pages = [page for page in PAGES if _name(page).startswith("docs/") and _name(page) not in WITHOUT_AN_ENTRY]
    assert [_name(page) for page in pages if page.resolve() not in linked] == []


def test_readme_is_a_front_door_of_under_120_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120
