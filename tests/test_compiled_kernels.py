"""The kernels compile for a GPU that need not be there, and their loops over the vocabulary do not wait."""

import json
from pathlib import Path

import fresh
import pytest

pytest.importorskip("triton", reason="needs triton")

ROOT = Path(__file__).parents[1]
KERNELS = {
    *("measure", "keep_tokens", "own_thresholds", "pack_tokens", "write_scores"),
    *(f"divergence_gradient {name}" for name in ("reverse_kl", "forward_kl", "jsd")),
}
REGISTERS_OF_A_PROCESSOR = 65_536
MOST_SPILLS = 2
"""Instructions of a loop; `keep_tokens` has as many, in 1,234."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")  # no interpreter of Triton in such a process
    done = fresh.run("tests.compile_kernels", ["90"], ROOT, folder / "log", TRITON_CACHE_DIR=str(folder))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles_for_compute_capability_9(reports):
    assert {report["kernel"] for report in reports} == KERNELS


def test_no_loop_over_the_vocabulary_waits_for_other_threads_or_spills(reports):
    for report in reports:
        assert report["loops"] or report["kernel"] == "pack_tokens", report["kernel"]
        for loop in report["loops"]:
            assert loop["waits"] == 0 and loop["spills"] <= MOST_SPILLS, (report["kernel"], loop)


def test_a_program_fits_into_the_registers_of_a_processor(reports):
    for report in reports:
        assert 32 * report["tile"][2] * report["registers"] <= REGISTERS_OF_A_PROCESSOR, report


def test_measuring_takes_three_reads_of_every_logit_and_keeping_one(reports):
    for kernel, reads in (("measure", 3), ("keep_tokens", 1)):
        (report,) = (report for report in reports if report["kernel"] == kernel)
        rows, lanes, warps = report["tile"]
        of_a_thread = 3 * rows * lanes // (32 * warps)  # the tokens of a tile, of three roles
        assert [loop["loads"] for loop in report["loops"]] == [of_a_thread] * reads
