"""python -m tests.tree: prints the tree of the packages, a line per folder and per file, from their docstrings.

--write puts it into CONTRIBUTING.md; a test compares them.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("shards", "precompute", "student")
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- tree -->\n", "<!-- end of tree -->\n"
FIRST_COLUMN, WIDTH = 30, 150


def tree() -> str:
    """All folders and files, each with the first sentence of its docstring."""
    return "\n".join(line for room in ROOMS for line in _folder(ROOT / room, 0))


def in_page(page: str) -> str:
    """The page with the current tree."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}```\n{tree()}\n```\n{END}{after}"


def _folder(folder: Path, depth: int) -> list[str]:
    """A folder's line, then its files, then its folders."""
    lines = [_line(f"{folder.name}/", folder / "__init__.py", depth)]
    files = (path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py")
    lines += [_line(path.name, path, depth + 1) for path in files]
    inner = (path.parent for path in sorted(folder.glob("*/__init__.py")))
    return lines + [line for path in inner for line in _folder(path, depth + 1)]


def _line(name: str, file: Path, depth: int) -> str:
    first = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    line = f"{'    ' * depth + name:<{FIRST_COLUMN}} {' '.join(first.split())}"
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(in_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tree())
