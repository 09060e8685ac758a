"""Flips: every single bit of a small cache of both codecs; pages, lengths, whole files, fields; and begun builds."""

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from unittest import mock

from shards.errors import CacheDamaged, CacheMissing
from shards.format import finishing, index, manifest
from shards.format.encoding import arrays
from shards.format.finishing import Findings, finished
from shards.format.manifest import MANIFEST_FILE, read_plan
from shards.verify import folder_rules
from stress.campaign import Campaign, Outcome, held, missed
from stress.flips.cases import Damage, damages
from stress.flips.ground import REFUSED, Ground

CODECS = ("float32", "compact")
WHOLE = 97  # every so many cases the whole cache is verified, and not only the damaged file
BEGUN = 11  # every so many bits of the files of a build that is not finished
NOT_OF_BEGUN = (MANIFEST_FILE, "provenance.json")  # not there yet; on which nothing depends


class Flips(Campaign):
    """Cases: the bits of all files; then the other damages; then bits of a begun build."""

    name, unit = "flips", "flips"

    def __init__(self, ground: Path, seed: int) -> None:
        self.seed = seed
        self.grounds = {codec: Ground.make(ground / codec, codec) for codec in CODECS}
        others = {codec: Ground.make(ground / f"other {codec}", codec, seed=1) for codec in CODECS}
        self.files = [(codec, file) for codec in CODECS for file in self.grounds[codec].content]
        self.bits = [8 * len(self.grounds[codec].content[file]) for codec, file in self.files]
        self.damages = [(c, d) for c in CODECS for d in damages(self.grounds[c].content, others[c].content)]
        self.begun = [
            (c, f, bit) for (c, f), bits in zip(self.files, self.bits, strict=True) for bit in range(0, bits, BEGUN)
        ]
        self.begun = [case for case in self.begun if case[1] not in (MANIFEST_FILE, "provenance.json")]

    def __len__(self) -> int:
        return sum(self.bits) + len(self.damages) + len(self.begun)

    def case(self, number: int) -> Outcome:
        rest = number
        for (codec, file), bits in zip(self.files, self.bits, strict=True):
            if rest < bits:
                return self.flip(codec, file, *divmod(rest, 8), whole=number % WHOLE == 0)
            rest -= bits
        if rest < len(self.damages):
            return self.damage(*self.damages[rest])
        codec, file, place = self.begun[rest - len(self.damages)]
        return self.flip_of_begun(codec, file, *divmod(place, 8))

    def flip(self, codec: str, file: str, byte: int, bit: int, *, whole: bool) -> Outcome:
        """The reader refuses the file or gives the same values, and verify names the bit."""
        ground, kind = self.grounds[codec], f"{codec} {file.replace('00001', '00000')}"
        expected = f"bit {bit} of byte {byte:,} was flipped"
        with ground.with_file(file, flipped(ground.content[file], byte, bit)):
            seen = ground.seen_by_readers(file)
            faults = ground.all_faults() if whole else ground.faults_of(file)
        if seen not in ("", REFUSED):
            return missed(kind, f"{expected} in {file}: {seen}")
        if not any(expected in fault and file in fault for fault in faults):
            return missed(kind, f"expected verify to say that {expected} in {file}, got {faults}")
        return held(f"{kind}: {'found by the reader' if seen else 'no value of it is read'}, bit named by verify")

    def damage(self, codec: str, damage: Damage) -> Outcome:
        """The same for other damages, of which verify finds that there is one."""
        ground, kind = self.grounds[codec], f"{codec} {damage.kind}"
        with contextlib.ExitStack() as stack:
            for file, content in damage.contents():
                stack.enter_context(ground.with_file(file, content))
            seen = {file: self._opened_and_read(ground, file) for file in damage.files if file in ground.content}
            faults = ground.all_faults()
        for file, found in seen.items():
            if found not in ("", REFUSED):
                return missed(kind, f"{file}: {found}")
        names = [
            "a finished cache" if file == MANIFEST_FILE and new is None else file for file, new in damage.files.items()
        ]
        if not any(name in fault for name in names for fault in faults):
            return missed(kind, f"expected a fault of {', '.join(damage.files)}, got {faults}")
        found = "found by the reader" if REFUSED in seen.values() else "no value of it is read"
        return held(f"{kind}: {found}, found by verify")

    def _opened_and_read(self, ground: Ground, file: str) -> str:
        """A damage may change sizes, which are compared when a cache is opened."""
        seen = ground.seen_by_readers(MANIFEST_FILE)
        return ground.seen_by_readers(file) if seen == "" else REFUSED

    def flip_of_begun(self, codec: str, file: str, byte: int, bit: int) -> Outcome:
        """A build that goes on refuses every flip in what is there, before it records it as right."""
        ground, kind = self.grounds[codec], f"{codec} begun build, {file.replace('00001', '00000')}"
        with ground.with_file(file, flipped(ground.content[file], byte, bit)):
            try:
                plan = read_plan(ground.folder / "plan.json")
                findings = Findings.nothing(plan)
                for shard in range(len(plan.shards)):
                    findings.read_back(ground.folder, plan, shard, earlier=True)
                finished(ground.folder, plan, [findings])
            except (CacheDamaged, CacheMissing) as error:
                clear = "\n" not in str(error)
                return held(f"{kind}: refused") if clear else missed(kind, f"expected one line, got {error}")
            except Exception as error:
                return missed(kind, f"expected CacheDamaged, got {error!r}")
        return missed(kind, f"expected a refusal for bit {bit} of byte {byte} of {file}, got a manifest")

    @staticmethod
    def no_crc32() -> contextlib.AbstractContextManager[object]:
        def check(batch, metadata, where):  # type: ignore[no-untyped-def]
            return arrays.flatten(batch)

        return mock.patch.object(arrays, "check_crc32", check)

    @staticmethod
    @contextlib.contextmanager
    def no_index_sha256() -> Iterator[None]:
        def read(folder, plan, name=None):  # type: ignore[no-untyped-def]
            return index._decoded((folder / "index.arrow").read_bytes(), plan, f"{folder}/index.arrow")

        with mock.patch.object(folder_rules, "read_index", read), mock.patch("shards.cache.read_index", read):
            yield

    @staticmethod
    def verify_without_sha256() -> contextlib.AbstractContextManager[object]:
        def sums(path):  # type: ignore[no-untyped-def]
            entries = manifest.read_manifest(path.parent).entries
            return next(
                manifest.Sums(e.bytes, zlib.crc32(path.read_bytes()), e.sha256) for e in entries if e.file == path.name
            )

        return mock.patch.object(folder_rules, "file_sums", sums)

    @staticmethod
    def no_seal() -> contextlib.AbstractContextManager[object]:
        return mock.patch.object(manifest, "check_seal", lambda content, where: b"content_sha256" in content)

    @staticmethod
    def columns_of_statistics_alone() -> contextlib.AbstractContextManager[object]:
        def read_back(self, folder, plan, shard, *, earlier=False):  # type: ignore[no-untyped-def]
            path = folder / plan.shards[shard].file
            opened = finishing.ShardOpener(plan, finishing.position_columns(plan)).open(path)
            where, most = f"{path}", plan.most_values(shard, 0)
            arrays.check_crc32(*finishing.load_batch(opened, 0, plan.first_row(shard, 0), most, where), where)
            entry = finishing.ShardEntry(file=path.name, entries=0, **finishing.file_sums(path)._asdict())
            self.shards[shard] = finishing.ReadBack(entry=entry, totals=self._take_totals())

        return mock.patch.multiple(finishing.Findings, read_back=read_back)

    defects: ClassVar = {
        "crc32 of columns not compared": no_crc32,
        "sha256 of the index not compared": no_index_sha256,
        "verify compares no sha256": verify_without_sha256,
        "seal of the manifest not compared": no_seal,
        "a resumed build checks the columns of its statistics alone": columns_of_statistics_alone,
    }


def flipped(content: bytes, byte: int, bit: int) -> bytes:
    new = bytearray(content)
    new[byte] ^= 1 << bit
    return bytes(new)
