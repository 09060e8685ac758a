"""What `accelerate launch` starts: FSDP2 and DeepSpeed give what one process gives; what they would lose is refused.

On CPUs over gloo, by launched_on_cpu.py, with the configurations of examples/launch.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from test_training import arguments, moved, recipe, same_weights, student_folder, weights
from torch.distributed.fsdp import StateDictType
from two_ranks import run_ranks

from shards.errors import OptionError
from student.launched import require_as_launched, require_same_sharding
from student.precision import keep_float32_sums
from student.train.__main__ import train

CONFIGURATIONS = sorted((Path(__file__).parents[1] / "examples" / "launch").glob("*.yaml"))
SCRIPT = Path(__file__).parent / "launched_on_cpu.py"
__all__ = ["student_folder"]  # a fixture


def environment(name):
    """The variables that `accelerate launch` sets for a configuration of FSDP."""
    parsed = launch_command_parser().parse_args(["--config_file", str(CONFIGURATIONS[0].parent / name), "script"])
    found = prepare_multi_gpu_env(_validate_launch_command(parsed)[0])
    return {key: value for key, value in found.items() if key.startswith(("FSDP_", "ACCELERATE_USE_"))}


def launch(cache, student, out, given, **overrides):
    settings = recipe(train_on="both", use_cpu=True, report_to="none", disable_tqdm=True) | overrides
    flags = {"shards": cache.folder, "model": student, "output_dir": out} | settings
    run_ranks(SCRIPT, [part for key, value in flags.items() for part in (f"--{key}", value)], out.parent, **given)


def off(student, one, other):
    """How far two students are apart, as a share of the way of the first."""
    steps = [moved(weights(student), weights(out)) for out in (one, other)]
    return (steps[0] - steps[1]).norm() / steps[0].norm()


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_accelerate_reads_every_configuration(path):
    found = load_config_from_file(str(path))
    assert found.num_processes == 8 and found.mixed_precision == "no"


def test_fsdp2_gives_what_one_process_gives_and_resumes_from_parts(sparse_cache, student_folder, tmp_path):
    given = environment("fsdp2.yaml")
    assert given["FSDP_ACTIVATION_CHECKPOINTING"] == "true"
    flags = {"eval_shards": sparse_cache.folder, "num_train_epochs": 1, "save_steps": 4}
    launch(sparse_cache, student_folder, tmp_path / "two", given, **flags)
    checkpoint = tmp_path / "two" / "checkpoint-4"
    assert {path.suffix for path in (checkpoint / "pytorch_model_fsdp_0").iterdir()} == {".distcp", ""}
    launch(sparse_cache, student_folder, tmp_path / "again", given, **flags, resume_from_checkpoint=checkpoint)
    assert same_weights(tmp_path / "two", tmp_path / "again")
    train(arguments(sparse_cache, student_folder, tmp_path / "one", **recipe(num_train_epochs=1, save_strategy="no")))
    assert off(student_folder, tmp_path / "one", tmp_path / "two") < 1e-4


def test_adapters_under_fsdp2_are_saved_merged(sparse_cache, student_folder, tmp_path):
    pytest.importorskip("peft")
    flags = {"use_peft": True, "lora_r": 4, "num_train_epochs": 1, "save_strategy": "no"}
    launch(
        sparse_cache, student_folder, tmp_path / "two", environment("fsdp2-lora.yaml"), **flags,
        gradient_checkpointing=True,
    )  # fmt: skip
    train(arguments(sparse_cache, student_folder, tmp_path / "one", **recipe(**flags)))
    assert weights(tmp_path / "one").keys() == weights(tmp_path / "two").keys()
    assert off(student_folder, tmp_path / "one", tmp_path / "two") < 1e-3


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_gives_what_one_process_gives(stage, sparse_cache, student_folder, tmp_path):
    pytest.importorskip("deepspeed")
    file = tmp_path / "deepspeed.json"
    # a threshold of zero: else weights as small as these stay whole everywhere
    file.write_text(f"""{{
        "zero_optimization": {{"stage": {stage}, "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": true}},
        "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto"
    }}""")
    given = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    launch(sparse_cache, student_folder, tmp_path / "two", given, num_train_epochs=1, save_strategy="no", use_cpu=False)
    train(arguments(sparse_cache, student_folder, tmp_path / "one", **recipe(num_train_epochs=1, save_strategy="no")))
    assert off(student_folder, tmp_path / "one", tmp_path / "two") < 1e-4


def test_a_run_of_two_processes_resumes_on_one(sparse_cache, student_folder, tmp_path):
    flags = {"num_train_epochs": 1, "save_steps": 3}
    launch(sparse_cache, student_folder, tmp_path / "two", {}, **flags)
    checkpoint = str(tmp_path / "two" / "checkpoint-3")
    settings = recipe(**flags, per_device_train_batch_size=4, resume_from_checkpoint=checkpoint)
    resumed = train(arguments(sparse_cache, student_folder, tmp_path / "one", **settings))
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert off(student_folder, tmp_path / "two", tmp_path / "one") < 1e-4


@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed"])
def test_a_launch_whose_sharding_is_left_out_is_refused(name, sparse_cache, student_folder, tmp_path, monkeypatch):
    args = arguments(sparse_cache, student_folder, tmp_path / "out", **recipe())
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    if name == "DeepSpeed":
        trainer = SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=False, args=args)
        require_as_launched(trainer)  # no launcher: an earlier training of this process left the variable
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(OptionError, match="DeepSpeed: expected what the launcher asks for, got plain processes"):
            require_as_launched(trainer)
        return
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(OptionError, match="FSDP: expected what the launcher asks for, got plain processes on cpu"):
        train(args)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_divided_in_another_way_is_refused(sparse_cache, student_folder, tmp_path):
    flags = recipe(max_steps=2, warmup_steps=0)
    train(arguments(sparse_cache, student_folder, tmp_path / "out", **flags))
    checkpoint = tmp_path / "out" / "checkpoint-1"
    args = SimpleNamespace(world_size=4)
    trainer = SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=True, args=args)
    with pytest.raises(OptionError, match="DeepSpeed on 4 processes, as this launch, got one of whole"):
        require_same_sharding(trainer, checkpoint)
    (checkpoint / "global_step1").mkdir()
    for rank in range(2):
        (checkpoint / "global_step1" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    with pytest.raises(OptionError, match="got one of DeepSpeed on 2 processes"):
        require_same_sharding(trainer, checkpoint)
    with pytest.raises(OptionError, match="of whole weights, as this launch, got one of DeepSpeed on 2 processes"):
        train(arguments(sparse_cache, student_folder, tmp_path / "b", resume_from_checkpoint=str(checkpoint), **flags))
    args.world_size = 2
    require_same_sharding(trainer, checkpoint)
    (checkpoint / "pytorch_model_fsdp_0").mkdir()
    plugin = SimpleNamespace(state_dict_type=StateDictType.FULL_STATE_DICT)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    trainer = SimpleNamespace(is_fsdp_enabled=True, accelerator=accelerator)
    with pytest.raises(OptionError, match="of FSDP, FULL_STATE_DICT, as this launch, got one of FSDP, SHARDED_STATE"):
        require_same_sharding(trainer, checkpoint)
    (checkpoint / "pytorch_model_fsdp.bin").touch()
    require_same_sharding(trainer, checkpoint)


def test_half_precision_under_fsdp2_rounds_neither_the_loss_nor_the_sums_of_gradients():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    keep_float32_sums(plugin)
    assert plugin.mixed_precision_policy is None
    plugin.set_mixed_precision("fp16")
    assert plugin.mixed_precision_policy.output_dtype == torch.float16  # accelerate's: why this is needed
    keep_float32_sums(plugin)
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.float16, torch.float32, None)
    keep_float32_sums(None)
    earlier = FullyShardedDataParallelPlugin(fsdp_version=1)
    earlier.set_mixed_precision("fp16")
    policy = earlier.mixed_precision_policy
    keep_float32_sums(earlier)
    assert earlier.mixed_precision_policy is policy


def test_adapters_that_fsdp_would_not_save_are_refused(monkeypatch):
    plugin = SimpleNamespace(activation_checkpointing=True)
    trainer = SimpleNamespace(
        is_fsdp_enabled=True,
        is_deepspeed_enabled=False,
        args=SimpleNamespace(use_peft=True),
        accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)),
    )
    with pytest.raises(OptionError, match="fsdp_activation_checkpointing: expected false with use_peft"):
        require_as_launched(trainer)
    plugin.activation_checkpointing = False
    for name, value in (("RANK", "0"), ("ACCELERATE_USE_FSDP", "true")):
        monkeypatch.setenv(name, value)
    require_as_launched(trainer)  # as the launcher asks
    plugin.activation_checkpointing, trainer.args.use_peft = True, False
    require_as_launched(trainer)
