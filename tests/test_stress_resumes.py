"""The campaigns `resumes` and `loaders` in small: a few schedules and troubles, and a planted defect of each."""

import shutil

import pytest
import torch
from stress.resumes import defects
from stress.resumes.campaign import Resumes, schedule
from stress.resumes.leg import Kind, Layout
from stress.resumes.loaders import Loaders, happening
from stress.resumes.trouble import DamageInWorker, ShardTruncated, WorkerKilled
from test_bad_steps import trainer

from shards.copy.folder import FolderStore
from shards.errors import CacheMissing
from shards.places.mirror import open_mirror
from shards.places.room import Room

PLAIN = Kind(caches=1, window=None, bf16=False, dropout=True, optim="adamw_torch", rates="cosine_with_min_lr")


def numbers(wanted, count):
    """The first cases of a kind, which share their unbroken run."""
    found = (number for number in range(100_000) if wanted(number))
    return [next(found) for _ in range(count)]


@pytest.fixture(scope="module")
def resumes(tmp_path_factory):
    return Resumes(tmp_path_factory.mktemp("resumes"), 0)


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    return Loaders(tmp_path_factory.mktemp("loaders"), 0)


def with_a_resume(number):
    """Dropout, and one stop after at least three checkpoints."""
    found, legs = schedule(0, number)
    layouts, (first, *_) = {leg.layout for leg in legs}, legs
    return found == PLAIN and layouts == {Layout(micro=4)} and first.save_every == 1 and first.stop[1] >= 4


def test_a_few_schedules_hold_and_defects_are_found(resumes):
    (number,) = numbers(with_a_resume, 1)
    assert resumes.case(number).verdict == "held"
    for name in ("the random state is not restored", "the schedule is one step off"):
        with resumes.defects[name]():
            assert resumes.case(number).verdict == "missed", name


@pytest.mark.parametrize("trouble", [WorkerKilled, DamageInWorker, ShardTruncated])
def test_a_trouble_is_one_line_and_the_run_goes_on(loaders, tmp_path, trouble):
    (number,) = numbers(lambda n: isinstance(happening(0, n, tmp_path)[0], trouble), 1)
    outcome = loaders.case(number)
    assert outcome.verdict == "held", outcome.text
    if trouble is DamageInWorker:
        with loaders.defects["a worker's error stays wrapped"]():
            assert loaders.case(number).verdict == "missed"


def test_neither_evaluations_nor_workers_that_stay_change_what_dropout_drops(loaders, tmp_path):
    def weights(name, **flags):
        torch.manual_seed(1)
        made = trainer(loaders.ground, tmp_path / name, dropout=True, save_strategy="no", **flags)
        made.train()
        return torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()])

    plain = weights("plain")
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "eval_shards": loaders.ground.caches(1)}
    stay = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    assert torch.equal(plain, weights("evaluated", **evaluation)) and torch.equal(plain, weights("stay", **stay))
    with defects.seed_of_workers_from_the_common_state():
        assert not torch.equal(plain, weights("from the common state", **evaluation))


def test_copies_that_vanish_are_missed_in_one_line(loaders, tmp_path):
    store = FolderStore(loaders.ground.folder / "cache-0")
    mirror = open_mirror(store, Room.of(str(tmp_path / "copies"), None), names="manifest.json", evict="part-*.arrow")
    shutil.rmtree(tmp_path / "copies")
    with pytest.raises(
        CacheMissing, match=r"^cache_dir: expected .*copies/.* as long as this process runs, found none$"
    ):
        mirror.ensure("part-00000.arrow")
