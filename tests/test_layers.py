"""Three rooms, one direction: `precompute` writes what `shards` defines, `student` reads it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("shards", "precompute", "student")
FORBIDDEN = {
    "shards": {"precompute", "student", "torch", "transformers", "datasets", "accelerate", "trl", "peft"},
    "precompute": {"student"},
    "student": {"precompute"},
}


def modules():
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
    }


def imported(tree):
    """Names that a module imports, at its top or inside a function: `a`; `a` and `a.b` for `from a import b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_command(tree):
    """A module that is run with python -m."""
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room):
    for name, tree in modules().items():
        if name.split(".")[0] == room:
            found = {target.split(".")[0] for target in imported(tree)} & FORBIDDEN[room]
            assert not found, f"{name} imports {found}"


def test_nobody_imports_a_command_line_module():
    trees = modules()
    commands = {name for name, tree in trees.items() if is_command(tree)}
    assert {"precompute.build", "precompute.check", "shards.verify", "shards.inspect"} <= commands
    for name, tree in trees.items():
        assert not commands & set(imported(tree)), name


def test_there_is_no_import_cycle():
    trees = modules()
    # `from shards import codec` needs the module codec; the package itself only where it is asked for other names
    edges = {name: set(imported(tree)) & trees.keys() for name, tree in trees.items()}
    while leaves := {name for name, targets in edges.items() if not targets}:
        edges = {name: targets - leaves for name, targets in edges.items() if name not in leaves}
    assert not edges, f"a cycle among {sorted(edges)}"


@pytest.mark.parametrize("module", ["shards", "shards.inspect", "shards.learn", "shards.pipeline", "shards.verify"])
def test_reading_a_cache_loads_neither_torch_nor_transformers(module):
    code = f"import sys, {module}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
