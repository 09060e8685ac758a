"""How rows become batches: sizes found from memory and kept by a resumed build, no padding, compiled bodies."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import build_options
from test_packing import MODELS, ROWS, SMALL, V, role_model
from tiny import make_llama, make_tokenizer, save, write_jsonl
from transformers import MambaConfig, MambaForCausalLM

from precompute.build import build as build_module
from precompute.build import identity
from precompute.build.build import build
from precompute.build.options import BuildOptions
from precompute.build.work import models as model_work
from precompute.build.work import shard_work
from precompute.feeding.budget import MOST_BATCH_TOKENS, STEP, batch_tokens_for, chunk_positions_for, fitting_tokens
from precompute.models.role_model import RoleModel
from precompute.scoring.packing import batches_by_length, pack_flat, padding_share
from precompute.scoring.score import hidden_states, packed_states
from precompute.scoring.sharing import require_padding_free
from shards import ShardCache
from shards.errors import CacheConflict, ModelError, OptionError
from shards.format.manifest import read_plan
from shards.places.out import open_out
from shards.verify.__main__ import verify

SETTINGS = {"top_k": 5, "max_top_k": 12, "tokens_per_shard": 15}


class FakeMemory:
    """A device where a batch takes `base` bytes and `a_token` more for each padded token."""

    def __init__(self, total, base, a_token):
        self.total, self.base, self.a_token, self.scored = total, base, a_token, []

    def available(self):
        return self.total

    def score(self, rows):
        self.scored.append(len(rows) * max(rows))
        if self.base + self.scored[-1] * self.a_token > self.total:
            raise torch.OutOfMemoryError("out of memory\nmore")

    def peak_of(self, work):
        work()
        return self.base + self.scored[-1] * self.a_token


def fitting(memory, tokens=500):
    return fitting_tokens([tokens] * max(2, 4096 // tokens), tokens, memory.score, memory)


def test_the_batch_that_fits_leaves_a_tenth_free():
    memory = FakeMemory(total=20_000_000, base=4_000_000, a_token=1_000)
    assert fitting(memory) == 13 * STEP  # (18,000,000 - 4,000,000) / 1,000 is 14,000
    assert memory.scored == [500, 500, 4000]
    assert fitting(FakeMemory(10**12, 0, 1)) == MOST_BATCH_TOKENS
    assert fitting(FakeMemory(5_000_000, 900_000, 1_000)) == 3 * STEP
    assert fitting(FakeMemory(4_200_000, 100_000, 1_000)) == 3 * STEP


def test_a_row_that_does_not_fit_is_refused_in_one_line():
    with pytest.raises(
        OptionError, match=r"^batch_tokens: expected memory for 2 rows of up to 3,000 tokens, got [^\n]*$"
    ):
        fitting(FakeMemory(2_000_000, 0, 1_000), tokens=3000)


def test_a_cpu_has_fixed_sizes_and_a_gpu_is_measured():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (batch_tokens_for(cpu), chunk_positions_for(cpu)) == ("8192", 128)
    assert (batch_tokens_for(cuda), chunk_positions_for(cuda)) == ("auto", 512)
    assert batch_tokens_for(torch.device("mps")) == "8192"


def test_sizes_left_open_are_those_of_the_build_that_goes_on(monkeypatch, tmp_path):
    options, cuda = BuildOptions(models=["dpo=a", "reference=b"], data="d"), torch.device("cuda")
    spread_out = replace(options, device_map="auto")

    def sizes(options):
        found = identity.with_sizes(options, open_out(str(tmp_path)), cuda)
        return found.batch_tokens, found.chunk_positions

    assert sizes(options) == ("auto", 512)
    assert sizes(spread_out) == ("8192", 512), "only one of several devices would be measured"
    earlier = SimpleNamespace(identity={"options": {"batch_tokens": 3072, "chunk_positions": 64}})
    monkeypatch.setattr(identity, "_earlier_plan", lambda folder: earlier)
    assert sizes(options) == sizes(spread_out) == ("3072", 64)


@pytest.mark.parametrize("value", ["many", "0", "-3", "1.5", ""])
def test_another_size_is_refused(trio_folders, pairs_file, tmp_path, value):
    with pytest.raises(OptionError, match=r"^batch_tokens: expected auto, or 1 or more, got"):
        build_options(trio_folders, pairs_file, tmp_path, batch_tokens=value)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Builds measure their batches, as on a GPU; the list has what is found next."""
    found = []
    monkeypatch.setattr(identity, "batch_tokens_for", lambda device: "auto")
    monkeypatch.setattr(model_work, "measured_batch_tokens", lambda *args: found.pop(0))
    monkeypatch.setattr(model_work, "CudaMemory", lambda device: None)
    return found


def recorded(folder):
    return read_plan(folder / "plan.json").identity["options"]["batch_tokens"]


def test_a_resumed_build_keeps_the_size_of_its_plan(trio_folders, pairs_file, tmp_path, monkeypatch, on_a_gpu):
    plain = shard_work.write_shard

    def broken(folder, shard, *args):
        if shard.first_row:
            raise KeyboardInterrupt
        plain(folder, shard, *args)

    options = build_options(trio_folders, pairs_file, tmp_path / "a", **SETTINGS)
    monkeypatch.setattr(shard_work, "write_shard", broken)
    on_a_gpu.append(30)
    with pytest.raises(KeyboardInterrupt):
        build(options)
    assert recorded(tmp_path / "a") == 30 and not on_a_gpu
    monkeypatch.setattr(shard_work, "write_shard", plain)
    build(options)  # nothing is measured: the list is empty
    assert recorded(tmp_path / "a") == 30 and not list(verify(tmp_path / "a"))
    build(options)
    given = build_options(trio_folders, pairs_file, tmp_path / "b", batch_tokens=30, **SETTINGS)
    build(given)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    with pytest.raises(CacheConflict, match="batch_tokens"):
        build(build_options(trio_folders, pairs_file, tmp_path / "a", batch_tokens=31, **SETTINGS))


def test_all_processes_take_the_smallest_size(trio_folders, pairs_file, tmp_path, monkeypatch, on_a_gpu):
    class Two(build_module.Processes):
        def gather(self, value):
            return [value, value - 7] if isinstance(value, int) else super().gather(value)

    monkeypatch.setattr(build_module, "Processes", Two)
    on_a_gpu.append(30)
    build(build_options(trio_folders, pairs_file, tmp_path / "a", **SETTINGS))
    assert recorded(tmp_path / "a") == 23


def test_the_plan_says_how_much_is_padding(trio_folders, tmp_path, capsys):
    rows = [
        {"prompt": "the cat sat on", "completion": " the mat ."},
        {"prompt": "the cat", "completion": " the mat ."},
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    build(build_options(trio_folders, data, tmp_path / "a", support="fixed", top_k=18))
    tokens = ShardCache(tmp_path / "a").index.num_tokens
    share = 1 - tokens.sum() / (2 * tokens.max())
    assert f"of up to 8,192 tokens, {share:.1%} of it padding" in capsys.readouterr().out


def test_padding_is_counted_over_all_batches():
    lengths = [len(row.input_ids) for row in ROWS]
    whole = max(lengths) * len(lengths)
    assert padding_share(ROWS, 10_000) == pytest.approx(1 - sum(lengths) / whole)
    assert padding_share(ROWS, 1) == 0


@pytest.mark.parametrize("name", MODELS)
def test_rows_in_one_have_the_hidden_states_of_rows_apart(name):
    torch.manual_seed(0)
    model = role_model(MODELS[name]())
    apart = torch.cat([hidden_states(model, [row]) for row in ROWS])
    torch.testing.assert_close(packed_states(model, pack_flat(ROWS)), apart, atol=2e-5, rtol=1e-4)
    require_padding_free({"dpo": model}, ROWS)


def test_rows_in_one_have_no_padding_and_positions_that_begin_again():
    packed = pack_flat(ROWS[1:3])
    assert packed.input_ids.tolist() == [[1, 5, 6, 7, 8, 12, 2, 1, 3, 4, 5, 6, 7, 8, 9, 2]]
    assert packed.position_ids.tolist() == [[*range(7), *range(9)]]
    assert packed.attention_mask is None and packed.lengths == (7, 9)
    assert packed.places.tolist() == [4, 5, *range(8, 15)]


def test_batches_without_padding_hold_more_rows():
    for budget in (10, 20, 40):
        batches = batches_by_length(ROWS, budget, padding_free=True)
        assert sorted(i for batch in batches for i in batch) == list(range(len(ROWS)))
        assert all(len(batch) == 1 or sum(len(ROWS[i].input_ids) for i in batch) <= budget for batch in batches)
        assert len(batches) <= len(batches_by_length(ROWS, budget))


def test_a_cache_without_padding_is_the_same_up_to_rounding(trio_folders, pairs_file, tmp_path):
    whole = {"top_k": V, "support": "fixed", "values": "float32"}
    for name, free in (("free", True), ("padded", False)):
        build(build_options(trio_folders, pairs_file, tmp_path / name, padding_free=free, **whole))
    free, padded = (ShardCache(tmp_path / name) for name in ("free", "padded"))
    for mine, theirs in zip(free.read(range(len(free))), padded.read(range(len(padded))), strict=True):
        for role, logprobs in theirs.scores.logprobs.items():
            np.testing.assert_allclose(mine.scores.logprobs[role], logprobs, atol=2e-5)
    assert free.plan.identity["options"]["padding_free"] is True
    assert "padding_free" not in padded.plan.identity["options"]


def test_a_body_that_knows_no_rows_inside_of_a_row_is_refused_before_anything_is_written(
    trio_folders, pairs_file, tmp_path
):
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(**SMALL, state_size=4, num_hidden_layers=2)).eval()
    folders = dict(trio_folders, dpo=save(mamba, tmp_path / "mamba", make_tokenizer()))
    with pytest.raises(ModelError, match=r"^dpo: expected [^\n]*; leave --padding_free out$"):
        build(build_options(folders, pairs_file, tmp_path / "cache", padding_free=True, **SETTINGS))
    assert not (tmp_path / "cache").exists()


def test_shared_prompts_and_no_padding_are_refused_together(trio_folders, pairs_file, tmp_path):
    with pytest.raises(OptionError, match=r"^padding_free and share_prompts: expected one of them"):
        build_options(trio_folders, pairs_file, tmp_path, padding_free=True, share_prompts=True, responses="both")


def test_a_compiled_body_gives_the_same_values_for_every_shape_and_is_compiled_once():
    model, batches = role_model(make_llama(0)), (ROWS, ROWS[:3], ROWS[4:9])
    expected = [hidden_states(model, rows) for rows in batches]
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    counted.clear()
    model.compile(backend="eager")
    found, graphs = [], []
    for rows in batches:
        found.append(hidden_states(model, rows))
        graphs.append(counted["unique_graphs"])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert graphs[0] == graphs[-1] >= 1


def test_compiled_bodies_stand_in_the_identity(trio_folders, pairs_file, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(RoleModel, "compile", lambda self: compiled.append(self.role))
    build(build_options(trio_folders, pairs_file, tmp_path / "a", torch_compile=True, **SETTINGS))
    assert sorted(compiled) == ["dpo", "reference", "reverse"]
    assert json.loads((tmp_path / "a" / "plan.json").read_text())["identity"]["numerics"]["torch_compile"] is True


def test_a_base_that_roles_share_is_not_compiled():
    model = role_model(make_llama(0))
    model._peft_model = object()
    with pytest.raises(ModelError, match=r"^dpo: expected a base of its own with --torch_compile"):
        model.compile()
