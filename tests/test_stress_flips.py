"""The campaign `flips` in small: a few cases of each kind hold, and what is planted is found."""

import random

import pytest
from stress.flips.campaign import Flips


@pytest.fixture(scope="module")
def flips(tmp_path_factory):
    return Flips(tmp_path_factory.mktemp("flips"), 0)


def bounds(flips):
    """Where the bits of a file begin and end among the cases, by codec and file; then the damages, and begun builds."""
    found, begin = {}, 0
    for name, bits in zip(flips.files, flips.bits, strict=True):
        found[name] = (begin, begin + bits)
        begin += bits
    found["damages"] = (begin, begin + len(flips.damages))
    found["begun"] = (begin + len(flips.damages), len(flips))
    return found


def test_a_flip_of_any_file_and_every_other_kind_of_damage_is_found(flips):
    generator = random.Random(0)
    for name, (begin, end) in bounds(flips).items():
        for number in generator.sample(range(begin, end), 40 if name in ("damages", "begun") else 12):
            assert flips.case(number).verdict == "held", flips.case(number)


CAUGHT = {  # in which file a defect shows
    "crc32 of columns not compared": ("float32", "part-00000.arrow"),
    "sha256 of the index not compared": ("compact", "index.arrow"),
    "verify compares no sha256": ("compact", "part-00000.arrow"),
    "seal of the manifest not compared": ("compact", "manifest.json"),
    "a resumed build checks the columns of its statistics alone": "begun",
}


@pytest.mark.parametrize("defect", Flips.defects)
def test_a_planted_defect_is_found(flips, defect):
    begin, end = bounds(flips)[CAUGHT[defect]]
    numbers = random.Random(0).sample(range(begin, end), 120)
    with Flips.defects[defect]():
        assert any(flips.case(number).verdict == "missed" for number in numbers)


def test_nothing_is_left_behind(flips):
    for ground in flips.grounds.values():
        assert {path.name: path.read_bytes() for path in ground.folder.iterdir()} == ground.content
