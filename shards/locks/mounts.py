"""File systems whose locks do not reach other machines, by how they are mounted."""

import os
from pathlib import Path

NFS = frozenset({"nolock", "local_lock=all", "local_lock=flock"})
SMB = frozenset({"nobrl"})
LOCAL_ONLY = {"nfs": NFS, "nfs4": NFS, "cifs": SMB, "smb3": SMB, "lustre": frozenset({"localflock"})}
"""Kind of file system -> options under which a machine keeps its locks to itself."""

MOUNTS = Path("/proc/self/mountinfo")


def local_locks(folder: Path) -> str | None:
    """In words, why a lock in a folder is not seen by other machines that have the folder; None: it is, or unknown."""
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        lines, device = MOUNTS.read_text(errors="replace").splitlines(), there.stat().st_dev
    except OSError:  # not Linux
        return None
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        mount, _, shared = line.partition(" - ")
        kind, *rest = shared.split(" ")
        if mount.split(" ")[2:3] == [number] and kind in LOCAL_ONLY:
            found = LOCAL_ONLY[kind].intersection(*[",".join(rest[1:]).split(",")])
            return f"{kind} mounted with {min(found)}" if found else None
    return None
