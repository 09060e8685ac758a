"""A checkpoint of another run is refused, field by field; what is changed on purpose has effect, and is recorded."""

import dataclasses
import json
import re

import pytest
from test_training import arguments, recipe, same_weights
from tiny import load, nudged, save
from transformers import TrainerCallback

from shards.errors import CacheConflict, OptionError
from shards.format.manifest import differences
from student.data.loading import Loading
from student.data.responses import CachedResponses
from student.recipe import BESIDE, FITTED, FREE, LATER, RECIPE
from student.runs import checkpoints
from student.runs.identity import run_identity, student_identity
from student.train.__main__ import train
from student.trainer import DistillTrainer

WITHOUT_EFFECT = (
    *("output_dir", "overwrite_output_dir", "resume_", "shards", "eval_shards", "model", "teacher", "quiet", "cache_"),
    *(
        "per_device_",
        "gradient_accumulation_steps",
        "kernels",
        "chunk_positions",
        "attn_implementation",
        "torch_compile",
    ),
    *("activation_checkpointing", "gradient_checkpointing", "trust_remote_code", "max_steps", "num_train_epochs"),
    *(
        "stop_on_spike",
        "spike_factor",
        "record_samples",
        "average_tokens_",
        "use_cache",
        "torch_empty_cache_",
        "logging_",
        "log_",
        "include_",
        "disable_tqdm",
        "report_to",
    ),
    *(
        "run_name",
        "project",
        "trackio_",
        "eval_",
        "prediction_loss_only",
        "batch_eval_",
        "save_",
        "enable_jit_",
        "push_",
    ),
    *("hub_", "load_best_", "metric_for_", "greater_is_", "restore_callback_", "full_determinism", "use_cpu", "ddp_"),
    *(
        "accelerator_config",
        "dataloader_",
        "remove_unused_",
        "label_names",
        "length_column_",
        "fsdp",
        "deepspeed",
        "debug",
    ),
    *("skip_memory_", "do_", "local_rank"),
)
"""First parts of the names of flags that are no part of a run's identity: they change no weight, or its length, or only
the order of sums; `shards`, `model` and `teacher` are in it by content."""

REFUSED = ("label_smoothing_factor", "bf16_full_eval", "fp16_full_eval", "use_liger_", "liger_", "neftune_")
REFUSED += ("auto_find_", "ignore_data_skip", "parallelism_config", "train_sampling_strategy")
TEACHER = ("anchor", "negative", "strength", "beta", "gain", "kl_coef", "min_strength", "max_weight", "learned_")

OTHERS = {
    **{"learning_rate": 2e-6, "warmup_steps": 3, "lr_scheduler_kwargs": {"min_lr_rate": 0.2}, "weight_decay": 0.1},
    **{"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6, "optim_args": "a=1", "optim_target_modules": ["q"]},
    **{"max_grad_norm": 2.0, "bf16": True, "fp16": True, "tf32": False, "use_peft": True, "lora_r": 3, "lora_alpha": 5},
    **{"lora_dropout": 0.1, "lora_target_modules": ["q_proj"], "train_on": "both", "divergence": "jsd", "seed": 7},
    **{"jsd_weight": 0.3, "reduction": "token", "global_batch_size": 16, "lr_scheduler_type": "linear", "data_seed": 7},
    **{"optim": "sgd", "padding_free": True, "shuffle_window": 2, "teacher": "linear", "strength": "constant"},
    **{"beta": 0.2, "gain": 5.0, "kl_coef": 0.1, "min_strength": 0.01, "max_weight": 0.3},
}
NAMES = {"data_seed": "seed", "teacher": "teacher.anchor"} | {name: f"teacher.{name}" for name in TEACHER}


@pytest.fixture(scope="module")
def student_folder(trio, tmp_path_factory):
    return save(nudged(trio["reference"], 7, 0.1), tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def data(sparse_cache):
    return {which: CachedResponses([sparse_cache.folder], train_on=which) for which in ("chosen", "both")}


@pytest.fixture(scope="module")
def student(student_folder):
    return student_identity(load(student_folder))


@pytest.fixture
def identity(sparse_cache, student_folder, data, student, tmp_path):
    """Options -> the identity of their run."""

    def of(**options):
        given = {"global_batch_size": 8, "train_on": "chosen"} | options
        args = arguments(sparse_cache, student_folder, tmp_path, **given)
        sampler = Loading(args, data[args.train_on], None).sampler(
            data[args.train_on], args.per_device_train_batch_size, shuffle=True
        )
        return json.loads(json.dumps(run_identity(args, data[args.train_on], sampler, student)))

    return of


@pytest.fixture
def checkpoint(identity, tmp_path):
    folder = tmp_path / "checkpoint-3"
    checkpoints.begin(folder, identity())
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    checkpoints.sign(folder, identity(), weights_only=False)
    return folder


def leaves(value, name=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def with_another(value, path):
    """A copy of nested dicts with another value in one place."""
    name, _, rest = path.partition(".")
    return value | {name: with_another(value[name], rest) if rest else "another"}


def test_every_field_of_another_run_is_refused_by_its_name(identity, checkpoint):
    asked = identity()
    assert checkpoints.require_checkpoint(checkpoint, asked, 9) == ([], [])
    names = dict(leaves(asked))
    assert {name.split(".")[0] for name in names} >= {*BESIDE, *RECIPE, "teacher"} - {"padding_free", "shuffle_window"}
    for name, value in names.items():
        with pytest.raises(CacheConflict) as caught:
            checkpoints.require_checkpoint(checkpoint, with_another(asked, name), 9)
        expected = f'{checkpoint}: is of another run, {name}: expected {json.dumps(value)}, got "another"'
        free = name not in FITTED
        assert str(caught.value) == expected + (f"; --resume_despite {name} goes on with the new value" if free else "")
        if free:
            change = {"field": name, "until_step": 3, "before": value, "after": "another"}
            found = checkpoints.require_checkpoint(checkpoint, with_another(asked, name), 9, [name.split(".m")[0]])
            assert found == ([], [change])


@pytest.mark.parametrize("flag", OTHERS)
def test_every_flag_that_changes_the_weights_makes_another_run(identity, checkpoint, flag):
    other = identity(**{flag: OTHERS[flag]})
    changed = {name for name, *_ in differences(identity(), other)}
    assert changed & {NAMES.get(flag, flag), f"{flag}.min_lr_rate"}, changed
    with pytest.raises(CacheConflict, match="is of another run, "):
        checkpoints.require_checkpoint(checkpoint, other, 9)


def test_every_flag_is_part_of_the_identity_or_known_to_change_no_weight(sparse_cache, student_folder, tmp_path):
    args = arguments(sparse_cache, student_folder, tmp_path)
    for field in dataclasses.fields(args):
        known = (*RECIPE, *BESIDE, "data_seed"), (*WITHOUT_EFFECT, *REFUSED, *TEACHER)
        assert field.name in known[0] or field.name.startswith(known[1]), f"{field.name}: does it change the weights?"


def test_a_checkpoint_of_an_earlier_version_stays_readable(identity, checkpoint):
    signed = json.loads((checkpoint / "distill_run.json").read_text())
    for name in LATER:
        del signed[name]
    (checkpoint / "distill_run.json").write_text(json.dumps(signed))
    assert checkpoints.require_checkpoint(checkpoint, identity(optim_target_modules=["q"]), 9) == ([], [])


def test_a_student_with_other_settings_in_its_config_is_another_one(student_folder, student, tmp_path):
    from transformers import LlamaForCausalLM

    assert student_identity(LlamaForCausalLM.from_pretrained(save(load(student_folder), tmp_path))) == student
    other = student_identity(LlamaForCausalLM.from_pretrained(student_folder, attention_dropout=0.5))
    assert (other["model"], other["model_config"] == student["model_config"]) == (student["model"], False)
    other = student_identity(LlamaForCausalLM.from_pretrained(student_folder, use_cache=False, eos_token_id=5))
    assert other == student


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lr", rf"^resume_despite: expected of {', '.join(map(re.escape, FREE))}, got 'lr'$"),
        ("teacher.size", "got 'teacher.size'$"),
        (
            "lora_r",
            r"^resume_despite: lora_r: expected as in the checkpoint, .*; give the checkpoint to --model to begin",
        ),
    ],
)
def test_what_cannot_be_changed_is_not_taken(sparse_cache, student_folder, tmp_path, name, expected):
    with pytest.raises(OptionError, match=expected):
        arguments(sparse_cache, student_folder, tmp_path, resume_despite=[name])


def test_a_run_goes_on_with_new_values_and_says_which_it_had_before(
    sparse_cache, student_folder, tmp_path, monkeypatch, capsys
):
    given = recipe(
        global_batch_size=8, per_device_train_batch_size=8, max_steps=3, save_steps=1, optim="adamw_torch",
        lr_scheduler_type="constant", warmup_steps=0, learning_rate=0.01,
    )  # fmt: skip
    out = tmp_path / "run"
    train(arguments(sparse_cache, student_folder, out, **given))
    used = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, *args, optimizer=None, **rest):
            used.append({name: optimizer.param_groups[0][name] for name in ("lr", "betas", "eps", "weight_decay")})

    monkeypatch.setattr(
        "student.train.__main__.DistillTrainer", lambda **rest: DistillTrainer(callbacks=[Watch()], **rest)
    )
    new = {"learning_rate": 0.002, "adam_beta1": 0.5, "adam_epsilon": 1e-3, "weight_decay": 0.25, "gain": 5.0}
    names = [*list(new)[:-1], "teacher.gain"]
    first = {**given, **new, "resume_despite": names, "resume_from_checkpoint": str(out / "checkpoint-2")}
    with pytest.raises(CacheConflict, match=r"checkpoint-2: is of another run, teacher\.gain"):
        train(arguments(sparse_cache, student_folder, out, **first | {"resume_despite": names[:-1]}))
    capsys.readouterr()
    train(arguments(sparse_cache, student_folder, out, **first))
    assert used == [{"lr": 0.002, "betas": (0.5, given.get("adam_beta2", 0.95)), "eps": 1e-3, "weight_decay": 0.25}]
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{out}/checkpoint-2: goes on despite another teacher.gain 10 until step 2, then 5; learning_rate 0.01 until "
        "step 2, then 0.002; weight_decay 0 until step 2, then 0.25; adam_beta1 0.9 until step 2, then 0.5; "
        "adam_epsilon 1e-08 until step 2, then 0.001"
    )
    change = {"field": "learning_rate", "until_step": 2, "before": 0.01, "after": 0.002}
    for file in (out / "checkpoint-3" / "distill_run.json", out / "aligndistil.json", out / "distill_run.json"):
        recorded = json.loads(file.read_text())["changed"]
        assert [one["field"] for one in recorded] == ["teacher.gain", *names[:1], "weight_decay", *names[1:3]]
        assert recorded[1] == change
    assert "| changed by hand | learning_rate 0.01 until step 2, then 0.002 |\n" in (out / "README.md").read_text()

    # from here on these are the run's values, which a later kill does not change
    again = {**given, **new, "resume_from_checkpoint": "true", "max_steps": 4}
    train(arguments(sparse_cache, student_folder, out, **again))
    assert json.loads((out / "checkpoint-4" / "distill_run.json").read_text())["changed"] == recorded
    assert used[1] == used[0] and "despite" not in capsys.readouterr().out
    with pytest.raises(CacheConflict, match=r"learning_rate: expected 0\.002, got 0\.01"):
        train(arguments(sparse_cache, student_folder, out, **again | {"learning_rate": 0.01}))


def test_without_a_change_the_flag_does_nothing(sparse_cache, student_folder, tmp_path, capsys):
    given = recipe(global_batch_size=8, per_device_train_batch_size=8, max_steps=2, save_steps=1)
    train(arguments(sparse_cache, student_folder, tmp_path / "a", **given))
    again = given | {
        "resume_from_checkpoint": str(tmp_path / "a" / "checkpoint-1"),
        "resume_despite": ["learning_rate"],
    }
    train(arguments(sparse_cache, student_folder, tmp_path / "b", **again))
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert "changed" not in json.loads((tmp_path / "b" / "aligndistil.json").read_text())
    assert "despite" not in capsys.readouterr().out
