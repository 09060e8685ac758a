"""What a tracer reads of a process that is stopped at a system call. Linux."""

import os
from pathlib import Path

LONGEST_PATH = 4096
PAGE_BYTES = 4096


def text_at(pid: int, address: int) -> str:
    """The string at an address: page by page, because the next one may not be mapped. Raises OSError, ValueError."""
    found = b""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        while b"\0" not in found and len(found) < LONGEST_PATH:
            memory.seek(address + len(found))
            piece = memory.read(PAGE_BYTES - (address + len(found)) % PAGE_BYTES)
            if not piece:
                break
            found += piece
    return os.fsdecode(found.partition(b"\0")[0])
