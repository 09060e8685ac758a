"""The layers: `precompute` writes what `shards` defines, `student` reads it; no import goes the other way."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from tree import PAGE, in_page

ROOT = Path(__file__).parents[1]
ROOMS = ("shards", "precompute", "student")
COMMANDS = {
    *(f"precompute.{name}" for name in ("build", "check", "teachers", "rollout")),
    *(f"shards.{name}" for name in ("verify", "inspect", "learn", "pipeline", "copy")),
    *(f"student.{name}" for name in ("train", "evaluate", "report")),
}
FORBIDDEN = {
    "shards": {"precompute", "student", "torch", "transformers", "datasets", "accelerate", "trl", "peft"},
    "precompute": {"student"},
    "student": {"precompute"},
}


@functools.cache
def modules():
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
    }


@functools.cache
def imports(tree):
    """The import statements of a module, at its top or inside a function."""
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def imported(tree):
    """Names that a module imports: `a`; `a` and `a.b` for `from a import b`."""
    for node in imports(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            assert node.level == 0, "imports are absolute here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def needed(tree, trees):
    """Modules that a module needs: `from shards.format import schema` needs schema, and its package for other names."""
    for node in imports(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in trees)
        else:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from (name for name in (inner if inner in trees else node.module,) if name in trees)


def folder_of(name):
    """The folder in a room that a module is in, with all that is below it; None for a module beside the folders."""
    room, *rest = name.split(".")
    return f"{room}.{rest[0]}" if rest and (ROOT / room / rest[0]).is_dir() else None


def circle_in(edges):
    """What is left of a graph when all that leads nowhere is taken away again and again."""
    edges = {name: set(edges.get(name, ())) for name in {*edges, *(t for targets in edges.values() for t in targets)}}
    while leaves := {name for name, targets in edges.items() if not targets}:
        edges = {name: targets - leaves for name, targets in edges.items() if name not in leaves}
    return edges


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room):
    for name, tree in modules().items():
        if name.split(".")[0] == room:
            found = {target.split(".")[0] for target in imported(tree)} & FORBIDDEN[room]
            assert not found, f"{name} imports {found}"


def test_inside_shards_the_format_knows_no_teacher_and_neither_of_them_the_cache():
    cache = ("shards.cache", "shards.ShardCache", "shards.TeacherSpec")
    below = {"shards.format": ("shards.teacher", *cache), "shards.teacher": cache}
    for name, tree in modules().items():
        for folder, above in below.items():
            if name.startswith(folder):
                found = [target for target in imported(tree) if target.startswith(above)]
                assert not found, f"{name} imports {found}"


def test_nobody_imports_a_command():
    trees = modules()
    commands = {name for name in trees if name.endswith(".__main__")}
    assert {name.removesuffix(".__main__") for name in commands} == COMMANDS
    for name, tree in trees.items():
        assert not commands & set(imported(tree)), name
        others = [f"{command}." for command in COMMANDS if not name.startswith(command)]
        found = {target for target in imported(tree) if target.startswith(tuple(others))}
        assert not found or not name.startswith(tuple(COMMANDS)), f"{name} imports {found} of another command"


def test_no_folder_has_more_than_ten_modules():
    for room in ROOMS:
        for folder in (ROOT / room, *(path for path in (ROOT / room).rglob("*") if path.is_dir())):
            found = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
            assert len(found) <= 10, f"{folder.relative_to(ROOT)}: {found}"


def test_folders_do_not_import_each_other_in_a_circle():
    trees = modules()
    edges = {}
    for name, tree in trees.items():
        for target in needed(tree, trees):
            ours, theirs = folder_of(name), folder_of(target)
            if ours and theirs and ours != theirs:
                edges.setdefault(ours, set()).add(theirs)
    assert circle_in(edges) == {}


def test_there_is_no_import_cycle():
    trees = modules()
    edges = {name: {target for target in needed(tree, trees) if target != name} for name, tree in trees.items()}
    assert circle_in(edges) == {}


@pytest.mark.parametrize(
    "module", ["shards", *sorted(f"{name}.__main__" for name in COMMANDS if name.startswith("shards"))]
)
def test_reading_a_cache_loads_neither_torch_nor_transformers(module):
    code = f"import sys, {module}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_tree_in_contributing_is_the_tree():
    page = PAGE.read_text(encoding="utf-8")
    assert in_page(page) == page, "python -m tests.tree --write"


def test_the_source_distribution_takes_every_module():
    tomllib, pathspec = pytest.importorskip("tomllib"), pytest.importorskip("pathspec")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    include = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    files = [path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    taken = set(pathspec.PathSpec.from_lines("gitignore", include).match_files(map(str, files)))
    assert not [path for path in map(str, files) if path not in taken]
