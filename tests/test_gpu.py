"""What a GPU must do as a CPU does: loss, build, half precision, sharded weights, models in turn, device_map.

Every body runs on both devices, against dense formulas in float64 on the CPU.
"""

import copy
import socket
from pathlib import Path

import dense
import fresh
import numpy as np
import pytest
import torch
from conftest import ALL_PAIRS, build_cache, build_options
from devices import DEVICES
from test_student_loss import DIVERGENCES, V, batch_of, distil
from test_training import arguments, moved, plain_sgd, weights
from tiny import nudged, save

from shards.format.schema import ROLES
from student.train.__main__ import train

ROWS = list(range(8))
HALVES = {"float16": (torch.float16, 1.5), "bfloat16": (torch.bfloat16, 12.0)}
"""dtype -> (torch's, largest angle of a gradient in degrees)."""
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets."""


@pytest.fixture(scope="module")
def student(trio):
    return nudged(trio["reference"], 7, 0.3)


@pytest.fixture(scope="module")
def student_folder(student, tmp_path_factory):
    return save(student, tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def exact(trio):
    """The trio in float64, on the CPU."""
    return {role: copy.deepcopy(model).double() for role, model in trio.items()}


def on(device, batch):
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def live_logprobs(exact, response):
    with torch.no_grad():
        return {role: dense.response_logprobs(model, response, V).numpy() for role, model in exact.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_fused_loss_is_the_dense_one_of_float64(whole_cache, exact, student, device, name):
    pupil = copy.deepcopy(student).double()
    expected, _ = dense.loss(pupil, exact, whole_cache.read(ROWS), V, preset="aligndistil", name=name)
    here = copy.deepcopy(student).to(device)
    found = distil(here, on(device, batch_of(whole_cache, ROWS)), name=name, chunk=7)
    ours, theirs = dense.gradient(found, here).cpu().double(), dense.gradient(expected, pupil)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_in_half_precision_the_gradient_turns_by_what_rounding_explains(whole_cache, exact, student, device, dtype):
    kind, largest = HALVES[dtype]
    pupil = copy.deepcopy(student).double()
    expected, _ = dense.loss(pupil, exact, whole_cache.read(ROWS), V, preset="aligndistil")
    here = copy.deepcopy(student).to(device)
    with torch.autocast(device, kind):
        found = distil(here, on(device, batch_of(whole_cache, ROWS)), chunk=7)
    turned = dense.angle_degrees(dense.gradient(found, here).cpu(), dense.gradient(expected, pupil))
    assert 0.05 < turned < largest
    assert found.item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float16", 0.05), ("bfloat16", 0.4)])
def test_a_build_stores_the_log_probs_of_float64(trio_folders, pairs_file, exact, tmp_path, device, dtype, tolerance):
    settings = {"responses": "both", "support": "fixed", "top_k": V, "pairs": ALL_PAIRS, "dtype": dtype}
    cache = build_cache(build_options(trio_folders, pairs_file, tmp_path, device=device, chunk_positions=7, **settings))
    for response in cache.read(ROWS):
        live, scores = live_logprobs(exact, response), response.scores
        for role in ROLES:
            np.testing.assert_allclose(scores.logprobs[role].reshape(-1, V), live[role], rtol=0, atol=tolerance)
            assert np.isneginf(scores.tail_logprob[role]).all()
        for negative, found in scores.l1_distance.items():
            expected = np.abs(np.exp(live["dpo"]) - np.exp(live[negative])).sum(-1)
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_a_build_summarises_what_it_does_not_keep_as_float64_does(trio_folders, pairs_file, exact, tmp_path, device):
    settings = {"responses": "both", "top_k": 5, "max_top_k": 12, "dtype": "float32"}
    cache = build_cache(build_options(trio_folders, pairs_file, tmp_path, device=device, **settings))
    for response in cache.read(ROWS):
        live, scores = live_logprobs(exact, response), response.scores
        position = np.repeat(np.arange(scores.num_positions), scores.support_count)
        for role in ROLES:
            live[role][position, scores.support_ids] = -np.inf  # from here on: what is outside
            np.testing.assert_allclose(scores.tail_logprob[role], logsumexp(live[role]), rtol=0, atol=2e-5)
        for pair, found in scores.tail_logpartition.items():
            strengths = cache.plan.nodes.at(scores.l1_distance[pair.negative])[:, 1:]
            with np.errstate(invalid="ignore"):
                step = live["dpo"] - live[pair.negative]
            for j, strength in enumerate(strengths.T):
                with np.errstate(invalid="ignore"):
                    logits = live[pair.anchor] + strength[:, None] * step
                logits[position, scores.support_ids] = -np.inf
                np.testing.assert_allclose(found[:, j], logsumexp(logits), rtol=1e-5, atol=5e-5)


def logsumexp(values):
    return torch.from_numpy(values).logsumexp(-1).numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("flags", [{"models_in_memory": "one"}, {"device_map": "auto"}])
def test_where_models_lie_does_not_change_what_a_build_stores(trio_folders, pairs_file, tmp_path, device, flags):
    if "device_map" in flags:
        flags = {"device_map": "auto" if device == "cuda" else "cpu"}
    settings = {"responses": "both", "top_k": 5, "max_top_k": 12, "tokens_per_shard": 40, "device": device}
    caches = [
        build_cache(build_options(trio_folders, pairs_file, tmp_path / name, dtype="float32", **settings | more))
        for name, more in (("plain", {}), ("other", flags))
    ]
    for plain, other in zip(*(cache.read(ROWS) for cache in caches), strict=True):
        np.testing.assert_array_equal(plain.scores.support_ids, other.scores.support_ids)
        for role in ROLES:
            expected = plain.scores.logprobs[role]
            np.testing.assert_allclose(other.scores.logprobs[role], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("precision", "largest"), [("bf16", 20.0), ("fp16", 1.5)])
def test_a_training_step_in_half_precision_goes_where_float32_goes(
    whole_cache, student_folder, tmp_path, device, precision, largest
):
    step = stepped(whole_cache, student_folder, tmp_path / "half", device, {precision: True})
    plain = stepped(whole_cache, student_folder, tmp_path / "float32", "cpu", {})
    assert 0 < dense.angle_degrees(step, plain) < largest
    assert step.norm() / plain.norm() == pytest.approx(1, abs=0.25)


def stepped(cache, student_folder, out, device, flags):
    """The change of all weights in one plain step."""
    flags = {"bf16": False, "fp16": False} | flags
    train(arguments(cache, student_folder, out, use_cpu=device == "cpu", **plain_sgd(**flags)))
    return moved(weights(student_folder), weights(out))


@pytest.mark.parametrize("device", DEVICES)
def test_one_rank_with_sharded_weights_gives_the_step_of_whole_ones(whole_cache, student_folder, tmp_path, device):
    """FSDP2 through accelerate, with the environment of its launcher, which shards on accelerators only: on a CPU this
    is a launched rank without it."""
    flags = plain_sgd(
        bf16=False, fp16=False, use_cpu=device == "cpu", train_on="both", save_strategy="no", report_to="none"
    )
    given = {"shards": whole_cache.folder, "model": student_folder, "output_dir": tmp_path / "sharded"} | flags
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    log = Path(tmp_path) / "rank"
    more = FSDP if device == "cuda" else {}
    process = fresh.start("student.train", words, tmp_path, log, **address, **ranks, **more)
    process.join(fresh.SECONDS)
    assert process.exitcode == 0, "".join(fresh.printed(log))[-3000:]
    whole = stepped(whole_cache, student_folder, tmp_path / "whole", device, {})
    sharded = moved(weights(student_folder), weights(tmp_path / "sharded"))
    assert (sharded - whole).norm() <= 1e-4 * whole.norm()
