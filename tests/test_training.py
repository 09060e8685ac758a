"""student.train: one step is the dense step, order and resumption are exact, evaluation is the training loss."""

import json
from pathlib import Path

import dense
import numpy as np
import pytest
import torch
from conftest import build_options
from safetensors.torch import load_file
from tiny import load, nudged, save
from transformers import TrainerCallback
from two_ranks import run_ranks

from precompute.build.build import build
from shards import ShardCache, TeacherSpec
from shards.cli.trust_text import number
from shards.errors import CacheConflict
from shards.teacher.trust import assess
from shards.teacher.verdict import verdict
from student.data.order import GlobalBatchSampler
from student.data.responses import CachedResponses
from student.options import DistillArguments
from student.train.__main__ import train
from student.trainer import DistillTrainer

V = 18
RATE = 0.5


@pytest.fixture(scope="module")
def student_folder(trio, tmp_path_factory):
    return save(nudged(trio["reference"], 7, 0.1), tmp_path_factory.mktemp("student"))


def arguments(cache, student, out, **overrides):
    settings = {
        "shards": [str(cache.folder)],
        "model": str(student),
        "output_dir": str(out),
        "train_on": "both",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return DistillArguments(**settings | overrides)


def plain_sgd(**overrides):
    """One step over all rows, without anything between the gradient and the weights."""
    return {
        "optim": "sgd",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 0,
        "max_steps": 1,
        "global_batch_size": 24,
        "per_device_train_batch_size": 24,
    } | overrides


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def moved(before, after):
    """The change of all weights as one vector, in the order of the names."""
    return torch.cat([(after[name].double() - before[name].double()).flatten() for name in sorted(before)])


@pytest.mark.parametrize("preset", dense.PRESETS)
def test_a_plain_sgd_step_is_the_dense_gradients(whole_cache, trio, student_folder, tmp_path, preset):
    model = load(student_folder)
    expected, _ = dense.loss(model, trio, whole_cache.read(range(len(whole_cache))), V, preset=preset)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    by_name = {name: g for (name, _), g in zip(model.named_parameters(), gradients, strict=True)}
    trainer = train(arguments(whole_cache, student_folder, tmp_path, teacher=preset, **plain_sgd()))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)

    before = {name: tensor for name, tensor in model.state_dict().items() if name in by_name}
    step = moved(before, {name: tensor for name, tensor in weights(tmp_path).items() if name in by_name})
    dense_step = torch.cat([-RATE * by_name[name].double().flatten() for name in sorted(by_name)])
    assert dense.angle_degrees(step, dense_step) < 0.1
    assert step.norm() / dense_step.norm() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("preset", dense.PRESETS)
def test_any_split_gives_the_same_step_for_each_teacher(whole_cache, student_folder, tmp_path, preset):
    steps = []
    for size in (24, 3):
        settings = plain_sgd(per_device_train_batch_size=size, teacher=preset)
        train(arguments(whole_cache, student_folder, tmp_path / str(size), **settings))
        steps.append(moved(weights(student_folder), weights(tmp_path / str(size))))
    assert (steps[1] - steps[0]).norm() < 1e-4 * steps[0].norm()


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_any_split_into_accumulation_steps_gives_the_same_step(sparse_cache, student_folder, tmp_path, reduction):
    found = []
    for size in (24, 8, 3, 1):
        out = tmp_path / str(size)
        settings = plain_sgd(per_device_train_batch_size=size, reduction=reduction)
        trainer = train(arguments(sparse_cache, student_folder, out, **settings))
        found.append((trainer.state.log_history[0]["loss"], moved(weights(student_folder), weights(out))))
    for loss, step in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        assert (step - found[0][1]).norm() < 1e-4 * found[0][1].norm()


def test_a_short_last_batch_counts_every_row_once(sparse_cache, student_folder, tmp_path):
    whole = train(arguments(sparse_cache, student_folder, tmp_path / "a", **plain_sgd()))
    filled = train(
        arguments(
            sparse_cache,
            student_folder,
            tmp_path / "b",
            **plain_sgd(global_batch_size=32, per_device_train_batch_size=8),
        )
    )
    first, second = (t.state.log_history[0]["loss"] for t in (whole, filled))
    assert first == pytest.approx(second, rel=1e-6)
    steps = [moved(weights(student_folder), weights(tmp_path / name)) for name in "ab"]
    assert (steps[0] - steps[1]).norm() < 1e-4 * steps[0].norm()


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_evaluation_on_the_training_rows_gives_the_training_loss(sparse_cache, student_folder, tmp_path, reduction):
    settings = plain_sgd(learning_rate=0.0, per_device_train_batch_size=3, per_device_eval_batch_size=5, gain=0.02)
    trainer = train(
        arguments(
            sparse_cache,
            student_folder,
            tmp_path,
            eval_shards=[str(sparse_cache.folder)],
            reduction=reduction,
            **settings,
        )
    )
    trained = trainer.state.log_history[0]
    evaluated = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert evaluated["eval_loss"] == pytest.approx(trained["loss"], rel=1e-6)
    shares = ("low_strength_loss_share", "low_strength_gradient_share")
    for name in ("kl_teacher", "kl_reference", "expected_reward", "support_mass", "kl_reference_per_sequence", *shares):
        assert evaluated[f"eval_{name}"] == pytest.approx(trained[name], rel=1e-5)


def test_the_logged_numbers_are_those_of_live_models(whole_cache, trio, student_folder, tmp_path):
    trainer = train(arguments(whole_cache, student_folder, tmp_path, **plain_sgd(learning_rate=0.0)))
    model = load(student_folder)
    totals = {
        "kl_teacher": 0.0,
        "kl_reference": 0.0,
        "kl_dpo": 0.0,
        "expected_reward": 0.0,
        "dpo_expected_reward": 0.0,
        "strength": 0.0,
    }
    count = 0
    with torch.no_grad():
        for response in whole_cache.read(range(len(whole_cache))):
            live = {role: dense.response_logprobs(m, response, V) for role, m in trio.items()}
            student = dense.response_logprobs(model, response, V)
            target, weight = dense.teacher(live, *dense.PRESETS["aligndistil"])
            reward = 0.1 * (live["dpo"] - live["reverse"])
            totals["kl_teacher"] += dense.divergence("reverse_kl", student, target).sum().item()
            totals["kl_reference"] += dense.divergence("reverse_kl", student, live["reference"]).sum().item()
            totals["kl_dpo"] += dense.divergence("reverse_kl", student, live["dpo"]).sum().item()
            totals["expected_reward"] += (student.exp() * reward).sum().item()
            totals["dpo_expected_reward"] += (live["dpo"].exp() * reward).sum().item()
            totals["strength"] += (0.1 / weight).sum().item()
            count += len(weight)
    logged = trainer.state.log_history[0]
    for name, total in totals.items():
        assert logged[name] == pytest.approx(total / count, rel=1e-4), name
    assert logged["support_mass"] == pytest.approx(1.0, abs=1e-5)
    assert logged["tokens_per_second"] > 0


@pytest.fixture(scope="module")
def roomy_cache(trio_folders, pairs_file, tmp_path_factory):
    """A support with most, but not all, of the reference's mass."""
    out = tmp_path_factory.mktemp("roomy") / "cache"
    build(build_options(trio_folders, pairs_file, out, responses="both", top_k=14, max_top_k=17))
    return ShardCache(out)


def warnings_of_support(caplog):
    return [record.message for record in caplog.records if "of its mass on the cached tokens" in record.message]


def test_a_student_off_the_support_is_reported_once_with_its_mass_and_the_references(
    sparse_cache, student_folder, tmp_path, caplog
):
    far = save(nudged(load(student_folder), 3, 2.0), tmp_path / "far")
    settings = plain_sgd(max_steps=3, learning_rate=0.0)
    logged = train(arguments(sparse_cache, far, tmp_path / "out", **settings)).state.log_history[0]
    (text,) = warnings_of_support(caplog)
    assert text.startswith(f"step 1: the student has {logged['support_mass']:.3f} of its mass on the cached tokens, ")
    assert f"the reference {logged['reference_support_mass']:.3f} at the same positions" in text


def test_a_student_at_the_reference_is_not_reported_and_has_the_references_mass(
    roomy_cache, trio_folders, tmp_path, caplog
):
    settings = plain_sgd(max_steps=2, learning_rate=0.0)
    logged = train(arguments(roomy_cache, trio_folders["reference"], tmp_path, **settings)).state.log_history[0]
    tails = [response.scores.tail_logprob["reference"] for response in roomy_cache.read(range(len(roomy_cache)))]
    assert logged["reference_support_mass"] == pytest.approx(1 - np.exp(np.concatenate(tails)).mean(), rel=1e-5)
    assert logged["support_mass"] == pytest.approx(logged["reference_support_mass"], rel=1e-5)
    assert warnings_of_support(caplog) == []


def test_a_student_that_training_pushes_off_the_support_is_reported_when_it_leaves(
    roomy_cache, trio_folders, tmp_path, caplog
):
    settings = plain_sgd(max_steps=6, learning_rate=300.0)  # far too large on purpose
    trainer = train(arguments(roomy_cache, trio_folders["reference"], tmp_path, **settings))
    logged = [entry for entry in trainer.state.log_history if "support_mass" in entry]
    lost = [entry["reference_support_mass"] - entry["support_mass"] for entry in logged]
    first = next(step for step, mass in enumerate(lost, 1) if mass > 0.05)
    assert first > 1, "the student starts on the support"
    assert warnings_of_support(caplog)[0].startswith(f"step {first}: ")


def test_the_plan_says_whether_the_cache_is_good_for_the_teacher(
    roomy_cache, whole_cache, trio_folders, tmp_path, capsys
):
    settings = plain_sgd(learning_rate=0.0, gain=30.0)
    train(arguments(roomy_cache, trio_folders["reference"], tmp_path / "sparse", **settings))
    printed = capsys.readouterr().out
    sparse = dict(line.strip().split("  ", 1) for line in printed.splitlines()[5:9])
    trust = assess(
        [response.scores for response in roomy_cache.read(range(24))], TeacherSpec(gain=30), roomy_cache.plan.nodes, 18
    )
    assert sparse["verdict"] == verdict(trust)[0]
    assert verdict(trust)[1]
    for reason in verdict(trust)[1]:
        assert f"\n            - {reason}\n" in printed
    assert sparse["coverage"].startswith(f"{trust.mean('coverage_teacher'):.4f} of the teacher's mass")
    assert sparse["coverage"].endswith("on all 24 responses")
    assert f"{number(trust.mean('logprob_bound'))} nat at most on average" in sparse["bound"]
    assert "loss  reverse_kl, mean by sequence; gradient on the way forward; plain torch code\n" in printed

    train(arguments(whole_cache, trio_folders["reference"], tmp_path / "whole", **settings))
    whole = capsys.readouterr().out
    assert "coverage  1.0000 of the teacher's mass, 1.0000 of the reference's" in whole
    assert "log p* is off by 0.0000 nat at most" in whole


# ---- order


def sampler(rank=0, world_size=1, micro=2, accumulation=4, epoch=0, seed=5, rows=37):
    lengths = torch.arange(rows).numpy()[::-1] % 11 + 3
    made = GlobalBatchSampler(
        lengths, seed=seed, micro_batch_size=micro, accumulation_steps=accumulation, world_size=world_size, rank=rank
    )
    made.set_epoch(epoch)
    return made


def global_batches(**kwargs):
    """The counted rows of each global batch, collected from the micro-batches of all ranks."""
    world_size = kwargs.get("world_size", 1)
    ranks = [list(sampler(rank=rank, **kwargs)) for rank in range(world_size)]
    assert len({len(micro) for micro in ranks}) == 1, "every rank has the same number of micro-batches"
    steps = kwargs.get("accumulation", 4)
    return [
        sorted(item.row for micros in ranks for micro in micros[i : i + steps] for item in micro if item.counts)
        for i in range(0, len(ranks[0]), steps)
    ]


def test_global_batches_do_not_depend_on_ranks_or_accumulation():
    one = global_batches(micro=8, accumulation=1)
    assert one == global_batches(micro=2, accumulation=4)
    assert one == global_batches(micro=1, accumulation=4, world_size=2)
    assert one == global_batches(micro=1, accumulation=1, world_size=8)


def test_every_row_counts_once_an_epoch():
    rows = [row for batch in global_batches(world_size=2, micro=1) for row in batch]
    assert sorted(rows) == list(range(37))


def test_order_is_a_function_of_seed_and_epoch():
    assert global_batches(epoch=1) == global_batches(epoch=1)
    assert global_batches(epoch=1) != global_batches(epoch=0)
    assert global_batches(seed=6) != global_batches(seed=5)


def test_micro_batches_hold_rows_of_similar_length():
    made = sampler(rows=400, micro=4, accumulation=8)
    spread = [max(made.lengths[i.row] for i in m) - min(made.lengths[i.row] for i in m) for m in made]
    assert sum(spread) / len(spread) < 2


# ---- resumption


def recipe(**overrides):
    return {
        "learning_rate": 0.05,
        "global_batch_size": 4,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "dataloader_num_workers": 0,
    } | overrides


class StopAt(TrainerCallback):
    """Ends a run after a step, like a kill, but leaves the checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
        return control


def same_weights(a, b):
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_resumed_run_equals_an_unbroken_run_bit_for_bit(sparse_cache, student_folder, tmp_path):
    train(arguments(sparse_cache, student_folder, tmp_path / "unbroken", **recipe()))
    # 24 rows in batches of 4: six steps an epoch; step 2 is inside the first, step 8 inside the second
    for step in (2, 6, 8):
        checkpoint = tmp_path / "unbroken" / f"checkpoint-{step}"
        out = tmp_path / f"from{step}"
        train(arguments(sparse_cache, student_folder, out, resume_from_checkpoint=str(checkpoint), **recipe()))
        assert same_weights(out, tmp_path / "unbroken")


def test_a_run_resumed_twice_equals_an_unbroken_run(sparse_cache, student_folder, tmp_path, monkeypatch):
    train(arguments(sparse_cache, student_folder, tmp_path / "unbroken", **recipe()))
    from student.train import __main__ as command

    plain = command.DistillTrainer
    for stop in (3, 7):
        monkeypatch.setattr(command, "DistillTrainer", lambda stop=stop, **kw: plain(callbacks=[StopAt(stop)], **kw))
        train(arguments(sparse_cache, student_folder, tmp_path / "b", resume_from_checkpoint="true", **recipe()))
        assert (tmp_path / "b" / f"checkpoint-{stop}").is_dir()
    monkeypatch.setattr(command, "DistillTrainer", plain)
    train(arguments(sparse_cache, student_folder, tmp_path / "b", resume_from_checkpoint="true", **recipe()))
    assert same_weights(tmp_path / "b", tmp_path / "unbroken")


def test_a_checkpoint_of_another_run_is_refused(sparse_cache, student_folder, tmp_path):
    train(arguments(sparse_cache, student_folder, tmp_path / "a", **recipe(max_steps=1, warmup_steps=0)))
    checkpoint = str(tmp_path / "a" / "checkpoint-1")
    for overrides, field in (
        ({"gain": 5.0}, "teacher.gain"),
        ({"min_strength": 0.02}, "teacher.min_strength"),
        ({"max_weight": 0.3}, "teacher.max_weight"),
        ({"seed": 7}, "seed"),
        ({"learning_rate": 0.1}, "learning_rate"),
    ):
        with pytest.raises(CacheConflict, match=field):
            train(
                arguments(
                    sparse_cache,
                    student_folder,
                    tmp_path / "b",
                    resume_from_checkpoint=checkpoint,
                    **recipe(max_steps=2, warmup_steps=0, **overrides),
                )
            )


# ---- two ranks

ON_TWO_RANKS = [
    "train_on=both", "use_cpu=true", "report_to=none", "disable_tqdm=true", "lr_scheduler_type=constant",
    "warmup_steps=0", "max_grad_norm=0", "optim=sgd", "learning_rate=0.5",
]  # fmt: skip


def launch(cache, student, out, **overrides):
    """Train on two ranks. Returns the log."""
    flags = dict(item.split("=") for item in ON_TWO_RANKS) | {k: str(v) for k, v in overrides.items()}
    arguments = ["--shards", str(cache.folder), "--model", str(student), "--output_dir", str(out)]
    arguments += [part for name, value in flags.items() for part in (f"--{name}", value)]
    run_ranks("student.train", arguments, Path(out).parent)
    return json.loads((Path(out) / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_two_ranks_give_what_one_process_gives(sparse_cache, student_folder, tmp_path, reduction):
    common = {"num_train_epochs": 1, "save_strategy": "no", "global_batch_size": 10, "reduction": reduction}
    evaluation = {"eval_shards": str(sparse_cache.folder), "per_device_eval_batch_size": 5}
    flags = {"per_device_train_batch_size": 1, **common, **evaluation}
    two = launch(sparse_cache, student_folder, tmp_path / "two", **flags)
    settings = plain_sgd(max_steps=-1, per_device_train_batch_size=5) | common | {"per_device_eval_batch_size": 3}
    trainer = train(
        arguments(sparse_cache, student_folder, tmp_path / "one", eval_shards=[str(sparse_cache.folder)], **settings)
    )
    one = trainer.state.log_history
    assert [sorted(entry) for entry in one] == [sorted(entry) for entry in two]
    assert sum("eval_loss" in entry for entry in two) == 1
    for mine, theirs in zip(one, two, strict=True):
        for name in ("loss", "kl_teacher", "support_mass", "low_strength_gradient_share", "eval_loss"):
            if name in mine:
                assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name
    steps = [moved(weights(student_folder), weights(tmp_path / name)) for name in ("one", "two")]
    assert (steps[0] - steps[1]).norm() < 1e-3 * steps[0].norm()


def test_sharded_weights_give_the_loss_and_gradients_of_whole_ones(sparse_cache, student_folder, tmp_path):
    """FSDP2's fully_shard on two processes; accelerate turns it on for accelerators only, so it is called by hand."""
    script = Path(__file__).parent / "sharded_step.py"
    printed = run_ranks(script, [str(sparse_cache.folder), str(student_folder)], tmp_path)
    assert all("same loss and gradients" in text for text in printed)


def test_two_ranks_resumed_in_the_second_epoch_equal_an_unbroken_run(sparse_cache, student_folder, tmp_path):
    flags = {
        "global_batch_size": 8, "per_device_train_batch_size": 2, "num_train_epochs": 2, "save_strategy": "steps",
        "save_steps": 1, "optim": "adamw_torch", "learning_rate": 0.05,
    }  # fmt: skip
    launch(sparse_cache, student_folder, tmp_path / "unbroken", **flags)
    checkpoint = tmp_path / "unbroken" / "checkpoint-4"  # three steps an epoch
    launch(sparse_cache, student_folder, tmp_path / "resumed", resume_from_checkpoint=checkpoint, **flags)
    assert same_weights(tmp_path / "unbroken", tmp_path / "resumed")


# ---- what comes out


def test_the_output_is_an_ordinary_folder_with_tokenizer_and_card(sparse_cache, student_folder, tmp_path):
    train(arguments(sparse_cache, student_folder, tmp_path, **plain_sgd()))
    model = load(tmp_path)
    ids = torch.tensor([[1, 5, 6]])
    assert model(input_ids=ids).logits.shape == (1, 3, V)
    assert (tmp_path / "tokenizer.json").is_file()
    card = (tmp_path / "README.md").read_text()
    assert sparse_cache.plan.sha256[:16] in card
    assert "dpo / reverse" in card


def test_the_student_is_the_reference_unless_another_is_named(sparse_cache, trio_folders, tmp_path):
    settings = plain_sgd(learning_rate=0.0)
    train(arguments(sparse_cache, "", tmp_path, **settings | {"model": None}))
    assert same_weights(tmp_path, trio_folders["reference"])


def test_lora_trains_adapters_and_saves_them_merged(sparse_cache, student_folder, tmp_path):
    settings = recipe(num_train_epochs=1) | {"use_peft": True, "lora_r": 4, "activation_checkpointing": True}
    trainer = train(arguments(sparse_cache, student_folder, tmp_path / "a", **settings))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    before, after = weights(student_folder), weights(tmp_path / "a")
    assert before.keys() == after.keys()
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(
        before["model.layers.0.self_attn.q_proj.weight"], after["model.layers.0.self_attn.q_proj.weight"]
    )
    settings["resume_from_checkpoint"] = str(tmp_path / "a" / "checkpoint-3")
    train(arguments(sparse_cache, student_folder, tmp_path / "b", **settings))
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_gradient_checkpointing_and_workers_change_nothing(sparse_cache, student_folder, tmp_path):
    for name, extra in (("a", {}), ("b", {"activation_checkpointing": True, "dataloader_num_workers": 1})):
        trainer = train(arguments(sparse_cache, student_folder, tmp_path / name, **recipe(save_strategy="no") | extra))
        assert trainer.model.is_activation_checkpointing == ("activation_checkpointing" in extra)
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_bf16_autocast_runs_and_learns(sparse_cache, student_folder, tmp_path):
    trainer = train(arguments(sparse_cache, student_folder, tmp_path, **recipe(save_strategy="no", bf16=True)))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_one_cache_gives_students_of_different_teachers(sparse_cache, student_folder, tmp_path):
    strengths = []
    for gain in (2.0, 20.0):
        trainer = train(arguments(sparse_cache, student_folder, tmp_path / str(gain), gain=gain, **plain_sgd()))
        strengths.append(trainer.state.log_history[0]["strength"])
    assert strengths[1] == pytest.approx(10 * strengths[0], rel=0.01)


def test_several_caches_are_read_as_one(whole_cache, sparse_cache, trio_folders, pairs_file, tmp_path):
    from conftest import build_options

    from precompute.build.build import build

    parts = []
    for kind in ("chosen", "rejected"):
        out = tmp_path / kind
        options = build_options(
            trio_folders, pairs_file, out, responses=kind, top_k=5, max_top_k=12, tokens_per_shard=40
        )
        build(options)
        parts.append(out)
    data = CachedResponses(parts, train_on="both")
    assert len(data) == len(sparse_cache)
    with pytest.raises(CacheConflict, match="pairs"):
        CachedResponses([parts[0], whole_cache.folder])


def test_a_student_may_be_an_adapter_on_its_base(sparse_cache, student_folder, trio_folders, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(load(student_folder), config)
    adapted.peft_config["default"].base_model_name_or_path = str(student_folder)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = save(adapted.merge_and_unload(), tmp_path / "merged")
    for name, folder in (("a", tmp_path / "adapter"), ("b", merged)):
        train(arguments(sparse_cache, folder, tmp_path / name, **plain_sgd()))
    steps = [moved(weights(merged), weights(tmp_path / name)) for name in "ab"]
    assert steps[0].norm() > 0
    assert (steps[0] - steps[1]).norm() < 1e-4 * steps[0].norm()


def test_a_cache_given_twice_is_refused(sparse_cache):
    with pytest.raises(CacheConflict, match="expected different caches, got the same build twice"):
        CachedResponses([sparse_cache.folder, sparse_cache.folder])


def test_the_defaults_are_the_released_off_policy_recipe(tmp_path):
    args = DistillArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.spec.beta, args.spec.gain, args.spec.kl_coef) == (0.1, 10, 0.05)
    assert (args.spec.anchor, args.spec.negative, args.spec.strength) == ("dpo", "reverse", "adaptive")
    assert (args.learning_rate, args.warmup_steps, args.num_train_epochs, args.weight_decay) == (1e-6, 0.1, 1, 0)
    assert (args.adam_beta1, args.adam_beta2, args.optim.value[:5]) == (0.9, 0.95, "adamw")
    assert (args.lr_scheduler_type.value, args.lr_scheduler_kwargs) == ("cosine_with_min_lr", {"min_lr_rate": 0.1})
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 128
    assert (args.divergence, args.reduction, args.train_on) == ("reverse_kl", "sequence", "chosen")


def test_trainers_own_flags_for_reports_evaluation_and_checkpoints_work(sparse_cache, student_folder, tmp_path):
    pytest.importorskip("tensorboard")
    settings = recipe(num_train_epochs=1, save_steps=2, learning_rate=1e-3) | {
        "report_to": "tensorboard",
        "eval_shards": [str(sparse_cache.folder)],
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_kl_teacher",
        "greater_is_better": False,
    }
    trainer = train(arguments(sparse_cache, student_folder, tmp_path, **settings))
    evaluated = [entry["eval_kl_teacher"] for entry in trainer.state.log_history if "eval_kl_teacher" in entry]
    assert len(evaluated) == 4, "three while training, one at the end"
    assert evaluated[-1] == pytest.approx(min(evaluated[:-1]), rel=1e-6), "the best model is the one that is kept"
    assert len(list(tmp_path.glob("checkpoint-*"))) <= 2
    assert list(tmp_path.rglob("events.out.tfevents*"))
    assert json.loads((tmp_path / "eval_results.json").read_text())["eval_kl_teacher"] == evaluated[-1]


def test_sequence_sums_and_the_share_of_weak_positions_are_logged(sparse_cache, student_folder, tmp_path):
    trainer = train(arguments(sparse_cache, student_folder, tmp_path, **plain_sgd(learning_rate=0.0, gain=0.0)))
    logged = trainer.state.log_history[0]
    positions = sum(r.scores.num_positions for r in sparse_cache.read(range(len(sparse_cache))))
    for name in ("kl_reference", "kl_dpo", "expected_reward", "dpo_expected_reward"):
        assert logged[f"{name}_per_sequence"] == pytest.approx(logged[name] * positions / len(sparse_cache), rel=1e-5)
    for name in ("low_strength_loss_share", "low_strength_gradient_share"):
        assert logged[name] == pytest.approx(1), "gain 0: every strength is 1e-3"


@pytest.mark.parametrize("max_weight", [None, 12.0])
def test_the_share_of_the_gradient_at_weak_positions_is_that_of_the_dense_gradients(
    whole_cache, trio, student_folder, tmp_path, max_weight
):
    gain = 0.02
    settings = plain_sgd(learning_rate=0.0, gain=gain, reduction="token", max_weight=max_weight)
    logged = train(arguments(whole_cache, student_folder, tmp_path, **settings)).state.log_history[0]
    weak = total = 0.0
    for response in whole_cache.read(range(len(whole_cache))):
        live = {role: dense.response_logprobs(m, response, V) for role, m in trio.items()}
        strength = gain * (live["dpo"].exp() - live["reverse"].exp()).abs().sum(-1) + 1e-3
        target = (live["dpo"] + strength[:, None] * (live["dpo"] - live["reverse"])).log_softmax(-1)
        logits = dense.response_logprobs(load(student_folder), response, V).detach().requires_grad_()
        dense.divergence("reverse_kl", logits.log_softmax(-1), target).sum().backward()
        size = logits.grad.abs().sum(-1) * (0.1 / strength).clamp(max=max_weight or 1e9)
        weak, total = weak + size[strength < 0.01].sum().item(), total + size.sum().item()
    assert 0.1 < weak / total < 0.9
    assert logged["low_strength_gradient_share"] == pytest.approx(weak / total, rel=1e-4)


def test_resuming_from_python_checks_the_run_too(sparse_cache, student_folder, tmp_path):
    train(arguments(sparse_cache, student_folder, tmp_path, **recipe(num_train_epochs=1)))
    changed = arguments(sparse_cache, student_folder, tmp_path, **recipe(num_train_epochs=1, gain=3.0))
    trainer = DistillTrainer(load(student_folder), changed, CachedResponses([sparse_cache.folder], train_on="both"))
    for wanted in (True, tmp_path / "checkpoint-2"):
        with pytest.raises(CacheConflict, match=r"teacher.gain"):
            trainer.train(resume_from_checkpoint=wanted)
    assert trainer.predict(CachedResponses([sparse_cache.folder])).metrics["test_loss"] > 0
