"""The build's kernels against the same arithmetic in float64, on hostile values; and a whole build through them."""

import math

import numpy as np
import pytest
import torch
from conftest import ALL_PAIRS, build_cache, build_options
from kernel_devices import DEVICES, INTERPRETED, speed_up_interpreter

from precompute.feeding.transfer import Transfer
from precompute.scoring.partitions import Block
from precompute.scoring.support import SupportRule, token_scores, values_on
from precompute.scoring.vocabulary import TorchVocabulary
from shards.format.nodes import StrengthNodes
from shards.format.schema import Pair

launch = pytest.importorskip("precompute.scoring.kernels.launch", reason="needs triton")

DEFAULT_PAIRS = (Pair("dpo", "reverse"), Pair("reference", "reference"))
NODES = StrengthNodes()
SOME = SupportRule(lowest=2, highest=20, log_threshold=-4.0)


@pytest.fixture(autouse=True)
def faster(monkeypatch, request):
    speed_up_interpreter(monkeypatch, overflows="fixed ties" in request.node.name)  # which takes every kernel


def near(positions, size, *, spread=3.0, apart=0.3, seed=0):
    """Three models that are close to each other."""
    torch.manual_seed(seed)
    base = torch.randn(positions, size) * spread
    return {role: base + apart * torch.randn(positions, size) for role in ("dpo", "reverse", "reference")}


def equal_models():
    base = near(2, 40)["dpo"]
    return {role: base.clone() for role in ("dpo", "reverse", "reference")}


def one_token():
    """A token with all the mass, in all models, in one, and so that the rest is 0 in float32."""
    logits = near(3, 40, spread=1.0)
    for role, value in (("dpo", 30.0), ("reverse", 200.0), ("reference", 60.0)):
        logits[role][0, 7] = value
    logits["dpo"][1, 39] = 120.0
    for logits_CV in logits.values():
        logits_CV[2, 0] = 1e4
    return logits


def huge():
    """Far apart, and far from 0 on both sides."""
    logits = {role: (l_CV * 3000).clamp(-1e4, 1e4) for role, l_CV in near(3, 40, spread=1.0).items()}
    for l_CV in logits.values():
        l_CV[1] = l_CV[1] / 3000 - 1e4
    return logits


def tied():
    """Many equal scores, also where the best are cut off."""
    logits = near(2, 40, apart=0.0)
    for i, l_CV in enumerate(logits.values()):
        l_CV[0] = torch.tensor([0.0, 1.0]).repeat(20)
        l_CV[1] = 0.1 * i
    return logits


def without_reverse():
    return {role: l_CV for role, l_CV in near(2, 50).items() if role != "reverse"}


def padded():
    """Rows of a wider product."""
    return {role: l_CV[:, :45] for role, l_CV in near(2, 45 + 7).items()}


HOSTILE = {
    "near models": (near(3, 75), SOME),
    "one position": (near(1, 33), SOME),
    "a tile to the last token": (near(2, 64), SOME),
    "less than a tile": (near(2, 5), SupportRule(lowest=1, highest=5, log_threshold=-3.0)),
    "equal models": (equal_models(), SOME),
    "one token has all the mass": (one_token(), SOME),
    "huge logits": (huge(), SOME),
    "ties": (tied(), SupportRule(lowest=2, highest=9, log_threshold=-6.0)),
    "ties that nobody passes": (tied(), SupportRule(lowest=3, highest=9, log_threshold=2.0)),
    "nobody passes": (near(2, 40), SupportRule(lowest=3, highest=20, log_threshold=9.0)),
    "all pass": (near(2, 40), SupportRule(lowest=1, highest=20, log_threshold=-80.0)),
    "K = V": (near(2, 50), SupportRule(lowest=50, highest=50, log_threshold=None)),
    "all pass and K = V": (near(2, 50), SupportRule(lowest=1, highest=50, log_threshold=-80.0)),
    "K = 1": (near(2, 50), SupportRule(lowest=1, highest=1, log_threshold=None)),
    "fixed": (near(2, 50), SupportRule(lowest=12, highest=12, log_threshold=None)),
    "fixed ties": (tied(), SupportRule(lowest=12, highest=12, log_threshold=None)),
    "no reverse": (without_reverse(), SOME),
    "padded rows": (padded(), SOME),
}


def on(device, logits):
    return {role: l_CV.to(device) if device != "cpu" else l_CV for role, l_CV in logits.items()}


def fetched(scores):
    return scores.fetch(Transfer()).wait().scores


def kernels(pairs=DEFAULT_PAIRS, **shape):
    shape = shape or ({"tile_rows": 2, "tile_lanes": 16, "num_warps": 1} if INTERPRETED else {})
    return launch.TritonVocabulary(pairs=tuple(pairs), nodes=NODES, **shape)


def pairs_for(logits):
    return tuple(pair for pair in DEFAULT_PAIRS if pair.negative in logits)


def exact(logits, pairs):
    """A block of the log-probs in float64, and the scores."""
    block = Block.of({role: l_CV.double().cpu().log_softmax(-1) for role, l_CV in logits.items()})
    return block, token_scores(block, block.score_strengths(pairs, NODES))


def kept_by(scores):
    """(C, V) bool from counts and ids."""
    position = np.repeat(np.arange(scores.num_positions), scores.support_count)
    return position, scores.support_ids.astype(np.int64)


def expected_kept(scores_CV, rule):
    """The rule in numpy; of equal scores the lowest ids."""
    kept_CV = np.zeros(scores_CV.shape, dtype=bool)
    for kept_V, score_V in zip(kept_CV, scores_CV, strict=True):
        order = np.lexsort((np.arange(len(score_V)), -score_V))
        passing = 0 if rule.log_threshold is None else int((score_V > np.float32(math.exp(rule.log_threshold))).sum())
        kept_V[order[: min(max(passing, rule.lowest), rule.highest)]] = True
    return kept_CV


def assert_close(found, wanted):
    """Log-probs to 2e-6 of their size, as float32 has them; equal where infinite."""
    finite = np.isfinite(wanted)
    assert np.array_equal(found[~finite], wanted[~finite])
    error = np.abs(found[finite] - wanted[finite])
    assert (error <= 4e-6 + 2e-6 * np.abs(wanted[finite])).all(), error.max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", HOSTILE)
def test_kernels_keep_what_the_rule_keeps_and_their_values_are_those_of_float64(name, device):
    logits, rule = HOSTILE[name]
    pairs = pairs_for(logits)
    size = logits["dpo"].shape[1]
    next_ids = torch.arange(len(logits["dpo"])) * 7 % size
    found = fetched(kernels(pairs).summarise(on(device, logits), next_ids.to(device), rule))

    block, scores_CV = exact(logits, pairs)
    rounded_CV = scores_CV.float().numpy()
    kept_CV = np.zeros(rounded_CV.shape, dtype=bool)
    kept_CV[kept_by(found)] = True
    wanted_CV = expected_kept(rounded_CV, rule)
    assert (found.support_count >= rule.lowest).all() and (found.support_count <= rule.highest).all()
    for c in np.flatnonzero((kept_CV != wanted_CV).any(1)):  # only scores that rounding puts on either side may differ
        assert "ties" not in name and "equal" not in name, c
        edge = rounded_CV[c][wanted_CV[c]].min()
        if kept_CV[c].sum() != wanted_CV[c].sum():
            edge = math.exp(rule.log_threshold)
        assert np.allclose(rounded_CV[c][kept_CV[c] != wanted_CV[c]], edge, rtol=1e-5, atol=0), (name, c)

    wanted = values_on(block, next_ids, torch.from_numpy(kept_CV), pairs=pairs, nodes=NODES)
    assert np.array_equal(found.support_count, wanted.support_count)
    assert np.array_equal(found.support_ids, wanted.support_ids)
    for field in ("logprobs", "next_logprob", "tail_logprob"):
        for role in logits:
            assert_close(getattr(found, field)[role], getattr(wanted, field)[role])
    for negative, distance_C in wanted.l1_distance.items():
        assert np.abs(found.l1_distance[negative] - distance_C).max() < 2e-6
    for pair in pairs:
        w_CJ = NODES.at(wanted.l1_distance[pair.negative])[:, 1:]
        there_CJ = ~np.isneginf(wanted.tail_logpartition[pair])
        assert np.array_equal(~np.isneginf(found.tail_logpartition[pair]), there_CJ)
        error_X = np.abs(found.tail_logpartition[pair][there_CJ] - wanted.tail_logpartition[pair][there_CJ])
        # a strength multiplies what float32 rounds in the two log-probs, and is rounded itself
        largest = max(float(l_CV.abs().max()) for l_CV in block.logprobs.values())
        allowed_CJ = 1e-5 + 3e-7 * (1 + 2 * w_CJ) * largest
        assert (error_X <= allowed_CJ[there_CJ]).all(), error_X.max()


@pytest.mark.parametrize("device", DEVICES)
def test_kernels_serve_every_pair(device):
    logits, pairs = near(2, 40), tuple(map(Pair.parse, ALL_PAIRS))
    found = (
        kernels(pairs)
        .summarise(on(device, logits), torch.tensor([0, 39], device=device), SOME)
        .fetch(Transfer())
        .wait()
        .scores
    )
    wanted = TorchVocabulary(pairs=pairs, nodes=NODES).summarise(
        {role: l_CV.clone() for role, l_CV in logits.items()}, torch.tensor([0, 39]), SOME
    )
    assert list(found.tail_logpartition) == list(pairs)
    for pair, values_CJ in fetched(wanted).tail_logpartition.items():
        assert np.allclose(found.tail_logpartition[pair], values_CJ, atol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 16), (8, 16), (4, 64)])
def test_values_do_not_depend_on_the_tiles(shape, device):
    logits, next_ids = on(device, near(2, 75)), torch.tensor([3, 70], device=device)
    lanes = shape[1] if device == "cpu" else 32 * shape[1]
    one, other = (
        kernels(tile_rows=rows, tile_lanes=lanes, num_warps=4)
        .summarise(logits, next_ids, SOME)
        .fetch(Transfer())
        .wait()
        .scores
        for rows, lanes in ((shape[0], lanes), (2, 512))
    )
    assert np.array_equal(one.support_ids, other.support_ids)
    for role in logits:
        assert np.allclose(one.logprobs[role], other.logprobs[role], atol=2e-6)
        assert np.allclose(one.tail_logprob[role], other.tail_logprob[role], atol=2e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["near models", "one token has all the mass", "huge logits", "ties", "no reverse"])
def test_the_best_scores_are_those_of_float64(name, device):
    logits, _ = HOSTILE[name]
    pairs = pairs_for(logits)
    partitions, best_CK = kernels(pairs).best_log_scores(on(device, logits), 8)
    wanted_CK = exact(logits, pairs)[1].topk(8).values.log().clamp(min=math.log(torch.finfo(torch.float32).tiny))
    assert np.abs(best_CK - wanted_CK.numpy()).max() < 2e-5
    for role, logits_CV in logits.items():
        assert_close(partitions[role].cpu().numpy(), logits_CV.double().logsumexp(-1).numpy())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("device", DEVICES)
def test_a_logit_that_is_not_finite_is_the_partition_of_its_position(device):
    values = [math.nan, math.inf, -math.inf]
    for vocabulary in (kernels(), TorchVocabulary(pairs=DEFAULT_PAIRS, nodes=NODES)):
        logits = near(4, 40)
        for c, value in enumerate(values):
            logits["reverse"][c, 33] = value
        next_ids = torch.zeros(4, dtype=torch.long, device=device)
        partitions = vocabulary.summarise(on(device, logits), next_ids, SOME).log_partition
        assert [str(value) for value in partitions["reverse"][:3].tolist()] == ["nan", "inf", "-inf"]
        assert partitions["reverse"][3].isfinite()
        assert partitions["dpo"].isfinite().all()


@pytest.mark.skipif(not INTERPRETED, reason="the CPU needs TRITON_INTERPRET=1")
def test_a_build_through_the_kernels_holds_the_values_of_one_through_torch(
    trio_folders, pairs_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("precompute.build.work.models.tokens_per_second", lambda *_: None)  # two passes more
    settings = {"limit": 1, "top_k": 5, "max_top_k": 12}
    plain, through = (
        build_cache(build_options(trio_folders, pairs_file, tmp_path / kernels, kernels=kernels, **settings))
        for kernels in ("torch", "triton")
    )
    told = capsys.readouterr().out
    assert "computed by plain torch code" in told and "computed by the kernels of triton 3" in told
    assert "kernels" not in plain.plan.identity["numerics"]
    assert through.plan.identity["numerics"]["kernels"].startswith("triton ")
    assert plain.plan.log_threshold == pytest.approx(through.plan.log_threshold, abs=1e-5)
    (one,), (other,) = plain.read([0]), through.read([0])
    on_the_threshold = 0  # it is the score of a token in the sample, so rounding puts one on either side
    for t in range(one.scores.num_positions):
        here, there = one.scores.slice(t, t + 1), other.scores.slice(t, t + 1)
        if not np.array_equal(here.support_ids, there.support_ids):
            on_the_threshold += abs(here.num_entries - there.num_entries)
            continue
        for field in ("logprobs", "next_logprob", "tail_logprob", "l1_distance", "tail_logpartition"):
            for key, values in getattr(here, field).items():
                assert np.allclose(values, getattr(there, field)[key], atol=1e-5), (field, key)
    assert on_the_threshold <= 1
