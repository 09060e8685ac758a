"""The alignment benchmark runs, its task and its judge measure what they say, and its frontier obeys its laws."""

import dataclasses
import json
import random
from functools import partial
from math import exp, sqrt

import fresh
import numpy as np
import pytest
import torch
from tiny import load, make_llama, make_pairs, make_tokenizer, write_jsonl

from benchmarks.alignment import __main__ as command
from benchmarks.alignment import experiment, methods, real, task, train
from benchmarks.alignment import jobs as jobs_module
from benchmarks.alignment import judge as judge_module
from benchmarks.alignment import options as options_module
from benchmarks.alignment.frontier import hull, interval, reward_at, steps_to
from benchmarks.alignment.jobs import Job, each
from benchmarks.alignment.judge import Judge
from benchmarks.alignment.methods import FEW, IN_ROUNDS, ITSELF, ON_ROLLOUTS, PAPER, STUDENTS
from benchmarks.alignment.options import AlignmentOptions
from benchmarks.alignment.report import page, real_section
from benchmarks.alignment.train import Watch, train_dpo
from examples.demo import models as demo_models
from examples.demo.evaluate import response_logprobs
from examples.demo.grammar import Dish
from shards import TeacherSpec
from shards.errors import OptionError

SMALL_POTATO = Dish("small", "potato")
TINY_BATCH = 4
TINY = {
    "seeds": [0], "texts": 64, "pairs": 12 * TINY_BATCH, "few_pairs": 9 * TINY_BATCH, "held_out_pairs": 8,
    "samples_per_prompt": 1, "learning_rates": [1e-3], "hidden_size": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("response", "parts"),
    [
        (" boil it , add butter , wait five minutes .", 3),
        (" boil it , boil it .", 1),
        (" boil it , fry it .", 0),
        (" fry it , boil it .", -1),
        (" it is quite easy .", 0),
        (" it is quite easy , who cares .", -1),
        (" boil it", 0),
        (" boil it . add butter .", 0),
        (" butter .", -1),
        (" .", -2),
        ("", -2),
    ],
)
def test_the_true_reward_is_a_sum_of_parts_less_the_cost_of_tokens(response, parts):
    cost = task.TOKEN_COST * len(response.split())
    assert task.true_reward(SMALL_POTATO, response) == pytest.approx(parts - cost)


def test_every_prompt_has_one_length_and_every_text_is_read_back():
    tokenizer, rng = task.make_tokenizer(), random.Random(0)
    asked = task.prompts(held_out=False) + task.prompts(held_out=True)
    assert len({len(tokenizer(prompt)["input_ids"]) for prompt, _ in asked}) == 1
    for prompt, dish in asked:
        text = prompt + task.write_response(dish, rng)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.pad_token_id not in ids and tokenizer.decode(ids) == text


def test_preferences_are_draws_of_bradley_and_terry():
    pairs = task.draw_pairs(4000, held_out=False, rng=random.Random(0))
    dish_of = dict(task.prompts(held_out=False))
    margins = [
        task.true_reward(dish_of[p["prompt"]], p["chosen"]) - task.true_reward(dish_of[p["prompt"]], p["rejected"])
        for p in pairs
    ]
    for low, high in ((0.2, 1.0), (1.0, 2.0), (2.0, 3.0)):
        near = [margin for margin in margins if low <= abs(margin) < high]
        wins = sum(margin > 0 for margin in near) / len(near)
        expected = sum(1 / (1 + exp(-abs(margin))) for margin in near) / len(near)
        assert wins == pytest.approx(expected, abs=4 * sqrt(0.25 / len(near)))


@pytest.fixture
def judge():
    asked = ["the cat sat", "a big dog"]
    return Judge(
        make_llama(0),
        make_tokenizer(),
        asked,
        lambda number, text: number + len(text),
        samples_per_prompt=8,
        seed=0,
    )


def test_the_reference_has_no_distance_to_itself(judge):
    assert judge(judge.reference).kl_nats == 0


def test_the_kl_is_that_of_each_response_alone(judge):
    model = make_llama(1)
    found = judge(model)
    ids_BT, mask_BR = judge.sample()
    assert not mask_BR.all() and mask_BR.any(-1).all()
    start, kls_nats = judge.ids_BP.shape[1], []
    for ids_T, mask_R in zip(ids_BT, mask_BR, strict=True):
        prompt, response = ids_T[:start].tolist(), ids_T[start:][mask_R].tolist()
        ((p_NV,), (q_NV,)) = (list(response_logprobs(m, [prompt], [response])) for m in (model, judge.reference))
        kls_nats.append((p_NV.exp() * (p_NV - q_NV)).sum().item())
    half = len(kls_nats) // 2
    assert found.kl_nats == pytest.approx(sum(kls_nats[:half]) / half, rel=1e-4)
    assert found.choice_kl == pytest.approx(sum(kls_nats[half:]) / half, rel=1e-4)


def test_a_teacher_of_strength_one_is_judged_as_the_dpo_model_is(judge):
    models = {"dpo": make_llama(1), "reverse": make_llama(2), "reference": judge.reference}
    at_one = TeacherSpec.preset("linear", beta=0.1, kl_coef=0.1)
    ids_BT, mask_BR = judge.sample_teacher(models, at_one)
    assert (ids_BT[:, judge.ids_BP.shape[1] :][~mask_BR] == judge.tokenizer.pad_token_id).all(), (
        "nothing behind the end"
    )
    wanted = judge.quality(ids_BT, mask_BR, judge._logprobs(models["dpo"], ids_BT))
    found = judge.of_teacher(models, at_one)
    assert found.kl_nats == pytest.approx(wanted.kl_nats, rel=1e-4) and found.reward == wanted.reward
    further = judge.of_teacher(models, TeacherSpec.preset("linear", beta=0.1, kl_coef=0.05))
    assert further.kl_nats > found.kl_nats
    assert judge.of_teacher(dict.fromkeys(models, judge.reference), TeacherSpec()).kl_nats == pytest.approx(0, abs=1e-6)


def test_a_judgement_depends_on_the_model_alone(judge):
    model = make_llama(1).train()
    state = torch.get_rng_state()
    first = judge(model)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    judge(make_llama(2))
    assert judge(model) == first and judge(make_llama(2)) != first


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_a_training_that_is_watched_is_the_training(trio_folders, pairs_file, judge, tmp_path):
    weights = []
    for name, steps in (("watched", (1,)), ("alone", ())):
        watch = Watch(judge=judge, steps=steps)
        given = {"beta": 0.1, "learning_rate": 1e-3, "seed": 0, "per_device_train_batch_size": 4}
        train_dpo("dpo", trio_folders["reference"], pairs_file, tmp_path / name, watch, **given)
        assert [point["step"] for point in watch.points] == list(steps)
        weights.append(load(tmp_path / name / "dpo").state_dict())
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


def point(kl, reward, other=None):
    return {"kl_nats": kl, "choice_kl": kl, "choice_reward": reward, "reward": reward if other is None else other}


def test_the_frontier_begins_at_the_reference_and_ends_at_the_best():
    points = [point(0, 1), point(1, 2), point(2, 1.5), point(3, 2.5)]
    assert [reward_at(points, kl) for kl in (0, 0.5, 1, 2, 3, 9)] == [1, 1.5, 2, 2.25, 2.5, 2.5]
    assert [vertex["choice_kl"] for vertex in hull(points)] == [0, 1, 3]


def test_more_points_never_lower_the_frontier_and_it_is_concave():
    rng = random.Random(0)
    for _ in range(50):
        points = [point(0, 0), *(point(rng.random() * 3, rng.random()) for _ in range(9))]
        grid = [i / 10 for i in range(31)]
        whole = [reward_at(points, kl) for kl in grid]
        part = [reward_at(points[:5], kl) for kl in grid]
        assert all(more >= less - 1e-12 for more, less in zip(whole, part, strict=True))
        assert all(2 * b >= a + c - 1e-12 for a, b, c in zip(whole, whole[1:], whole[2:], strict=False))


def test_what_is_chosen_by_one_half_is_reported_by_the_other():
    lucky = point(1, 5, other=0)
    assert reward_at([point(0, 1), lucky], 1) == 0
    assert reward_at([point(0, 1), lucky], 0.5) == 0.5


def test_steps_to_a_reward_lie_between_two_judgements():
    points = [{"step": step, "reward": reward} for step, reward in ((0, 0), (10, 1), (20, 0.5), (40, 2))]
    assert steps_to(points, 0.5) == 5
    assert steps_to(points, 1.25) == 30
    assert steps_to(points, 3) is None
    assert steps_to(points, -1) == 0


def test_an_interval_is_students():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3 and found.half_width == pytest.approx(2.776 * sqrt(2.5 / 5))
    assert found.is_above_zero and not found.is_below_zero
    assert interval([1.0]).half_width is None and not interval([1.0]).is_above_zero
    with pytest.raises(OptionError, match="seeds"):
        interval([0.0] * 11)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tiny_run_has_every_method_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    # a constant strength and an adaptive one; that all compose is seen below, and that they train in test_training.py
    presets = {name: dataclasses.replace(methods.PRESETS[name], values=(1.0,)) for name in ("linear", "aligndistil")}
    few = presets | {"learned, dpo/reverse": STUDENTS["learned, dpo/reverse"]}
    for name, value in {
        "STUDENTS": few,
        "PRESETS": presets,
        "DPO_BETAS": (0.1, 1.0),
        "POLICY_GRADIENT_KL_COEFS": (0.05,),
    }.items():
        monkeypatch.setattr(experiment, name, value)
    # the fewest weights and the smallest batches that take every path, by every number of steps
    monkeypatch.setattr(demo_models, "new_model", lambda width, seed, _: make_llama(seed, width, num_hidden_layers=1))
    for module in (options_module, train):
        monkeypatch.setattr(module, "BATCH_SIZE", TINY_BATCH)
    monkeypatch.setitem(train.COMMON, "per_device_train_batch_size", TINY_BATCH)
    monkeypatch.setattr(judge_module, "MAX_NEW_TOKENS", 6)
    monkeypatch.setattr(experiment, "MAX_NEW_TOKENS", 6)
    monkeypatch.setattr(experiment.Bench, "score", lambda bench, runs: runs[-1]["points"][-1]["choice_kl"])
    options = AlignmentOptions(**TINY, out=str(tmp_path))
    (tmp_path / "seeds-0" / "teachers" / "dpo").mkdir(parents=True)
    (tmp_path / "seeds-0" / "teachers" / "dpo" / "of a killed run").touch()
    results = command.run(options, "the command")
    themselves = {f"{name}, {ITSELF}" for name in presets}
    choices = results["tuning"]["100"]
    paper = {f"{name}, {PAPER}" for name in themselves} if choices["beta"] == 1 else set()
    methods_run = {run["method"] for run in results["seeds"]["0"]["runs"]}
    assert methods_run == {"dpo", "policy gradient", *few, *themselves, *paper,
                           *(f"{name}, rollouts" for name in ON_ROLLOUTS),
                           *(f"{name}, 3 rounds" for name in IN_ROUNDS)}  # fmt: skip
    assert {run["method"] for run in results["few_seeds"]["0"]["runs"]} == {
        f"{name}, {FEW}" for name in ("dpo", *presets, *themselves)
    }
    for part, wanted in (("seeds", [1, 3, 6, 12]), ("few_seeds", [1, 2, 4, 9])):
        for run in results[part]["0"]["runs"]:
            assert [judged["step"] for judged in run["points"]] == ([0] if ITSELF in run["method"] else wanted)
    assert choices["dpo_beta"] in (0.1, 1.0) and set(choices["rates"]) == {"dpo", *presets, "policy gradient"}
    text = page(results, "pictures")
    for part in (
        "`the command`",
        "linear less dpo",
        "With few pairs",
        "What was chosen before the runs",
        "| policy gradient |",
        "pictures/",
    ):
        assert part in text
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"], "models and caches are removed"

    assert json.loads((tmp_path / "results.json").read_text()) == results
    for name in ("tune", "run_seed"):
        monkeypatch.setattr(command, name, lambda *args, **kwargs: pytest.fail("done twice"))
    assert command.run(options, "the command") == results, "what is done is not done again"
    with pytest.raises(OptionError, match="held_out_pairs"):
        command.run(dataclasses.replace(options, held_out_pairs=9), "another command")


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_pairs_are_judged_on_held_out_ones(trio_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(real, "TOP_K", 18)
    monkeypatch.setattr(real, "BETAS", (0.1,))
    monkeypatch.setattr(real, "VALUES", {"linear": (1.0,), "aligndistil": (5.0,)})
    data = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", make_pairs(20, seed=i))) for i, name in enumerate("ab")}
    options = AlignmentOptions(
        models=[f"{role}={folder}" for role, folder in trio_folders.items()], data=data["a"], held_out=data["b"],
        real_pairs=16, real_held_out_pairs=6, real_length=16, real_learning_rates=[1e-3], real_seeds=[0],
    )  # fmt: skip
    trio = real.trio_figures(tmp_path / "trio", options)
    assert trio["pairs"] == 6 and trio["models"]["reference"]["kl_nats"] == pytest.approx(0, abs=1e-4)
    assert trio["models"]["dpo"]["accuracy"] == trio["accuracy"]["dpo"] == trio["accuracy"]["linear, strength 1"]
    assert trio["models"]["reverse"]["reward"] < trio["models"]["dpo"]["reward"], "it is reverse's opposite"
    choices = real.tune(tmp_path / "tuning", options)
    seed = real.run_seed(tmp_path / "0", 0, options, choices)
    assert [run["method"] for run in seed["runs"]] == ["dpo", "linear", "aligndistil"]
    assert all([judged["step"] for judged in run["points"]] == [1, 2] for run in seed["runs"])
    results = {
        "real_trio": {"100": trio},
        "real_settings": options.real_identity(),
        "real_seeds": {"0": seed, "1": seed},
    }
    text = "\n".join(real_section(results))
    for part in ("| dpo | beta 0.1, rate 0.001 |", "| aligndistil | gain 5, rate 0.001 |", "dpo of the trio"):
        assert part in text


def test_the_judge_of_real_pairs_sums_over_each_response(trio_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(real, "TOP_K", 18)
    data = str(write_jsonl(tmp_path / "pairs.jsonl", make_pairs(4, seed=1)))
    options = AlignmentOptions(
        models=[f"{role}={folder}" for role, folder in trio_folders.items()], data=data, held_out=data,
        real_held_out_pairs=4, real_length=64,
    )  # fmt: skip
    monitor = real.make_judge(tmp_path / "judge", options)
    model, trio = load(trio_folders["dpo"]), {role: load(folder) for role, folder in trio_folders.items()}
    kls, rewards = [], []
    for row in monitor.cache.read(range(len(monitor.cache))):
        ids, start = row.input_ids.tolist(), row.response_start
        logprobs = {role: next(response_logprobs(m, [ids[:start]], [ids[start:]])) for role, m in trio.items()}
        kls.append((logprobs["dpo"].exp() * (logprobs["dpo"] - logprobs["reference"])).sum().item())
        rewards.append(0.1 * (logprobs["dpo"].exp() * (logprobs["dpo"] - logprobs["reverse"])).sum().item())
    found = monitor(model)
    order = np.unique(monitor.cache.index.pair_id, return_inverse=True)[1]
    for half, kl, reward in ((0, found.kl_nats, found.reward), (1, found.choice_kl, found.choice_reward)):
        assert kl == pytest.approx(np.mean(np.array(kls)[order % 2 == half]), rel=1e-3)
        assert reward == pytest.approx(np.mean(np.array(rewards)[order % 2 == half]), rel=1e-3)


def test_every_method_composes_a_teacher_at_every_value_of_its_knob():
    for student in STUDENTS.values():
        specs = [student.spec_at(value, 0.3) for value in student.values]
        assert len(set(specs)) == len(student.values) and all(spec.beta == 0.3 for spec in specs)


def test_a_strength_is_what_the_flags_compose():
    for beta in (0.1, 3.0):
        for value in (0.5, 2.0):
            assert STUDENTS["linear"].spec_at(value, beta).constant_strength == pytest.approx(value)
            assert STUDENTS["aligndistil"].spec_at(value, beta).gain == value
        assert STUDENTS["distilled dpo"].spec_at(1.0, beta).constant_strength == 1


def leave_something(folder, number):
    found = [path.name for path in folder.glob("*")]
    folder.mkdir()
    (folder / str(number)).touch()
    return found, 2 * number


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_every_job_once_in_a_folder_of_its_own(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(jobs_module, "get_context", lambda method: fresh.CONTEXT)
    jobs = [Job("seeds", seed, partial(leave_something, tmp_path / str(seed), seed)) for seed in range(3)]
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "of a killed run").touch()
    found = {job.seed: result for job, result in each(jobs, workers)}
    assert found == {0: ([], 0), 1: ([], 2), 2: ([], 4)}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": [100]}, "seeds"),
        ({"pairs": 100}, "pairs"),
        ({"pairs": 320}, "pairs"),
        ({"few_pairs": 320}, "few_pairs"),
        ({"pairs": 288, "few_pairs": 384}, "few_pairs"),
        ({"workers": 0}, "workers"),
        ({"models": ["dpo=a", "reverse=b", "reference=c"]}, "models"),
        ({"models": ["dpo=a"], "data": "b", "held_out": "c"}, "models"),
        ({"learning_rates": [0.0]}, "learning_rates"),
        ({"samples_per_prompt": 0}, "samples_per_prompt"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, named):
    with pytest.raises(OptionError, match=named):
        AlignmentOptions(**flags)
