"""Says which single bit of a file was flipped, from its recorded crc32 and sha256. Pure.

The crc32 of a text and of the same text with one bit flipped differ by a number that depends on the bit's distance from
the end alone: x to the power of that distance, modulo the polynomial of crc32. Its logarithm is found by baby steps
and giant steps, so a file is read twice, whatever its size: once for its sums, and once to confirm by sha256.
"""

import hashlib
import zlib
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from shards.files import Sums
from shards.format.encoding.seal import MARK, sealed

POLYNOMIAL = 0xEDB88320
ORDER = 2**32 - 1  # of x modulo the polynomial, which is primitive
STEPS = 1 << 13
REGISTER = 32  # bits of a crc32: what is flipped last is multiplied by x so often


class Flip(NamedTuple):
    """A bit of a file: bit 0 is the lowest of its byte; bytes count from 0."""

    byte: int
    bit: int

    def __str__(self) -> str:
        return f"bit {self.bit} of byte {self.byte:,} was flipped"

    def undone(self, content: bytes) -> bytes:
        """The content without the flip."""
        right = bytearray(content)
        right[self.byte] ^= 1 << self.bit
        return bytes(right)


def flip_by_sums(content: bytes, expected: Sums) -> Flip | None:
    """The one bit that explains why a file has other sums; None if none does."""
    if len(content) != expected.bytes:
        return None
    for flip in _by_crc32(content, expected.crc32):
        if hashlib.sha256(flip.undone(content)).hexdigest() == expected.sha256:
            return flip
    return None


def flip_to(content: bytes, expected: bytes) -> Flip | None:
    """The one bit in which two contents differ; None if they differ otherwise."""
    if len(content) != len(expected):
        return None
    low, high = int.from_bytes(content, "little"), int.from_bytes(expected, "little")
    if (different := low ^ high).bit_count() != 1:
        return None
    return Flip(*divmod(different.bit_length() - 1, 8))


def flip_of_sealed(content: bytes) -> Flip | None:
    """The one bit that explains why a sealed file has another seal: a bit of its text, or of the seal."""
    for digits in range(1, 11):
        text = content[: len(content) - len(sealed(b"")) - digits + 1]
        if (flip := flip_to(content, sealed(text))) is not None:
            return flip
        found = content[len(text) + len(MARK) :][:digits]
        if not (content.startswith(MARK, len(text)) and found.isdigit()):
            continue
        for flip in _by_crc32(text, int(found)):
            if sealed(flip.undone(text)) == flip.undone(content):
                return flip
    return None


def _by_crc32(content: bytes, expected: int) -> Iterator[Flip]:
    """The bits that would give the content this crc32: one for each 512 MiB."""
    bits = 8 * len(content)
    place = _logarithm(zlib.crc32(content) ^ expected, bits + REGISTER)
    while place is not None and place < bits + REGISTER:
        byte, bit = divmod(
            place - REGISTER, 8
        )  # from the end; the lowest bit of a byte goes through the register first
        if byte >= 0:
            yield Flip(len(content) - 1 - byte, 7 - bit)
        place += ORDER


def _logarithm(number: int, most: int) -> int | None:
    """k with x^k = number, of 0 to `most` and the first of these; None if there is none."""
    powers, tables = _baby_steps(), _giant_step()
    for giant in range(min(most, ORDER) // STEPS + 1 if number else 0):
        if number in powers:
            return giant * STEPS + powers[number]
        low, high = number & 0xFFFF, number >> 16
        number = tables[0][low & 255] ^ tables[1][low >> 8] ^ tables[2][high & 255] ^ tables[3][high >> 8]
    return None


@cache
def _baby_steps() -> dict[int, int]:
    """x^k -> k for k below STEPS; x^0 is the highest bit, as in crc32 all is mirrored."""
    found, number = {}, 1 << 31
    for k in range(STEPS):
        found[number] = k
        number = number >> 1 ^ (POLYNOMIAL if number & 1 else 0)
    return found


@cache
def _giant_step() -> list[list[int]]:
    """Division by x^STEPS, which is linear: for each byte of a number its part of the result."""
    bits = []
    for place in range(32):
        number = 1 << place
        for _ in range(STEPS):
            number = ((number ^ POLYNOMIAL) << 1 | 1) if number >> 31 else number << 1
        bits.append(number)
    parts = [[0] * 256 for _ in range(4)]
    for table in range(4):
        for byte in range(256):
            for i in range(8):
                if byte >> i & 1:
                    parts[table][byte] ^= bits[8 * table + i]
    return parts
