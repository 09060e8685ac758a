"""Errors that would end a run badly are found before its first step, in one line; its effect is reported at its end."""

import json
import shutil
import traceback
from pathlib import Path

import pytest
import torch
from test_training import arguments, plain_sgd, recipe, same_weights, weights
from tiny import load, save, with_dropout

from shards.cli import space
from shards.cli.launcher import launched_processes
from shards.cli.outside import naming_saves
from shards.errors import AlignDistilError, CacheDamaged, OptionError
from student.data.responses import CachedResponses
from student.log.files import checkpoints_of
from student.options import DistillArguments
from student.runs import before
from student.runs.outside import naming_workers
from student.runs.schedule import rates, require_steps_that_move
from student.train.__main__ import train
from student.train.distance import measure
from student.train.saving import save as save_student
from student.trainer import DistillTrainer


@pytest.fixture
def refuse(sparse_cache, trio_folders, tmp_path):
    """Runs a training that must be refused in one line before anything is in its folder."""

    def run(**overrides):
        settings = {"output_dir": str(tmp_path / "out"), "max_steps": 2, "warmup_steps": 0, "global_batch_size": 8}
        with pytest.raises(AlignDistilError) as caught:
            train(arguments(sparse_cache, trio_folders["reference"], "", **settings | overrides))
        assert len(str(caught.value).splitlines()) == 1
        out = tmp_path / "out"
        assert not out.is_dir() or not list(out.iterdir())
        return str(caught.value)

    return run


def done_line(printed):
    """Where the student is and how far it went; below it are what changed and what to type next."""
    return next(line for line in printed.splitlines() if ": done, after " in line)


# ---- weights that cannot move


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wanted", ["float16", "bfloat16"])
def test_weights_of_low_precision_are_not_trained(refuse, trio, tmp_path, dtype, wanted):
    low = save(load_as(trio, dtype), tmp_path / "low")
    assert refuse(model=str(low), dtype=wanted) == (
        f"dtype: expected weights in float32 where they are trained, got model.embed_tokens.weight in {wanted}, which "
        "rounds small steps away; load them with --dtype float32 and give --bf16 true or --fp16 true for speed, or "
        "train LoRA adapters (--use_peft true), which are float32 on any base"
    )


def load_as(trio, dtype):
    return type(trio["reference"])(trio["reference"].config).to(dtype)


@pytest.mark.parametrize("autocast", [{}, {"bf16": True}, {"fp16": True}], ids=str)
def test_a_model_stored_in_bfloat16_trains_by_default(sparse_cache, trio_folders, tmp_path, autocast):
    low = save(load(trio_folders["reference"], torch.bfloat16), tmp_path / "low")
    settings = plain_sgd(optim="adamw_torch", learning_rate=1e-6, max_steps=3) | autocast
    train(arguments(sparse_cache, low, tmp_path / "out", **settings))
    before_, after = load(low, torch.float32).state_dict(), weights(tmp_path / "out")
    moved = sum(int((after[name] != before_[name]).sum()) for name in after)
    assert moved > 0.9 * sum(tensor.numel() for tensor in after.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_adapters_on_a_base_of_low_precision_are_float32_and_so_is_what_is_saved(
    sparse_cache, trio_folders, tmp_path, dtype, monkeypatch
):
    trained = {}

    def before_saving(trainer, tokenizer, source):
        trained.update({name: (p.requires_grad, p.dtype) for name, p in trainer.model.named_parameters()})
        save_student(trainer, tokenizer, source)

    monkeypatch.setattr("student.train.__main__.save", before_saving)
    low = save(load(trio_folders["reference"], getattr(torch, dtype)), tmp_path / "low")
    settings = recipe(num_train_epochs=1, learning_rate=1e-4, use_peft=True, lora_r=2, dtype=dtype)
    train(arguments(sparse_cache, low, tmp_path / "out", **settings))
    assert set(trained.values()) == {(True, torch.float32), (False, getattr(torch, dtype))}
    name = "model.layers.0.self_attn.q_proj.weight"
    change = weights(tmp_path / "out")[name] - load(low, torch.float32).state_dict()[name]
    checkpoint = max((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    adapter = load_adapter(checkpoint, "q_proj")
    torch.testing.assert_close(change, adapter, rtol=1e-3, atol=1e-7)


def load_adapter(checkpoint, layer):
    from safetensors.torch import load_file

    found = load_file(checkpoint / "adapter_model.safetensors")
    a, b = (found[f"base_model.model.model.layers.0.self_attn.{layer}.lora_{x}.weight"] for x in "AB")
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    return b @ a * config["lora_alpha"] / config["r"]


def test_auto_is_float32_where_weights_are_trained_and_on_a_cpu_for_the_base_of_adapters_too(sparse_cache, tmp_path):
    for use_peft in (False, True):
        assert arguments(sparse_cache, "", tmp_path, dtype="auto", use_peft=use_peft).dtype == "float32"


def test_low_precision_is_refused_from_python_too(sparse_cache, trio_folders, tmp_path):
    peft = pytest.importorskip("peft")
    data = CachedResponses([sparse_cache.folder], train_on="both")
    model = load(trio_folders["reference"], torch.bfloat16)
    args = arguments(sparse_cache, "", tmp_path, **plain_sgd())
    with pytest.raises(
        OptionError, match=r"^dtype: expected weights in float32 where they are trained, got model\.embed"
    ):
        DistillTrainer(model, args, data)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    low = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    with pytest.raises(OptionError, match=r"lora_A\.default\.weight in bfloat16"):
        DistillTrainer(low, args, data)


def test_a_full_evaluation_in_low_precision_would_round_the_student(refuse):
    for name in ("bf16_full_eval", "fp16_full_eval"):
        assert refuse(**{name: True}) == (
            f"{name}: expected False here (it would round the student's weights before they are saved), got True"
        )


# ---- a student that does not move


def test_the_plan_says_how_many_steps_move_the_student_and_the_end_how_far_it_went(
    sparse_cache, trio_folders, tmp_path, capsys
):
    settings = {"max_steps": 2, "global_batch_size": 8, "learning_rate": 1e-6}
    trainer = train(arguments(sparse_cache, trio_folders["reference"], tmp_path / "a", **settings))
    printed = capsys.readouterr().out
    assert "steps  2, each of 8 responses; 1 with a rate above zero, adding up to 1e-06\n" in printed
    assert "few steps  they may hardly move the student: the default recipe is meant for thousands of pairs" in printed
    assert done_line(printed).endswith("nats a token: the student has hardly moved")
    assert rates(trainer.args, 2)[0] == 0

    settings |= {"learning_rate": 0.05, "max_steps": 30}
    train(arguments(sparse_cache, trio_folders["reference"], tmp_path / "b", **settings))
    printed = capsys.readouterr().out
    assert "steps  30, each of 8 responses; 29 with a rate above zero" in printed and "few steps" not in printed
    assert "hardly moved" not in printed


def test_how_far_the_student_went_is_what_an_evaluation_gives(
    sparse_cache, trio_folders, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("student.train.distance.ROWS", 32)
    settings = plain_sgd(max_steps=3, eval_shards=[str(sparse_cache.folder)], eval_on_start=True)
    trainer = train(arguments(sparse_cache, trio_folders["reference"], tmp_path, **settings))
    logs = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    start, end = logs[0], logs[-1]
    assert (
        f"on 24 training responses loss {start['eval_loss']:.4g} -> {end['eval_loss']:.4g}, KL to the reference 0 -> "
        f"{round(end['eval_kl_reference'], 6):g} nats a token"
    ) in done_line(capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")
def test_a_schedule_without_a_rate_is_refused(refuse):
    nothing = {"num_stable_steps": 0, "num_decay_steps": 0}
    assert refuse(lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=nothing) == (
        "lr_scheduler_type: expected a rate above zero in one of the run's 2 steps, got none"
    )
    assert refuse(lr_scheduler_kwargs={"min_lr_rate": 2.0}).startswith(
        "lr_scheduler_kwargs: expected rates up to the learning_rate of 1e-06, got "
    )
    message = refuse(lr_scheduler_type="cosine_with_restarts", max_steps=1, warmup_steps=1)
    assert message.startswith("warmup_steps: expected fewer than the run's 1, got 1")
    message = refuse(lr_scheduler_type="constant_with_warmup", warmup_steps=3)
    assert message.startswith("warmup_steps: expected fewer than the run's 2, got 3")


@pytest.mark.parametrize("steps", [{"max_steps": 1, "warmup_steps": 0.1}, {"max_steps": 2, "warmup_steps": 5}], ids=str)
def test_a_schedule_without_a_warm_up_has_none_to_finish(sparse_cache, trio_folders, tmp_path, steps):
    args = arguments(sparse_cache, trio_folders["reference"], tmp_path, lr_scheduler_type="constant", **steps)
    require_steps_that_move(args, args.max_steps)


# ---- what saving needs


BAD = {"do_sample": False, "temperature": 0.9}


def test_a_generation_config_that_transformers_does_not_save_is_kept(sparse_cache, trio_folders, tmp_path, capsys):
    for use_peft in (False, True):
        folder = Path(shutil.copytree(trio_folders["reference"], tmp_path / f"model-{use_peft}"))
        # without a pad token transformers changes it before the first step, and then refuses to save it
        config = {"_from_model_config": False, "bos_token_id": 1, "eos_token_id": 2} | BAD
        (folder / "generation_config.json").write_text(json.dumps(config))
        out = tmp_path / f"out-{use_peft}"
        settings = plain_sgd(save_strategy="steps", save_steps=1, use_peft=use_peft)
        train(arguments(sparse_cache, folder, out, **settings))
        assert "kept  generation_config.json as it is, though transformers finds fault with it: " in (
            capsys.readouterr().out
        )
        saved = [out] if use_peft else [out, out / "checkpoint-1"]
        for place in saved:
            found = json.loads((place / "generation_config.json").read_text())
            assert BAD.items() <= found.items()
        load(out)


@pytest.mark.parametrize("part", ["model", "tokenizer", "card"])
def test_what_cannot_be_saved_is_found_before_the_first_step(refuse, monkeypatch, part):
    def fails(*args, **kwargs):
        raise TypeError("Object of type set is not JSON serializable")

    places = {
        "model": "transformers.PretrainedConfig.save_pretrained",
        "tokenizer": "transformers.PreTrainedTokenizerFast.save_pretrained",
        "card": "student.runs.before.write_model_card",
    }
    monkeypatch.setattr(places[part], fails)
    monkeypatch.setattr(DistillTrainer, "training_step", lambda *args: pytest.fail("a step was made"))
    assert refuse() == "saving the student: Object of type set is not JSON serializable"


def test_a_disk_without_room_is_found_before_the_first_step(refuse, monkeypatch):
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    message = refuse(save_strategy="steps", save_steps=1)
    assert message.startswith("output_dir: expected 0.0 GB free for the student and 2 checkpoints, got 0.0 in ")


BEST = {"metric_for_best_model": "loss", "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"save_strategy": "no"}, 0),
        ({"save_strategy": "epoch"}, 2),
        ({"save_strategy": "steps", "save_steps": 2}, 3),
        ({"save_strategy": "steps", "save_steps": 0.5}, 2),
        ({"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}, 2),
        ({"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 2, **BEST}, 3),
        ({"save_strategy": "best", "eval_strategy": "epoch", **BEST}, 2),
    ],
    ids=str,
)
def test_the_checkpoints_that_the_disk_must_hold_are_those_of_the_run(
    sparse_cache, trio_folders, tmp_path, settings, count
):
    """Six steps; file sizes as on the disk, except for small files."""
    run = {"num_train_epochs": 2, "warmup_steps": 0, "global_batch_size": 8, "per_device_train_batch_size": 8}
    args = arguments(sparse_cache, "", tmp_path, **run | settings)
    model = load(trio_folders["reference"])
    data = CachedResponses([sparse_cache.folder], train_on="both")
    trainer = DistillTrainer(model, args, data, data)
    assert before._checkpoints_kept(trainer, 6) == count
    if settings["save_strategy"] == "best":
        trainer.train()
        assert len(checkpoints_of(tmp_path)) == count, "every evaluation found a better one"
    if settings.get("save_steps") == 2:
        trainer.train()
        student, checkpoint = before._bytes(trainer)
        on_disk = [tmp_path / "checkpoint-2" / name for name in ("model.safetensors", "optimizer.pt")]
        assert student == pytest.approx(on_disk[0].stat().st_size, rel=0.2)
        assert checkpoint == pytest.approx(sum(path.stat().st_size for path in on_disk), rel=0.3)


def test_a_full_disk_is_one_line_whoever_writes(tmp_path):
    from safetensors.torch import save_file

    writers = [
        lambda: torch.save(torch.zeros(10**5), "/dev/full"),
        lambda: Path("/dev/full").write_text("x"),
        lambda: save_file({"x": torch.zeros(10**5)}, "/proc/self/x.safetensors"),
    ]
    for write in writers:
        with (
            pytest.raises(OptionError, match=r"^OUT: expected to be able to write there, got .+") as caught,
            naming_saves("OUT"),
        ):
            write()
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(RuntimeError, match="ours"), naming_saves("OUT"):
        raise RuntimeError("ours")


@pytest.mark.parametrize("place", ["/proc/foo", "a file", "under a file"])
def test_a_folder_that_cannot_be_written(refuse, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    out = {"a file": str(tmp_path / "file"), "under a file": str(tmp_path / "file" / "out")}.get(place, place)
    assert refuse(output_dir=out).startswith("output_dir: expected to be able to write there, got [Errno ")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_asks_for_its_output_folder():
    with pytest.raises(
        OptionError, match=r"^output_dir: expected a folder for the student, got none; give --output_dir DIR$"
    ):
        DistillArguments(use_cpu=True)


# ---- one line


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"metric_for_best_model": "accuracy"}, "metric_for_best_model: expected one of loss, kl_teacher, "),
        ({"metric_for_best_model": "eval_kl_reference"},
         "greater_is_better: expected true or false for the metric kl_reference, got none"),
        ({"load_best_model_at_end": True}, "eval_strategy: expected steps or epoch, by which the best model is found"),
        ({"eval_strategy": "steps"}, "eval_shards: expected caches to evaluate on, got none"),
        ({"optim": "adamw_8bit"}, "optim: adamw_8bit: You need to install `bitsandbytes`"),
        ({"optim": "lomo"}, "optim: lomo: You need to install `lomo_optim`"),
        ({"seed": -1}, "seed: expected a number from 0 to 4294967295, got -1"),
        ({"data_seed": -1}, "data_seed: expected a number from 0 to 4294967295, got -1"),
        ({"learning_rate": float("inf")}, "learning_rate: expected 0 or more, got inf"),
        ({"adam_beta1": 1.5}, "adam_beta1: expected a number from 0 to 1, got 1.5"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm: expected 0 or more, got nan"),
        ({"lora_dropout": 2.0}, "lora_dropout: expected a number from 0 to 1, got 2.0"),
        ({"max_steps": 0}, "max_steps: expected 1 or more, or -1 for whole epochs, got 0"),
        ({"max_steps": -1, "num_train_epochs": float("inf")}, "num_train_epochs: expected more than 0, got inf"),
        ({"save_steps": -1.0}, "save_steps: expected more than 0, got -1.0"),
        ({"save_total_limit": 0}, "save_total_limit: expected 1 or more, got 0"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers: expected 0 or more, got -1"),
        ({"ignore_data_skip": True}, "ignore_data_skip: expected False here (a resumed run would read rows twice"),
        ({"lr_scheduler_kwargs": "{bad"}, "lr_scheduler_kwargs: expected a JSON object, got '{bad' (Expecting "),
        ({"deepspeed": "/nowhere.json"}, "TrainingArguments: No package metadata was found for "),
        ({"fsdp": "full_shard"}, "transformers' Trainer: Using fsdp only works in distributed training."),
        ({"torch_compile_backend": "nonsense"}, "transformers' Trainer: 'NONSENSE' is not a valid DynamoBackend"),
        ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True, "what": 1}},
         "the first step: Unexpected keyword arguments: what"),
        ({"push_to_hub": True}, "transformers' Trainer: Cannot reach https://huggingface.co/api/repos/create"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Passing `fsdp`")
def test_an_odd_value_is_one_line(refuse, overrides, message):
    assert refuse(**overrides).startswith(message)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is in the environment: expected a launcher"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 is in the environment: expected a launcher"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE: expected a number in the environment, got 'many'"),
    ],
    ids=str,
)
def test_an_environment_without_its_launcher(refuse, monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert refuse().startswith(message)
    assert launched_processes({}) == 1
    whole = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    assert launched_processes(whole) == 2


def let_go(error):
    """Free the loader in the frames of an error; found as garbage in another test it waits 5 s for each worker."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("when", ["training", "evaluation"])
def test_a_damaged_shard_in_a_loaders_worker_is_one_line(sparse_cache, trio_folders, tmp_path, when):
    copy = Path(shutil.copytree(sparse_cache.folder, tmp_path / "cache"))
    damaged = sorted(copy.glob("part-*.arrow"))[0]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    settings = plain_sgd(dataloader_num_workers=1, eval_shards=[str(copy)])
    args = arguments(sparse_cache, "", tmp_path / "out", **settings)
    data = CachedResponses([copy], train_on="both")
    trainer = DistillTrainer(load(trio_folders["reference"]), args, data)
    damaged.write_bytes(content)
    with pytest.raises(CacheDamaged) as caught:
        trainer.train() if when == "training" else trainer.evaluate(data)
    assert str(caught.value).startswith(str(damaged)) and len(str(caught.value).splitlines()) == 1
    let_go(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_our_own_in_the_first_step_keeps_its_traceback(sparse_cache, trio_folders, tmp_path, workers):
    args = arguments(sparse_cache, "", tmp_path, **plain_sgd(dataloader_num_workers=workers))
    data = CachedResponses([sparse_cache.folder], train_on="both")
    trainer = DistillTrainer(load(trio_folders["reference"]), args, data)
    trainer.train_dataset._rows = list(trainer.train_dataset._rows)
    with pytest.raises(TypeError, match="list indices must be integers or slices, not list") as caught:
        trainer.train()
    let_go(caught.value)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), FileNotFoundError("part-00000.arrow")]
)
def test_what_lacks_in_the_first_step_is_one_line(sparse_cache, trio_folders, tmp_path, monkeypatch, error):
    args = arguments(sparse_cache, "", tmp_path, **plain_sgd())
    data = CachedResponses([sparse_cache.folder], train_on="both")
    trainer = DistillTrainer(load(trio_folders["reference"]), args, data)

    def lack(*given):
        raise error

    lack.__code__ = lack.__code__.replace(co_filename=before.__file__)
    monkeypatch.setattr(DistillTrainer, "_distill", lack)
    with pytest.raises(OptionError) as caught:
        trainer.train()
    assert str(caught.value) == f"the first step: {error}"


@pytest.mark.parametrize(
    ("kind", "last"), [(OSError, "OSError: [Errno 5] Input/output error: 'part-0.arrow'"), (MemoryError, "MemoryError")]
)
def test_what_a_worker_lacks_is_one_line(kind, last):
    text = (
        f"Caught {kind.__name__} in DataLoader worker process 1.\nOriginal Traceback (most recent call last):\n  ...\n"
    )
    with pytest.raises(OptionError) as caught, naming_workers():
        raise kind(f"{text}{last}\n")
    assert str(caught.value) == f"dataloader_num_workers: a worker ended: {last}"


def test_a_worker_that_dies_is_one_line():
    with (
        pytest.raises(OptionError, match=r"^dataloader_num_workers: DataLoader worker \(pid 7\) is killed"),
        naming_workers(),
    ):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")


def test_the_best_model_is_the_one_of_the_smaller_loss_unless_said(tmp_path):
    common = {"output_dir": str(tmp_path), "use_cpu": True, "eval_strategy": "steps"}
    for name, greater in (("eval_kl_teacher", False), ("loss", False), ("expected_reward", True)):
        assert DistillArguments(metric_for_best_model=name, **common).greater_is_better is greater


def test_a_measurement_knows_no_dropout_and_leaves_the_mode_as_it_was(sparse_cache, trio_folders, tmp_path):
    args = arguments(sparse_cache, "", tmp_path, **plain_sgd())
    model = with_dropout(load(trio_folders["reference"]))
    trainer = DistillTrainer(model, args, CachedResponses([sparse_cache.folder], train_on="both"))
    found = []
    for training in (False, True):
        model.train(training)
        found.append(measure(trainer))
        assert model.training is training
    assert found[0] == found[1]


def test_a_measurement_says_how_far_it_is(sparse_cache, trio_folders, tmp_path, monkeypatch):
    counted = []

    def watch(batches, *told, **given):
        counted.append(told)
        for batch in batches:
            counted.append(batch)
            yield batch

    monkeypatch.setattr("student.train.distance.progress", watch)
    args = arguments(sparse_cache, "", tmp_path, **plain_sgd())
    data = CachedResponses([sparse_cache.folder], train_on="both")
    rows = measure(DistillTrainer(load(trio_folders["reference"]), args, data))["rows"]
    assert counted == [("measuring the student",), *range(0, rows, args.per_device_train_batch_size)]


def test_a_measurement_changes_nothing(sparse_cache, trio_folders, tmp_path, monkeypatch):
    settings = recipe(max_steps=2, save_strategy="no", use_peft=True, lora_dropout=0.2)
    train(arguments(sparse_cache, trio_folders["reference"], tmp_path / "a", **settings))
    monkeypatch.setattr("student.train.__main__.measure", lambda trainer: None)
    train(arguments(sparse_cache, trio_folders["reference"], tmp_path / "b", **settings))
    assert same_weights(tmp_path / "a", tmp_path / "b")
