"""Seals a JSON file: its last two keys are the crc32 and the sha256 of its text before them. Pure.

So an edit of the file, of blanks too, is found when it is read. The crc32 is linear: it says which bit was flipped.
"""

import hashlib
import zlib

from shards.errors import CacheDamaged

SEAL_KEYS = ("content_crc32", "content_sha256")
END = b"\n}\n"
MARK = b',\n "content_crc32": '


def sealed(content: bytes) -> bytes:
    """The text of a JSON object, indented as `shards.format.writer.json_bytes` does it, with its seal."""
    text = content.removesuffix(END)
    crc32, sha256 = zlib.crc32(text), hashlib.sha256(text).hexdigest()
    return text + MARK + b'%d,\n "content_sha256": "%s"' % (crc32, sha256.encode()) + END


def sealed_text(content: bytes) -> bytes | None:
    """What the seal of a file is of; None if it has none that can be found."""
    place = content.rfind(MARK)
    return None if place < 0 else content[:place]


def check_seal(content: bytes, where: str) -> bool:
    """Whether a file has a seal. Raises CacheDamaged if it has one of another text."""
    text = sealed_text(content)
    if text is not None and sealed(text) != content:
        found = hashlib.sha256(text).hexdigest()
        raise CacheDamaged(f"{where}: expected the text of its content_sha256, got one with sha256 {found}")
    return text is not None
