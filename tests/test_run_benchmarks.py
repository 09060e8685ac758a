"""benchmarks.ranks, long and padding: what they compare is alike, and their figures are those of a student's step."""

import json

import pytest
import torch
from tiny import make_llama, nudged, save

from benchmarks import long, padding, ranks
from shards.errors import AlignDistilError, OptionError


def test_targets_of_a_long_response_are_distributions_over_different_tokens():
    options = long.Options(vocabulary=100, kept=8)
    targets = long.random_targets(options, 5)
    ids_NK = targets.support_ids.reshape(5, 8)
    assert (ids_NK.diff(dim=1) > 0).all() and ids_NK.max() < 100
    mass_N = targets.teacher_logprobs.exp().reshape(5, 8).sum(1) + targets.teacher_tail.exp()
    torch.testing.assert_close(mass_N, torch.ones(5), rtol=1e-5, atol=0)


def test_every_way_of_a_long_response_runs():
    options = long.Options(vocabulary=64, kept=4, hidden_size=64, layers=1)
    for way in long.WAYS:
        assert long.measure_one(options, way, 32)["seconds"] > 0


def test_steps_without_padding_have_the_losses_of_padded_ones(sparse_cache, trio, tmp_path):
    student = save(nudged(trio["reference"], 7, 0.1), tmp_path / "student")  # not the reference: its loss is no zero
    options = padding.Options(
        shards=str(sparse_cache.folder), model=str(student), global_batch_size=4, micro_batches=2, out=str(tmp_path)
    )
    for attention in options.attention:
        found = padding.measure(options, attention, 4)
        assert found["loss_off"] < 1e-5 and found["ratio"] > 0 and 0 <= found["padding"] < 1


def run_of(folder, losses, seed):
    folder.mkdir()
    log = [{"step": step, "loss": loss} for step, loss in losses.items()]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    make_llama(seed).save_pretrained(folder)
    return folder


def test_runs_are_compared_step_by_step_and_by_the_way_that_they_went(tmp_path):
    folders = {
        "1": run_of(tmp_path / "one", {1: 2.0, 2: 1.0}, 1),
        "2": run_of(tmp_path / "two", {1: 2.0, 2: 1.5}, 1),
    }
    start = run_of(tmp_path / "start", {}, 0)
    found = ranks.compare(ranks.Options(), folders, start)
    assert found["2"]["off"] == {1: 0.0, 2: 0.5} and found["2"]["weights_off"] == 0
    assert ranks.apart(folders["1"], start, start) == pytest.approx(1)
    folders["4"] = run_of(tmp_path / "four", {1: 2.0}, 1)
    with pytest.raises(AlignDistilError, match=r"4: expected losses of steps \[1, 2\], got \[1\]"):
        ranks.compare(ranks.Options(), folders, start)


@pytest.mark.parametrize("numbers", [[2, 4], [1, 4, 2], []])
def test_numbers_of_processes_rise_from_one(numbers):
    with pytest.raises(OptionError, match="ranks: expected rising numbers"):
        ranks.Options(ranks=numbers)
