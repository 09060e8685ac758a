"""The codec benchmark runs, and its codecs store what their names say."""

import json
import sys

import numpy as np
import pytest

from benchmarks.codec.__main__ import main
from benchmarks.codec.codecs import all_codecs, by_id, compressed, decompressed, law
from benchmarks.codec.distillkit import SETTINGS, distillkit_codecs
from benchmarks.codec.measure import measure, pack, supported
from benchmarks.codec.options import CodecOptions
from benchmarks.codec.sizes import any_set, by_magnitude, groups, synthetic
from benchmarks.fidelity.dense import load_roles, read_rows, score
from benchmarks.fidelity.supports import stored
from shards.errors import OptionError
from shards.format.encoding import compact
from shards.format.schema import ROLES

TOP_K = 4
DISTILLKIT = {
    "__init__.py": "",
    "compression/__init__.py": "",
    "compression/config.py": "def DistributionQuantizationConfig(**fields):\n    return fields\n",
    "compression/compressor.py": """
import torch

class LogprobCompressor:
    def __init__(self, config):
        self.k = config["k"]

    def compress_from_sparse(self, indices, logprobs):
        assert indices.shape[-1] == self.k and (logprobs.diff(dim=-1) <= 0).all()
        return {"ids": indices.int(), "values": logprobs.bfloat16().view(torch.uint8)}

    def decompress_to_sparse(self, row):
        return row["ids"].long(), row["values"].view(torch.bfloat16)
""",
}
"""A package with DistillKit's names, which rounds to bfloat16."""


@pytest.fixture(scope="module")
def dense(trio_folders, pairs_file):
    """Forty positions of tiny models."""
    rows = read_rows(trio_folders, str(pairs_file), rows=12, max_length=64)
    return score(load_roles(trio_folders, "float32"), rows, 40)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name, text in DISTILLKIT.items():
        file = tmp_path / "checkout" / "distillkit" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for setting in SETTINGS.values():
        monkeypatch.setitem(setting, "k", TOP_K)
    yield tmp_path / "checkout"
    for name in [name for name in sys.modules if name.partition(".")[0] == "distillkit"]:
        del sys.modules[name]


def there_and_back(codec, exact):
    arrays = pack(codec, exact)
    with law(codec.law):
        return by_id(codec.unpack(decompressed(compressed(arrays), arrays), exact), exact)


@pytest.mark.parametrize("codec", all_codecs(TOP_K), ids=lambda codec: codec.name)
def test_every_codec_gives_back_its_tokens_and_about_their_log_probs(dense, codec):
    exact = supported(dense, codec.top_k, TOP_K)
    found = there_and_back(codec, exact)
    steps = 256 if codec.law is None else codec.law[1]
    for role in ROLES:
        error = np.abs(found.logprobs[role] - exact.logprobs[role]).max()
        assert error <= 1 / (2 * steps - 1) if codec.numbers else error < 4e-3
        assert (error == 0) == (codec.name == "float32 values")


def test_compact_values_are_those_of_a_cache():
    exact = synthetic(1_000, 1, 16)
    assert exact.l1_distance["reverse"].min() < 0.1, "some units are finer than 2^-20"
    cached, _ = stored(exact, "compact", 1_000)
    found = there_and_back(all_codecs(TOP_K)[1], exact)
    for role in ROLES:
        np.testing.assert_array_equal(found.logprobs[role], cached.logprobs[role])


def test_another_law_ends_with_its_block():
    def constants():
        return compact.UNIT_BITS, compact.STEPS_PER_NAT, compact.LINEAR_FROM

    before = constants()
    with pytest.raises(ZeroDivisionError), law((12, 4)):
        assert constants() == (12, 4, 4)
        _ = 1 / 0
    assert constants() == before


def test_megatrons_layout_holds_ids_of_17_bits_and_no_more():
    codec, exact = all_codecs(64)[-1], supported_ids(np.linspace(0, (1 << 17) - 1, 64).astype(np.int32))
    np.testing.assert_array_equal(there_and_back(codec, exact).support_ids, exact.support_ids)
    assert codec.serves(1 << 17) and not codec.serves(151_936)


def supported_ids(ids):
    """One position with these kept ids."""
    scores = synthetic(1 << 17, 1, 64)
    wide = next(i for i in range(scores.num_positions) if scores.support_count[i] >= len(ids))
    one = scores.slice(wide, wide + 1)
    fields = {name: getattr(one, name) for name in type(one).__slots__}
    logprobs = {role: values[: len(ids)] for role, values in one.logprobs.items()}
    counts = np.array([len(ids)], np.int32)
    return type(one)(**fields | {"support_ids": ids, "logprobs": logprobs, "support_count": counts})


def test_bytes_are_counted_once_and_bounds_are_entropies():
    scores = synthetic(1_000, 1, 16)
    assert sum(groups(scores, 1_000).values()) > groups(scores, 1_000)["ids"] > 0
    assert by_magnitude({"constant": np.full(100, 1)}) == 0
    assert by_magnitude({"bytes": np.repeat([0, 1], 400)}) == pytest.approx(100)
    assert by_magnitude({"wide": np.full(8, 255)}) == 7, "seven bits below the first of each"
    assert any_set(scores, 1_000) < 1_000 / 8, "a bit for each token of the vocabulary is enough"


def test_distillkit_is_run_from_a_checkout(dense, checkout):
    with pytest.raises(OptionError, match="expected a checkout"):
        distillkit_codecs(checkout / "distillkit", dense.vocabulary_size)
    rows = measure(dense, distillkit_codecs(checkout, dense.vocabulary_size), TOP_K, repeats=1)
    assert [row["mean"] for row in rows] == [TOP_K] * len(SETTINGS)
    assert all(1e-4 < row["worst"] < 0.1 for row in rows)


def test_a_folder_without_distillkit_is_refused(tmp_path):
    with pytest.raises(OptionError, match="expected a checkout of arcee-ai/DistillKit in"):
        distillkit_codecs(tmp_path, 18)


def test_every_number_of_the_page_is_there(trio_folders, pairs_file, tmp_path):
    (tmp_path / "trio").symlink_to(trio_folders["dpo"].parent)
    sizes = {"rows": 4, "positions": 24, "max_length": 64, "top_k": TOP_K, "vocabulary": 200, "synthetic_rows": 1}
    flags = [f"--{name}={value}" for name, value in (sizes | {"repeats": 1, "out": tmp_path / "out"}).items()]
    main([*flags, "--trios", f"tiny={tmp_path / 'trio'}", "--data", str(pairs_file)])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["name"]: row for row in results["trios"]["tiny"]["codecs"]}
    assert rows["float32 values"]["worst"] == 0 < rows["compact values"]["worst"] <= 1 / 511
    assert rows["float32 values"]["excess"] == pytest.approx(0, abs=1e-2)
    assert all(row["seconds"] > 0 and row["bytes"] > row["kept_bytes"] > 0 for row in rows.values())
    text = (tmp_path / "out" / "codec.md").read_text()
    assert all(f"| {name} |" in text for name in [*rows, "tail partitions"]) and "no checkout was given" in text


@pytest.mark.parametrize(
    ("flags", "named"),
    [({"trios": ["a=b"]}, "trios and data"), ({"trios": ["b"], "data": "pairs"}, "name=folder"), ({"rows": 0}, "rows")],
)
def test_flags_that_cannot_be_are_refused(flags, named):
    with pytest.raises(OptionError, match=named):
        CodecOptions(**flags)
