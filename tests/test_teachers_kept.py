"""precompute.teachers: no training is lost at its end, does a step too many, or silently moves nothing."""

import json
import math
import os
import resource
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file
from test_teachers import FLAGS, STEPS, assert_same_weights, refusal, stop_at, teach, weights
from tiny import load, make_llama, make_pairs, make_tokenizer, save, write_jsonl
from trl import DPOTrainer

from precompute.teachers import __main__ as teachers
from precompute.teachers import before, trainer
from precompute.teachers import dpo as dpo_module
from precompute.teachers.folders import last_checkpoint
from precompute.teachers.moved import Moved
from precompute.teachers.trainer import TeacherTrainer
from shards.errors import AlignDistilError
from shards.modelfiles.generation import keep_generation_config

HUB_FAULT = {"do_sample": False, "temperature": 0.9, "eos_token_id": 2, "transformers_version": "4.40.0"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return save(make_llama(0, scale=0.1), tmp_path_factory.mktemp("kept") / "reference")


@pytest.fixture(scope="module")
def low_reference(tmp_path_factory):
    return save(make_llama(0, scale=0.1).bfloat16(), tmp_path_factory.mktemp("kept") / "low")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", make_pairs(16))


@pytest.fixture(scope="module")
def taught(reference, data, tmp_path_factory):
    """Both roles, trained without a break."""
    out = tmp_path_factory.mktemp("taught") / "models"
    teach(reference, data, out)
    return out


@pytest.fixture
def half_done(taught, tmp_path):
    """A folder with a finished reverse and no dpo."""
    shutil.copytree(taught / "reverse", tmp_path / "half" / "reverse")
    return tmp_path / "half"


# ---- low precision


@pytest.mark.parametrize(("folder", "dtype"), [("reference", "bfloat16"), ("low_reference", "float16")])
def test_trained_weights_of_low_precision_are_refused_with_what_to_do(folder, dtype, data, tmp_path, request):
    given = request.getfixturevalue(folder)
    message = refusal(lambda: teach(given, data, tmp_path / "out", dtype=dtype))
    assert message.startswith(
        "dtype: expected weights in float32 where they are trained, got model.embed_tokens.weight in"
    )
    assert "--bf16 true or --fp16 true" in message and "--use_peft true" in message
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_a_reference_stored_in_bfloat16_is_trained_in_float32(low_reference, data, tmp_path, capsys):
    teach(low_reference, data, tmp_path, learning_rate=1e-5, max_steps=3, dtype="auto")
    before, after = weights(low_reference), weights(tmp_path / "dpo")
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    moved = sum(int((after[name] != before[name].float()).sum()) for name in after)
    assert moved > 0.9 * sum(weight.numel() for weight in after.values())
    text = capsys.readouterr().out
    advice = "build with --dtype float32, float16 and bfloat16 would round most of it away"
    assert f"{moved:,} of" in text and advice in text


def test_the_advice_on_a_dtype_follows_what_each_keeps_of_the_training():
    def text(**moved_in):
        return str(Moved(weights=1000, moved=500, moved_in=moved_in))

    start = "500 of 1,000 weights moved, of them "
    assert text(float16=400, bfloat16=300) == f"{start}400 in float16 and 300 in bfloat16 too"
    assert text(float16=400, bfloat16=200) == (
        f"{start}400 in float16 and 200 in bfloat16 too: build with --dtype float32 or float16, bfloat16 would round "
        "most of it away"
    )


def test_adapters_on_a_bfloat16_base_are_float32_and_nothing_is_lost_when_they_are_merged(
    low_reference, data, tmp_path, monkeypatch
):
    kept = {}
    remove = dpo_module.remove_training
    monkeypatch.setattr(dpo_module, "remove_training", lambda work: (kept.update(adapters(work)), remove(work)))
    flags = {"use_peft": True, "lora_r": 4, "dtype": "bfloat16", "learning_rate": 1e-5, "max_steps": 3}
    teach(low_reference, data, tmp_path, **flags)
    before, after = weights(low_reference), weights(tmp_path / "reverse")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (kept[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    assert {weight.dtype for weight in kept.values()} == {weight.dtype for weight in after.values()} == {torch.float32}
    added = (after[f"{name}.weight"] - before[f"{name}.weight"].float()).double()
    assert torch.allclose(added, (b.double() @ a.double()) * 32 / 4, atol=2e-8)
    lost = (after[f"{name}.weight"].bfloat16() == before[f"{name}.weight"]).float().mean()
    assert lost > 0.5  # of what a folder in bfloat16 would have held


def test_adapters_that_stay_in_low_precision_are_refused_too(low_reference, data, tmp_path, monkeypatch):
    monkeypatch.setattr("peft.tuners.tuners_utils.BaseTuner._cast_adapter_dtype", lambda *args, **given: None)
    message = refusal(lambda: teach(low_reference, data, tmp_path / "out", use_peft=True, dtype="bfloat16"))
    assert message.startswith("dtype: expected weights in float32 where they are trained, got base_model.model.model.")


def adapters(work):
    return load_file(work / "checkpoint-3" / "adapter_model.safetensors")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_an_adapter_of_an_embedding_that_is_the_output_layer_too_is_refused(data, tmp_path):
    tied = save(make_llama(0, scale=0.1, tie_word_embeddings=True), tmp_path / "tied")
    flags = {"use_peft": True, "lora_target_modules": "embed_tokens"}
    message = refusal(lambda: teach(tied, data, tmp_path / "out", **flags))
    assert message.startswith("lora_target_modules: expected no embedding that is tied to the output layer")


# ---- before the first step


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"warmup_steps": 50}, "warmup_steps: expected fewer than the 8 steps of the training, got 50: the rate would"),
        ({"warmup_steps": 1, "max_steps": 1}, "learning_rate: expected a step with a rate above zero, got none in 1"),
        ({"learning_rate": 0}, "learning_rate: expected a number above 0, got 0"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 99}, "expected 8 steps, got an end after 0"),
    ],
)
def test_a_training_without_a_step_that_moves_is_refused(flags, expected, reference, data, tmp_path):
    assert expected in refusal(lambda: teach(reference, data, tmp_path / "out", **flags))
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_steps_are_told_before_the_first_and_the_way_gone_at_the_end(reference, data, tmp_path, capsys):
    teach(reference, data, tmp_path / "few", max_steps=2, learning_rate=1e-6, warmup_steps=1, logging_steps=1)
    text = capsys.readouterr().out
    told = "steps  2, 1 with a learning rate above zero, which add up to 1e-06: few, the model will hardly move"
    assert text.index(told) < text.index("dpo, step 1 of 2: ")
    assert text.count("of the pairs told as trained, by a reward margin of") == 2
    teach(reference, data, tmp_path / "more", max_steps=2, logging_steps=1)
    assert "steps  2, 2 with a learning rate above zero, which add up to 0.03\n" in capsys.readouterr().out


def test_a_model_that_did_not_move_is_said_to_be_its_reference(reference):
    from precompute.teachers.moved import measure_moved

    found = measure_moved(reference, reference, "dpo")
    assert str(found) == f"none of {found.weights:,} weights moved: the model is its reference"


def test_an_adapter_as_reference_has_no_weights_to_compare_with(reference, data, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(load(reference), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(reference)
    adapted.save_pretrained(tmp_path / "adapter")
    make_tokenizer().save_pretrained(tmp_path / "adapter")
    teach(tmp_path / "adapter", data, tmp_path / "out", max_steps=1, warmup_steps=0)
    text = capsys.readouterr().out
    assert "weights moved" not in text
    (told,) = [line for line in text.splitlines() if line.startswith(f"{tmp_path}/out/dpo: at last ")]
    assert told.endswith("on average")


def test_a_model_without_a_generation_config_has_none_to_keep():
    assert keep_generation_config(torch.nn.Linear(1, 1)) is None


def test_a_training_that_ends_in_nan_is_not_published(reference, data, tmp_path):
    message = refusal(lambda: teach(reference, data, tmp_path, learning_rate=1e30, max_steps=2))
    assert "dpo: expected finite weights after the training, got" in message
    assert not (tmp_path / "dpo").exists()


def test_responses_that_are_cut_and_pairs_that_teach_nothing_are_counted(reference, tmp_path, capsys):
    rows = [*make_pairs(6), {"prompt": "a cat", "chosen": " sat", "rejected": " sat"}]
    rows.append({"prompt": "a cat", "chosen": " sat" * 9, "rejected": " ran"})
    teach(reference, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path, max_length=10, max_steps=1)
    text = capsys.readouterr().out
    assert "responses cut at max_length; 1 pair of twice the same tokens, which teach nothing" in text


# ---- what cannot be saved


@pytest.mark.parametrize("lora", [False, True])
def test_a_generation_config_that_transformers_will_not_save_is_carried_over(lora, data, tmp_path, capsys):
    reference = save(make_llama(0, scale=0.1), tmp_path / "reference")
    file = reference / "generation_config.json"
    file.write_text(json.dumps(HUB_FAULT))
    teach(reference, data, tmp_path / "out", save_steps=2, max_steps=4, use_peft=lora)
    assert capsys.readouterr().err.count("generation_config.json is carried over as it is, though") == 2
    for role in ("dpo", "reverse"):
        assert (tmp_path / "out" / role / "generation_config.json").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("lora", [False, True])
def test_what_cannot_be_saved_is_known_before_the_first_step(lora, reference, data, tmp_path, monkeypatch):
    from transformers import LlamaConfig

    def fail(*args, **kwargs):
        raise ValueError("this config cannot be saved")

    monkeypatch.setattr(LlamaConfig, "save_pretrained", fail)
    stop_in(monkeypatch, DPOTrainer, "training_step", call=1, error=AssertionError("a step was made"))
    message = refusal(lambda: teach(reference, data, tmp_path, use_peft=lora))
    assert message.startswith("saving the model in ") and message.endswith(": this config cannot be saved")


def test_a_disk_that_is_too_small_is_known_before_the_first_step(reference, data, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(before.shutil, "disk_usage", lambda _: usage(10**6, 0, 10**6 // 5))
    with monkeypatch.context() as patch:
        stop_in(patch, DPOTrainer, "training_step", call=1, error=AssertionError("a step was made"))
        message = refusal(lambda: teach(reference, data, tmp_path))
    assert message.startswith("out: expected 0.0 GB free for the model and 3 checkpoints, got 0.0 in")
    stop_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):  # it reaches the first step where less is kept
        teach(reference, data, tmp_path, save_strategy="no")


# ---- stopped anywhere


def checkpoint_steps(out):
    return sorted(int(path.name.partition("-")[2]) for path in (out / "training" / "dpo").glob("checkpoint-*"))


def stop_in(monkeypatch, owner, name, call=2, error=KeyboardInterrupt):
    """Ctrl-C, or another error, instead of the n-th call of a function."""
    plain, calls = getattr(owner, name), []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise error
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, name, stopping)


def test_a_finished_training_that_was_not_saved_makes_no_step_more(reference, data, tmp_path, monkeypatch):
    flags = {"max_steps": 3}  # it ends in the middle of an epoch
    teach(reference, data, tmp_path / "unbroken", **flags)
    out = tmp_path / "broken"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_in(patch, dpo_module, "_save", call=1)
        teach(reference, data, out, **flags)
    assert checkpoint_steps(out) == [3]
    # three are reverse's
    stop_in(monkeypatch, DPOTrainer, "training_step", call=3 + 1, error=AssertionError("a step more was made"))
    teach(reference, data, out, **flags)
    for role in ("dpo", "reverse"):
        assert_same_weights(out / role, tmp_path / "unbroken" / role)


@pytest.mark.parametrize(
    ("owner", "name"), [(TeacherTrainer, "_save_optimizer_and_scheduler"), (trainer, "sign_checkpoint")]
)
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    owner, name, taught, reference, data, half_done, monkeypatch, capsys
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_in(patch, owner, name)
        teach(reference, data, half_done, save_total_limit=1)
    assert checkpoint_steps(half_done) == [3, 6]  # though one is kept
    teach(reference, data, half_done)
    text = capsys.readouterr().out
    assert "checkpoint-6 is left aside: expected a whole checkpoint, found no made_from.json" in text
    assert "going on from checkpoint-3" in text
    assert_same_weights(half_done / "dpo", taught / "dpo")


@pytest.fixture(scope="module")
def stopped(reference, data, taught, tmp_path_factory):
    """A folder with complete checkpoints of dpo after 3 and 6 steps."""
    out = tmp_path_factory.mktemp("stopped") / "models"
    shutil.copytree(taught / "reverse", out / "reverse")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, STEPS)
        teach(reference, data, out)
    return out


@pytest.mark.parametrize(("file", "size"), [("optimizer.pt", 100), ("scheduler.pt", None), ("made_from.json", 100)])
def test_a_checkpoint_whose_files_are_not_what_was_signed_is_left_aside(file, size, stopped, reference, data, tmp_path):
    record = json.loads((stopped / "reverse" / "made_from.json").read_text())
    work = shutil.copytree(stopped / "training" / "dpo", tmp_path / "dpo")
    asked = record | {"role": "dpo", "direction": "chosen preferred"}
    assert last_checkpoint(work, asked) == (work / "checkpoint-6", "")
    harmed = work / "checkpoint-6" / file
    harmed.unlink() if size is None else os.truncate(harmed, size)
    found, text = last_checkpoint(work, asked)
    assert found == work / "checkpoint-3"
    assert text.startswith("checkpoint-6 is left aside: expected a whole checkpoint, ") and file in text


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(taught, reference, data, half_done, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    weight_bytes = (reference / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(weight_bytes * 1.2), hard))  # Adam's moments are twice as much
    try:
        message = refusal(lambda: teach(reference, data, half_done))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "checkpoint-3: expected to be able to write there, got" in message
    capsys.readouterr()
    teach(reference, data, half_done)
    assert "checkpoint-3 is left aside" in capsys.readouterr().out
    assert_same_weights(half_done / "dpo", taught / "dpo")


# ---- two at once


def test_a_training_that_another_one_did_meanwhile_is_not_done_again(reference, data, tmp_path, monkeypatch, capsys):
    plain = teachers.require_writable

    def meanwhile(out):
        monkeypatch.setattr(teachers, "require_writable", plain)
        teach(reference, data, out, max_steps=1)

    monkeypatch.setattr(teachers, "require_writable", meanwhile)
    teach(reference, data, tmp_path, max_steps=1)
    assert capsys.readouterr().out.count("already trained from the same inputs, nothing to do") == 2


# ---- one line


def test_roles_that_were_renamed_are_refused(reference, data, taught, tmp_path):
    copy = shutil.copytree(taught, tmp_path / "copy")
    (copy / "dpo").rename(copy / "kept")
    (copy / "reverse").rename(copy / "dpo")
    message = refusal(lambda: teach(reference, data, copy))
    assert "role: expected reverse, got dpo; direction: expected chosen and rejected swapped, got chosen" in message


def test_a_changed_flag_is_named_in_place_of_hashes(reference, data, taught):
    message = refusal(lambda: teach(reference, data, taught, max_length=9, limit=4))  # other rows and tokens, too
    assert "limit: expected null, got 4; max_length: expected 2048, got 9; give another --out, or remove" in message
    assert "sha256" not in message
    message = refusal(lambda: teach(reference, data, taught, per_device_train_batch_size=4))
    assert "global_batch_size: expected 8, got 4; per_device_train_batch_size: expected 8, got 4" in message


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"report_to": "wandb"}, "DPOTrainer: WandbCallback requires wandb to be installed"),
        ({"optim": "adamw_8bit"}, "optim adamw_8bit: You need to install `bitsandbytes`"),
        ({"optim": "grokadamw"}, "optim grokadamw: Please install grokadamw"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"loss_type": "unknown"}, "DPOTrainer, the first step: Unknown loss type: unknown"),
        ({"f_divergence_type": "unknown"}, "DPOTrainer, the first step: Unknown f_divergence_type: unknown"),
        ({"beta": 0}, "beta: expected a number above 0, got 0"),
        ({"beta": math.nan}, "beta: expected a finite number, got nan"),
        ({"max_grad_norm": math.inf}, "max_grad_norm: expected a finite number, got inf"),
        ({"ld_alpha": 3}, "ld_alpha: expected a number from 0 to 1, got 3"),
        ({"label_smoothing": 0.1, "loss_type": "ipo"}, "label_smoothing: expected 0 with loss_type ipo"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: expected 0.0 here"),
        ({"sync_ref_model": True, "ref_model_sync_steps": 0}, "ref_model_sync_steps: expected 1 or more, got 0"),
        ({"sync_ref_model": True, "use_peft": True}, "DPOTrainer: You passed `sync_ref_model=True` while using"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of: expected 1 or more, got 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: expected 1 or more, got 0"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type cosine_with_min_lr: One of min_lr"),
        ({"lr_scheduler_kwargs": '{"x": 1}'}, "lr_scheduler_type linear: get_linear_schedule_with_warmup() got an un"),
        ({"neftune_noise_alpha": -5}, "DPOTrainer, the first step: uniform_ expects"),
        ({"accelerator_config": "missing.json"}, "DPOConfig: [Errno 2] No such file or directory: 'missing.json'"),
        ({"eval_on_start": True}, "eval_on_start: expected False here"),
        ({"use_peft": True, "lora_dropout": math.nan}, "lora_dropout: expected a number from 0 and below 1, got nan"),
        ({"out": "/proc/foo"}, "out: expected a folder to write into, got /proc, "),
    ],
)
def test_what_cannot_be_trained_is_one_line(flags, expected, reference, data, tmp_path):
    given = {"out": tmp_path / "out", "max_steps": 1} | flags
    assert refusal(lambda: teach(reference, data, **given)).startswith(expected)
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.filterwarnings("ignore:`use_liger_kernel=True` is deprecated:FutureWarning")
def test_liger_that_is_not_installed_is_one_line(reference, data, tmp_path):
    message = refusal(lambda: teach(reference, data, tmp_path, use_liger_kernel=True))
    assert message.startswith("DPOTrainer, the first step: You have set `use_liger_kernel` to `True` but liger-kernel")


def test_a_launcher_that_is_not_there_is_named(reference, data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = refusal(lambda: teach(reference, data, tmp_path))
    assert message.startswith("WORLD_SIZE=2 is in the environment: expected a launcher")


def test_an_error_after_the_first_step_keeps_its_traceback(reference, data, tmp_path, monkeypatch):
    stop_in(monkeypatch, DPOTrainer, "training_step", call=3, error=ValueError("of our own"))
    with pytest.raises(ValueError, match="of our own") as caught:
        teach(reference, data, tmp_path)
    assert not isinstance(caught.value, AlignDistilError)


def test_an_error_of_our_own_in_the_first_step_keeps_its_traceback(reference, data, tmp_path, monkeypatch):
    def fail(*given, **named):
        raise KeyError("of our own")

    fail.__code__ = fail.__code__.replace(co_filename=before.__file__)
    monkeypatch.setattr(TeacherTrainer, "compute_loss", fail)
    with pytest.raises(KeyError, match="of our own"):
        teach(reference, data, tmp_path)


def test_a_teacher_folder_of_an_earlier_version_is_still_recognised(reference, data, taught, tmp_path, capsys):
    copy = shutil.copytree(taught, tmp_path / "copy")
    record = json.loads((copy / "dpo" / "made_from.json").read_text())
    assert "files" not in record and record["training"]["max_steps"] == FLAGS["max_steps"]
    teach(reference, data, copy)
    assert capsys.readouterr().out.count("nothing to do") == 2
