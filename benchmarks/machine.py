"""The machine and versions that a benchmark ran on."""

import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path


def processor() -> str:
    """The processor's name, and whether it is virtual."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {name.strip(): value.strip() for name, value in facts.items()}
    virtual = " (virtual)" if "hypervisor" in named.get("flags", "").split() else ""
    return named.get("model name", platform.machine()) + virtual


def versions(names: Iterable[str]) -> str:
    """Versions of Python and of these packages."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])
