"""precompute.build: stored values are the models', the support is as requested, the bytes are reproducible."""

import contextlib
import json
import math
import shutil

import dense
import fresh
import numpy as np
import pytest
import torch
from conftest import ALL_PAIRS, build_options
from tiny import WORDS, load, make_llama, make_pairs, make_tokenizer, make_trio, nudged, save, write_jsonl
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from precompute.build import __main__ as build_command
from precompute.build import steps
from precompute.build.build import build
from precompute.build.work import shard_work
from precompute.models.folders import load_models
from precompute.models.role_model import RoleModel
from precompute.scoring import partitions
from precompute.scoring.packing import batches_by_length
from precompute.scoring.partitions import Block
from precompute.scoring.support import SupportRule, find_threshold, summarise, token_scores
from shards import ShardCache, TeacherSpec
from shards.format.finishing import Findings
from shards.format.nodes import StrengthNodes
from shards.format.schema import Pair
from shards.modelfiles.find import resolve

V = 18


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def live_logprobs(trio, response, vocabulary_size=V):
    with torch.no_grad():
        return {role: dense.response_logprobs(model, response, vocabulary_size) for role, model in trio.items()}


def kept_of(response):
    """(position, id) of every kept token."""
    scores = response.scores
    return np.repeat(np.arange(scores.num_positions), scores.support_count), scores.support_ids.copy()


# ---- values


def test_stored_values_are_those_of_the_models_run_alone_without_padding(sparse_cache, trio):
    nodes = sparse_cache.plan.nodes
    for response in sparse_cache.read(range(len(sparse_cache))):
        live = {role: values.double().numpy() for role, values in live_logprobs(trio, response).items()}
        scores = response.scores
        position, ids = kept_of(response)
        inside = np.zeros((scores.num_positions, V), bool)
        inside[position, ids] = True
        following = response.input_ids[response.loss_mask]
        for role, values in live.items():
            np.testing.assert_allclose(scores.logprobs[role], values[position, ids], atol=2e-5)
            np.testing.assert_allclose(scores.next_logprob[role], values[np.arange(len(values)), following], atol=2e-5)
            tail = np.log(np.where(inside, 0, np.exp(values)).sum(1))
            np.testing.assert_allclose(scores.tail_logprob[role], tail, atol=2e-4)
        for negative, distance in scores.l1_distance.items():
            expected = np.abs(np.exp(live["dpo"]) - np.exp(live[negative])).sum(1)
            np.testing.assert_allclose(distance, expected, atol=1e-5)
            at = nodes.at(distance)
            for pair in (pair for pair in scores.tail_logpartition if pair.negative == negative):
                for j in range(1, len(nodes)):
                    logits = live[pair.anchor] + at[:, j : j + 1] * (live["dpo"] - live[negative])
                    found = scores.tail_logpartition[pair][:, j - 1]
                    tail = np.log(np.where(inside, 0, np.exp(logits)).sum(1))
                    np.testing.assert_allclose(found, tail, atol=1e-3)


def test_with_all_tokens_kept_every_teacher_is_the_dense_one(whole_cache, trio):
    response = whole_cache[3]
    live = live_logprobs(trio, response)
    for anchor, negative in (pair.split("/") for pair in ALL_PAIRS):
        for adaptive in (True, False):
            spec = TeacherSpec(anchor=anchor, negative=negative, strength="adaptive" if adaptive else "constant")
            made = whole_cache.teacher([3], spec)
            expected, weight = dense.teacher(live, anchor, negative, adaptive)
            np.testing.assert_allclose(made.logprobs.reshape(-1, V), expected, atol=1e-4)
            np.testing.assert_allclose(made.weight, weight, rtol=1e-4)
            assert np.isneginf(made.tail_logprob).all()


def test_batches_and_chunks_do_not_change_the_values(sparse_cache, trio_folders, pairs_file, tmp_path):
    options = build_options(
        trio_folders, pairs_file, tmp_path / "other", responses="both", top_k=5, max_top_k=12, tokens_per_shard=40,
        batch_tokens=1, chunk_positions=3,
    )  # fmt: skip
    build(options)
    for mine, theirs in zip(ShardCache(tmp_path / "other").read(range(24)), sparse_cache.read(range(24)), strict=True):
        assert mine.sample_id == theirs.sample_id
        for role in ("dpo", "reverse", "reference"):
            np.testing.assert_allclose(mine.scores.next_logprob[role], theirs.scores.next_logprob[role], atol=2e-5)


def test_rows_stand_in_the_order_of_the_data_with_their_pairs(sparse_cache):
    rows = sparse_cache.read(range(len(sparse_cache)))
    assert [row.sample_id for row in rows] == [f"{i}/{kind}" for i in range(12) for kind in ("chosen", "rejected")]
    assert [row.pair_id for row in rows] == [i for i in range(12) for _ in range(2)]
    assert [row.chosen for row in rows] == [True, False] * 12


# ---- support


def test_a_kept_token_scores_over_the_threshold_and_a_dropped_one_does_not(sparse_cache, trio):
    plan = sparse_cache.plan
    for response in sparse_cache.read(range(8)):
        live = live_logprobs(trio, response)
        block = Block.of(live)
        best = token_scores(block, block.score_strengths(plan.pairs, plan.nodes)).log().numpy()
        position, ids = kept_of(response)
        inside = np.zeros_like(best, bool)
        inside[position, ids] = True
        count = response.scores.support_count
        free = (count > 1) & (count < 12)  # limited neither by the minimum nor by the cap
        assert (best[inside & free[:, None]] > plan.log_threshold - 1e-4).all()
        assert (best[~inside & free[:, None]] <= plan.log_threshold + 1e-4).all()


def test_token_scores_weigh_the_largest_probability_with_what_the_loss_sees_of_a_token(trio, whole_cache):
    live = {role: values.double() for role, values in live_logprobs(trio, whole_cache[0]).items()}
    nodes = whole_cache.plan.nodes
    pairs = [Pair("dpo", "reverse"), Pair("reference", "reference")]
    block = Block.of(live)
    found = token_scores(block, block.score_strengths(pairs, nodes))
    candidates = []
    for anchor, negative in pairs:
        distance = (live["dpo"].exp() - live[negative].exp()).abs().sum(-1)
        for gain in (2, 20):
            w = (gain * distance + 1e-3)[:, None]
            teacher = (live[anchor] + w * (live["dpo"] - live[negative])).log_softmax(-1)
            gap = (live["reference"] - teacher).abs()
            candidates.append(torch.maximum(live["reference"], teacher).exp() * (0.5 + gap / w))
    torch.testing.assert_close(found, torch.stack(candidates).max(0).values, rtol=1e-10, atol=0)


@pytest.mark.parametrize("scale", [1.0, 40.0], ids=["mild", "violent"])
def test_blocks_and_base_two_change_nothing(monkeypatch, scale):
    torch.manual_seed(0)
    roles = ("dpo", "reverse", "reference")
    live = {role: (scale * torch.randn(7, 50, dtype=torch.float64)).log_softmax(-1) for role in roles}
    nodes, pairs = StrengthNodes(), [Pair("dpo", "reverse"), Pair("reference", "reference")]
    rule = SupportRule(lowest=2, highest=30, log_threshold=math.log(0.05))
    next_ids = torch.arange(7)
    whole = summarise(live, next_ids, rule=rule, pairs=pairs, nodes=nodes)
    monkeypatch.setattr(partitions, "BLOCK_VALUES", 100)
    blocks = summarise(live, next_ids, rule=rule, pairs=pairs, nodes=nodes)
    assert len(set(whole.support_count.tolist())) > 1
    np.testing.assert_array_equal(whole.support_ids, blocks.support_ids)
    inside = np.zeros((7, 50), bool)
    inside[np.repeat(np.arange(7), whole.support_count), whole.support_ids] = True
    for pair, found in blocks.tail_logpartition.items():
        np.testing.assert_array_equal(found, whole.tail_logpartition[pair])
        strengths = torch.from_numpy(nodes.at(whole.l1_distance[pair.negative])[:, 1:])
        for j in range(strengths.shape[1]):
            logits = live[pair.anchor] + strengths[:, j : j + 1] * (live["dpo"] - live[pair.negative])
            expected = logits.masked_fill(torch.from_numpy(inside), -torch.inf).logsumexp(-1)
            np.testing.assert_allclose(found[:, j], expected, rtol=1e-9, atol=1e-9)


def test_a_rule_keeps_the_best_of_positions_with_too_few_or_too_many():
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.9, 0.8, 0.7, 0.6], [0.6, 0.1, 0.7, 0.2]])
    rule = SupportRule(lowest=1, highest=3, log_threshold=math.log(0.5))
    assert rule.select(scores).int().tolist() == [[0, 0, 0, 1], [1, 1, 1, 0], [1, 0, 1, 0]]


def test_the_threshold_brings_the_mean_to_top_k():
    generator = np.random.default_rng(0)
    ranked = -np.sort(generator.exponential(5.0, size=(4000, 200)), axis=1)
    for top_k in (3, 20, 64):
        threshold = find_threshold(ranked, top_k=top_k, lowest=1)
        mean = np.maximum((ranked > threshold).sum(1), 1).mean()
        assert top_k - 0.05 < mean <= top_k
    assert (ranked > find_threshold(ranked, top_k=200, lowest=1)).all()


def test_the_mean_support_is_top_k_inside_minimum_and_cap(sparse_cache):
    counts = np.concatenate([row.scores.support_count for row in sparse_cache.read(range(len(sparse_cache)))])
    assert counts.mean() == pytest.approx(5, abs=0.1)
    assert counts.min() >= 1
    assert counts.max() <= 12
    assert len(set(counts.tolist())) > 3, "ragged"


@pytest.mark.parametrize("spread", [1e-6, 1.0, 40.0, 300.0, 4_000.0])
@pytest.mark.parametrize("outside", [0.0, 0.5, 1.0])
def test_sums_along_a_chord_are_the_sums_of_each_strength(spread, outside):
    generator = torch.Generator().manual_seed(int(spread))
    start = -20 * torch.rand(40, 50, generator=generator)
    step = spread * torch.randn(40, 50, generator=generator)
    start[torch.rand(40, 50, generator=generator) < outside] = -torch.inf
    strengths = torch.rand(40, 6, generator=generator).add_(0.01).cumsum(-1)
    logits = start.double()[:, None] + strengths.double()[..., None] * step.double()[:, None]
    expected = torch.logsumexp(logits * partitions.LN_2, -1)
    found = partitions.logsumexps_along(start, step.clone(), strengths)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=2e-6 * (1 + spread))
    assert outside < 1 or found.isneginf().all()


def test_a_chord_far_above_its_curve_costs_nothing_but_time():
    # the largest entry falls by 1,000 bits and rises again: in between, the chord is 500 bits too high
    start = torch.tensor([[0.0, -1_000.0, -3.0]])
    step = torch.tensor([[-1_000.0, 1_000.0, -900.0]])
    strengths = torch.tensor([[0.25, 0.5, 0.75, 1.0]])
    expected = torch.logsumexp((start.double() + strengths.double().T * step.double()) * partitions.LN_2, -1)
    found = partitions.logsumexps_along(start, step, strengths)[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-4)


def test_a_rule_without_threshold_keeps_the_same_number_everywhere():
    kept = SupportRule(lowest=4, highest=4, log_threshold=None).select(torch.rand(7, 9))
    assert kept.sum(-1).tolist() == [4] * 7


def test_batches_keep_to_the_budget_and_hold_every_row_once():
    class Row:
        def __init__(self, length):
            self.input_ids = np.zeros(length)

    rows = [Row(length) for length in (5, 9, 1, 30, 9, 2, 2)]
    batches = batches_by_length(rows, 20)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(rows[i].input_ids) for i in batch) <= 20
    assert batches[0] == [3], "longer than the budget: alone"


# ---- kinds of models


def soft_cap(seed, **kwargs):
    torch.manual_seed(seed)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            final_logit_softcapping=2.0,
            initializer_range=0.4,
            pad_token_id=0,
        )
    ).eval()


def small(config_class, model_class, **numbers):
    def make(seed, **kwargs):
        torch.manual_seed(seed)
        settings = {
            "vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.4, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip
        return model_class(config_class(**settings | numbers)).eval()

    return make


def bf16(seed, **kwargs):
    return make_llama(seed).bfloat16()


@pytest.mark.parametrize(
    "make",
    [
        soft_cap,
        small(CohereConfig, CohereForCausalLM, logit_scale=0.25),
        small(GraniteConfig, GraniteForCausalLM, logits_scaling=4.0),
        lambda seed, **kwargs: make_llama(seed, tie_word_embeddings=True),
    ],
    ids=["soft cap", "logit scale", "logits scaling", "tied"],
)
def test_every_kind_of_output_layer_is_stored_as_its_model_says(make, pairs_file, tmp_path):
    folders = make_trio(tmp_path / "trio", make)
    build(build_options(folders, pairs_file, tmp_path / "cache", limit=3, top_k=4, max_top_k=18))
    trio = {role: load(folder) for role, folder in folders.items()}
    for response in ShardCache(tmp_path / "cache").read(range(3)):
        position, ids = kept_of(response)
        for role, values in live_logprobs(trio, response).items():
            np.testing.assert_allclose(response.scores.logprobs[role], values[position, ids], atol=5e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_body_has_its_output_layer_in_float32(pairs_file, tmp_path, dtype):
    folders = make_trio(tmp_path / "trio", bf16, size=0.02)
    given = {"limit": 2, "support": "fixed", "top_k": 18, "batch_tokens": 1, "dtype": dtype}
    build(build_options(folders, pairs_file, tmp_path / "cache", **given))
    for response in ShardCache(tmp_path / "cache").read(range(2)):
        for role, folder in folders.items():
            model = load(folder, getattr(torch, dtype))
            with torch.no_grad():
                ids = torch.from_numpy(response.input_ids.astype("int64"))[None]
                hidden = model.model(input_ids=ids)[0][0, response.loss_mask.nonzero()[0] - 1]
                expected = (hidden.float() @ model.lm_head.weight.float().T).log_softmax(-1)
            np.testing.assert_allclose(response.scores.logprobs[role].reshape(-1, V), expected, atol=1e-5)


def test_roles_may_be_adapters_and_share_one_base(pairs_file, tmp_path):
    peft = pytest.importorskip("peft")
    base = save(make_llama(0), tmp_path / "base")
    folders = {"reference": base}
    merged = {"reference": load(base)}
    for seed, role in enumerate(("dpo", "reverse"), start=1):
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=4, target_modules=["q_proj", "down_proj", "lm_head"], init_lora_weights=False, task_type="CAUSAL_LM"
        )
        adapted = peft.get_peft_model(load(base), config)
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        adapted.save_pretrained(tmp_path / role, save_embedding_layers=False)
        folders[role] = tmp_path / role
        merged[role] = adapted.merge_and_unload().eval()
    models = load_models({r: resolve(str(f)) for r, f in folders.items()}, V, dtype="auto", device="cpu")
    assert len({id(model.model) for model in models.values()}) == 1, "the base is loaded once"

    build(build_options(folders, pairs_file, tmp_path / "cache", limit=4, support="fixed", top_k=18))
    for response in ShardCache(tmp_path / "cache").read(range(4)):
        for role, values in live_logprobs(merged, response).items():
            np.testing.assert_allclose(response.scores.logprobs[role].reshape(-1, V), values, atol=5e-5)


def test_padded_widths_of_one_tokenizer_are_accepted_and_recorded(pairs_file, tmp_path):
    # as those of a well-known tokenizer, a tenth in size: its output layers are wider than it, each in its own way
    words = [*WORDS, *(f"w{i}" for i in range(15_166 - len(WORDS) - 3))]
    tokenizer = make_tokenizer(words)
    tiny = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    tiny |= {"num_key_value_heads": 1, "tie_word_embeddings": True}
    models = {
        "reference": make_llama(0, 15_206, **tiny),
        "dpo": make_llama(1, 15_193, **tiny),
        "reverse": make_llama(2, 15_193, **tiny),
    }
    folders = {role: save(model, tmp_path / role, tokenizer) for role, model in models.items()}
    manifest = build(build_options(folders, pairs_file, tmp_path / "cache", limit=1, sample_rows=1))
    assert manifest.plan.vocabulary_size == 15_166
    widths = {role: facts["vocabulary_width"] for role, facts in manifest.plan.identity["models"].items()}
    assert widths == {"reference": 15_206, "dpo": 15_193, "reverse": 15_193}
    response = ShardCache(tmp_path / "cache")[0]
    position, ids = kept_of(response)
    live = live_logprobs(models, response, 15_166)
    for role, values in live.items():
        np.testing.assert_allclose(response.scores.logprobs[role], values[position, ids], atol=5e-5)
        kept = np.add.reduceat(np.exp(response.scores.logprobs[role]), np.flatnonzero(np.diff(position, prepend=-1)))
        np.testing.assert_allclose(kept + np.exp(response.scores.tail_logprob[role]), 1, atol=1e-5)


def test_without_a_reverse_model_the_cache_serves_what_needs_none(trio_folders, pairs_file, tmp_path):
    folders = {role: trio_folders[role] for role in ("dpo", "reference")}
    manifest = build(build_options(folders, pairs_file, tmp_path / "cache", limit=3, top_k=4))
    assert manifest.plan.pairs == (Pair("reference", "reference"),)
    cache = ShardCache(tmp_path / "cache")
    for preset in ("linear", "adaptive"):
        assert np.isfinite(cache.teacher([0], TeacherSpec.preset(preset)).logprobs).all()


# ---- bytes


def test_two_builds_are_byte_identical(sparse_cache, trio_folders, pairs_file, tmp_path):
    for name in ("a", "b"):
        build(build_options(trio_folders, pairs_file, tmp_path / name, top_k=5, max_top_k=12, tokens_per_shard=15))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sum(name.endswith(".arrow") for name in contents(tmp_path / "a")) > 2


def test_models_in_another_place_give_the_same_bytes_but_for_the_provenance(trio_folders, pairs_file, tmp_path):
    moved = {role: shutil.copytree(folder, tmp_path / "moved" / role) for role, folder in trio_folders.items()}
    for name, folders in (("a", trio_folders), ("b", moved)):
        build(build_options(folders, pairs_file, tmp_path / name, limit=4, top_k=5, max_top_k=12))
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert [name for name in a if a[name] != b[name]] == ["provenance.json"]


def test_models_one_at_a_time_give_the_same_bytes_and_are_never_two_on_the_device(
    trio_folders, pairs_file, tmp_path, monkeypatch
):
    settings = {"top_k": 5, "max_top_k": 12, "tokens_per_shard": 15}
    build(build_options(trio_folders, pairs_file, tmp_path / "all", **settings))
    there, visits = [], []
    plain_on, plain_hidden = RoleModel.on, RoleModel.hidden

    @contextlib.contextmanager
    def on(self, device):
        with plain_on(self, device):
            there.append(self.role)
            visits.append(self.role)
            yield
            there.remove(self.role)

    def hidden(self, *args):
        assert there == [self.role]
        return plain_hidden(self, *args)

    monkeypatch.setattr(RoleModel, "on", on)
    monkeypatch.setattr(RoleModel, "_check_head", lambda self, *args: None)  # it runs the model where it was loaded
    monkeypatch.setattr(RoleModel, "hidden", hidden)
    build(build_options(trio_folders, pairs_file, tmp_path / "one", models_in_memory="one", **settings))
    assert contents(tmp_path / "one") == contents(tmp_path / "all")
    shards = len(ShardCache(tmp_path / "one").plan.shards)
    assert len(visits) == 3 * (shards + 2), "a visit of each for the threshold, for every shard and for the directions"


def test_an_error_of_the_writer_ends_the_build(trio_folders, pairs_file, tmp_path, monkeypatch):
    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(shard_work, "write_shard", full)
    with pytest.raises(OSError, match="no space left"):
        build(build_options(trio_folders, pairs_file, tmp_path / "a", top_k=5, max_top_k=12, tokens_per_shard=15))
    assert not (tmp_path / "a" / "manifest.json").exists()


MOMENTS = [
    (steps, "write_manifest"),
    (steps, "write_bytes"),
    (shard_work, "write_shard"),
    (Findings, "read_back"),
    (steps, "finished"),
]


@pytest.fixture(scope="module")
def unbroken(trio_folders, pairs_file, tmp_path_factory):
    """Settings, and what a build with them leaves."""
    settings, out = {"top_k": 5, "max_top_k": 12, "tokens_per_shard": 25}, tmp_path_factory.mktemp("unbroken")
    build(build_options(trio_folders, pairs_file, out, **settings))
    assert len(list(out.glob("part-*"))) == 3, "a first, a middle and a last shard"
    return settings, contents(out)


@pytest.mark.parametrize(("owner", "moment"), MOMENTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_build_that_broke_off_anywhere_ends_with_the_same_bytes(
    unbroken, trio_folders, pairs_file, tmp_path, monkeypatch, owner, moment
):
    settings, whole = unbroken
    plain = getattr(owner, moment)
    for lucky in range(6):
        calls = iter(range(100))

        def fails_after_some(*args, lucky=lucky, calls=calls, **kwargs):
            if next(calls) == lucky:
                raise KeyboardInterrupt
            return plain(*args, **kwargs)

        out = tmp_path / f"broken{lucky}"
        monkeypatch.setattr(owner, moment, fails_after_some)
        try:
            build(build_options(trio_folders, pairs_file, out, **settings))
        except KeyboardInterrupt:
            assert not (out / "manifest.json").exists()
        else:
            assert lucky > 0
            return  # it is not called that often
        finally:
            monkeypatch.setattr(owner, moment, plain)
        build(build_options(trio_folders, pairs_file, out, **settings))
        assert contents(out) == whole


def test_a_half_written_shard_is_never_taken_for_a_whole_one(trio_folders, pairs_file, tmp_path, monkeypatch):
    import shards.format.writer

    settings = {"top_k": 5, "max_top_k": 12, "tokens_per_shard": 15}
    build(build_options(trio_folders, pairs_file, tmp_path / "whole", **settings))
    plain = shards.format.writer.codec.encode
    calls = iter(range(100))

    def fails_inside_a_shard(*args):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(shards.format.writer.codec, "encode", fails_inside_a_shard)
    with pytest.raises(KeyboardInterrupt):
        build(build_options(trio_folders, pairs_file, tmp_path / "b", rows_per_batch=2, **settings))
    left = {path.name for path in (tmp_path / "b").iterdir()}
    assert "manifest.json" not in left and not any(name.startswith(".") for name in left)
    monkeypatch.setattr(shards.format.writer.codec, "encode", plain)
    build(build_options(trio_folders, pairs_file, tmp_path / "b", rows_per_batch=2, **settings))
    assert not any(path.name.startswith(".") for path in (tmp_path / "b").iterdir())


def test_a_second_build_does_nothing_and_says_so(sparse_cache, trio_folders, pairs_file, capsys):
    before = {path: path.stat().st_mtime_ns for path in sparse_cache.folder.iterdir()}
    build(
        build_options(
            trio_folders, pairs_file, sparse_cache.folder, responses="both", top_k=5, max_top_k=12, tokens_per_shard=40
        )
    )
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in sparse_cache.folder.iterdir()}


def test_files_that_are_not_ours_are_left_alone(trio_folders, pairs_file, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "data.arrow").write_text("mine too")
    build(build_options(trio_folders, pairs_file, tmp_path, limit=2, top_k=4))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "data.arrow").read_text() == "mine too"
    assert len(ShardCache(tmp_path)) == 2


def test_the_plan_and_the_summary_tell_a_person_what_matters(trio_folders, tmp_path, capsys):
    rows = make_pairs(6)
    rows[2]["prompt"] = " ".join(["cat"] * 40)
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    build(build_options(trio_folders, data, tmp_path / "cache", max_length=20, top_k=4))
    out = capsys.readouterr().out
    for text in (
        "5, from 6 rows of data",
        "1 skipped as overlong",
        "projected size",
        "projected time",
        "bytes per response",
    ):
        assert text in out
    for text in ("coverage_dpo", "l1_distance_reverse", "support_count", "cut at max_length"):
        assert text in out
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["skipped"]["overlong"] == 1


def test_other_weights_give_another_build(trio_folders, pairs_file, tmp_path):
    other = dict(trio_folders)
    other["dpo"] = save(nudged(load(trio_folders["dpo"]), 9, 0.01), tmp_path / "other")
    one = build(build_options(trio_folders, pairs_file, tmp_path / "a", limit=2, top_k=4))
    two = build(build_options(other, pairs_file, tmp_path / "b", limit=2, top_k=4))
    assert one.plan.sha256 != two.plan.sha256


def test_two_processes_write_the_bytes_of_one(trio_folders, pairs_file, tmp_path):
    settings = {"top_k": 5, "max_top_k": 12, "tokens_per_shard": 15, "values": "compact"}
    build(build_options(trio_folders, pairs_file, tmp_path / "one", **settings))
    # torchrun, whose processes are forks of its own and run the same file as -m does
    command = ["--standalone", "--nproc_per_node=2", "--start-method=fork", "--run-path", build_command.__file__]
    command += ["--data", str(pairs_file), "--out", str(tmp_path / "two"), "--models"]
    command += [f"{role}={folder}" for role, folder in trio_folders.items()]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    done = fresh.run("torch.distributed.run", command, tmp_path, tmp_path / "log")
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
