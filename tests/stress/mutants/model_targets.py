"""The files of model folders as targets: configs, adapters, headers of safetensors, indexes of weights, records."""

import json
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from precompute.models.made_from import MADE_FROM_FILE, direction_warnings
from precompute.teachers.folders import is_done, is_exact, last_checkpoint
from shards.modelfiles.find import fingerprint, resolve
from shards.modelfiles.folder import ADAPTER_CONFIG, _tensor_bytes

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 18, "hidden_size": 16}
RECORD = {
    "role": "dpo",
    "direction": "chosen preferred",
    "options": {"beta": 0.1, "limit": None},
    "training": {"learning_rate": 1e-6, "lr_scheduler_kwargs": {}},
    "reference": {"weights_sha256": "ab" * 32, "config_sha256": "cd" * 32, "base": {"weights_sha256": "ef" * 32}},
    "tokenizer": {"vocabulary_sha256": "ab" * 32},
    "data": {"rows_sha256": "ab" * 32, "pairs": 12},
    "versions": {"trl": "1.10"},
    "files": {"model.safetensors": 12, "sub/optimizer.pt": 3},
}
ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "base",
    "r": 4,
    "target_modules": ["q_proj"],
    "revision": None,
    "init_lora_weights": True,
}
INDEX_OF_FILES = "model.safetensors.index.json"


def text(value: Any) -> bytes:
    return json.dumps(value).encode()


def safetensors(header: Any, body: bytes = b"") -> bytes:
    head = header if isinstance(header, bytes) else text(header)
    return struct.pack("<Q", len(head)) + head + body


WEIGHTS = safetensors({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "__metadata__": {}}, bytes(16))


def targets(ground: Path) -> Iterator[dict[str, Any]]:
    base = _folder(ground / "model", **{"config.json": text(CONFIG), "model.safetensors": WEIGHTS})
    adapter = _folder(
        ground / "adapter",
        **{
            ADAPTER_CONFIG: text(ADAPTER | {"base_model_name_or_path": str(base)}),
            "adapter_model.safetensors": WEIGHTS,
        },
    )
    split = _folder(ground / "split", **{"config.json": text(CONFIG)})
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    _folder(split, **dict.fromkeys(names, WEIGHTS))
    weight_map = {"metadata": {"total_size": 32}, "weight_map": {"w": names[0], "v": names[1]}}
    role = _folder(ground / "trained" / "dpo", **{"model.safetensors": bytes(12), "sub/optimizer.pt": bytes(3)})
    checkpoint = _folder(
        ground / "work" / "checkpoint-3", **{"model.safetensors": bytes(12), "sub/optimizer.pt": bytes(3)}
    )
    json_ = {"is_json": True, "weight": 2}
    config = (adapter / ADAPTER_CONFIG).read_bytes()
    yield {
        "name": "config.json",
        "file": base / "config.json",
        "seeds": (text(CONFIG),),
        "work": partial(_find, base),
    } | json_
    yield {
        "name": "weights header",
        "file": base / "model.safetensors",
        "seeds": (WEIGHTS,),
        "work": partial(_weights, base),
        "weight": 3,
    }
    yield {
        "name": ADAPTER_CONFIG,
        "file": adapter / ADAPTER_CONFIG,
        "seeds": (config,),
        "work": partial(_find, adapter),
    } | json_
    yield {
        "name": "adapter header",
        "file": adapter / "adapter_model.safetensors",
        "seeds": (WEIGHTS,),
        "work": partial(_weights, adapter),
    }
    yield {
        "name": "weights index",
        "file": split / INDEX_OF_FILES,
        "seeds": (text(weight_map),),
        "work": partial(_index, split),
    } | json_
    yield {
        "name": "made_from of a role",
        "file": role / MADE_FROM_FILE,
        "seeds": (text(RECORD),),
        "work": partial(_role, role),
    } | json_
    yield {
        "name": "made_from of a checkpoint",
        "file": checkpoint / MADE_FROM_FILE,
        "seeds": (text(RECORD),),
        "work": partial(last_checkpoint, checkpoint.parent, RECORD),
    } | json_


def _folder(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _find(folder: Path) -> None:
    found = fingerprint(resolve(str(folder)))
    json.dumps(found)


def _weights(folder: Path) -> None:
    sizes = _tensor_bytes(folder)
    assert all(isinstance(size, int) and 0 <= size <= 2**40 for size in sizes.values()), sizes
    _find(folder)


def _index(folder: Path) -> None:
    resolve(str(folder))
    named = json.loads((folder / INDEX_OF_FILES).read_bytes().decode("utf-8"))["weight_map"].values()
    assert all((folder / name).parent == folder and name.endswith(".safetensors") for name in named), named


def _role(folder: Path) -> None:
    is_done(folder, RECORD)
    is_exact(folder, RECORD)
    model = resolve_like(folder)
    list(direction_warnings({"dpo": model}, {"dpo": RECORD["reference"], "reference": RECORD["reference"]}))


def resolve_like(folder: Path) -> Any:
    from shards.modelfiles.find import ModelFolder

    return ModelFolder(name="dpo", path=folder, commit=None)
