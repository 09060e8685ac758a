"""What a model folder must contain; precompute and student refuse a folder with the same messages."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shards import strict_json
from shards.errors import ModelError, first_line
from shards.files import about, file_sha256, matching, read_regular
from shards.progress import progress

ADAPTER_CONFIG = "adapter_config.json"
MAX_NAME = 4096
MAX_CONFIG_BYTES = 2**26
MAX_HEADER_BYTES = 100_000_000
"""The longest header that the safetensors library reads."""


@contextlib.contextmanager
def refusing(where: str, expected: str) -> Iterator[None]:
    """Turn load errors of transformers, tokenizers, safetensors and peft into a ModelError."""
    try:
        yield
    except Exception as exc:  # they have no common base class
        got = "one that needs code of its own, which runs with --trust_remote_code only"
        if isinstance(exc, KeyError):  # its whole message is the key
            got = f"one with an unknown {exc}"
        elif "trust_remote_code" not in str(exc):
            got = first_line(exc)
        raise ModelError(f"{where}: expected {expected}, got {got}") from exc


def is_folder(path: Path) -> bool:
    """Whether a folder is there. False for what cannot be its name, such as one that is too long."""
    with contextlib.suppress(OSError):
        return path.is_dir()
    return False


def require_folder(name: str) -> None:
    """Raise ModelError if `name` can only be a path and no folder is there; other names may be on the hub."""
    if not name.isprintable() or len(name) > MAX_NAME:
        raise ModelError(f"{name!r:.80}: expected a model folder or a hub name, got a text that can be neither")
    if (Path(name).is_absolute() or name.startswith(".")) and not is_folder(Path(name)):
        raise ModelError(f"{name}: expected a model folder, found none")


def read_config(name: str, path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder. Raises ModelError."""
    try:
        found = strict_json.loads(read_regular(path, MAX_CONFIG_BYTES), constants=True)
    except (OSError, ValueError) as exc:
        raise ModelError(f"{name}/{path.name}: expected a JSON object, got {exc}") from exc
    if not isinstance(found, dict):
        raise ModelError(f"{name}/{path.name}: expected a JSON object, got {type(found).__name__}")
    return found


def adapter_base(name: str, folder: Path) -> str | None:
    """Folder or hub name of an adapter's base; None for a full model. Raises ModelError if the adapter names none."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    base = read_config(name, folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ModelError(f"{name}/{ADAPTER_CONFIG}: expected base_model_name_or_path, got {base!r}")
    return base


def require_weights(name: str, folder: Path, stem: str) -> None:
    """Raise ModelError without `stem`*.safetensors; pickled weights are never loaded."""
    if found := matching(folder, f"{stem}*.safetensors"):
        if strange := [path.name for path in found if not path.is_file()]:
            raise ModelError(f"{name}/{strange[0]}: expected a file, got a folder, a pipe, a device or a broken link")
        require_named_weights(name, folder, stem)
        return
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in matching(folder, pattern))
    other = f"only pickle weights ({pickles[0]})" if pickles else "no weights"
    raise ModelError(f"{name}: expected {stem}*.safetensors, found {other}")


def require_named_weights(name: str, folder: Path, stem: str) -> None:
    """Raise ModelError if the index of a model's files names any that are not its own: they would be loaded from there,
    whatever they hold, and the model's sha256 would not cover them."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return
    named = read_config(name, index).get("weight_map")
    files = {path.name for path in matching(folder, f"{stem}*.safetensors")}
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise ModelError(f"{name}/{index.name}: expected weight_map, the file of each weight, got {named!s:.60}")
    for file in sorted(set(named.values()) - files):
        raise ModelError(f"{name}/{index.name}: expected files {stem}*.safetensors beside it, got {file}")


def weights_sha256(folder: Path, stem: str) -> str:
    """sha256, in hex, of the names and sha256s of `stem`*.safetensors."""
    digest, paths = hashlib.sha256(), matching(folder, f"{stem}*.safetensors")
    total = sum(path.stat().st_size for path in paths)
    with progress(None, f"hashing {folder.name}", total=total, unit="B", brief=True) as bar:
        for path in paths:
            digest.update(f"{path.name}\0{file_sha256(path, bar.update)}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def showing_load(hf_logging: Any, folder: Path, who: str) -> Iterator[None]:
    """Show transformers' loading of a folder's weights in bytes. hf_logging: transformers.utils.logging."""
    bytes_by_name = _tensor_bytes(folder)

    def instead(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args and kwargs.get("desc") == "Loading weights":
            return _loaded(args[0], bytes_by_name, who)
        return factory(*args, **kwargs) if earlier is None else earlier(factory, args, kwargs)

    earlier = hf_logging.set_tqdm_hook(instead)
    try:
        yield
    finally:
        hf_logging.set_tqdm_hook(earlier)


def _loaded(parameters: Any, bytes_by_name: Mapping[str, int], who: str) -> Iterator[Any]:
    """Pass on (name, how it is loaded). A name that is not in the files has the mean size: some are renamed."""
    total = sum(bytes_by_name.values())
    mean = total / max(1, len(parameters))
    with progress(None, f"loading {who}", total=total, unit="B", brief=True) as bar:
        for parameter in parameters:
            yield parameter
            bar.update(min(bytes_by_name.get(parameter[0], mean), total - bar.n))


def _tensor_bytes(folder: Path) -> dict[str, int]:
    """Name -> bytes of every tensor in a folder, from the headers of its safetensors files."""
    found: dict[str, int] = {}
    for path in filter(Path.is_file, matching(folder, "*.safetensors")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError), path.open("rb") as file:
            length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
            header = strict_json.loads(file.read(length if length < min(size, MAX_HEADER_BYTES) else 0))
            for name, tensor in header.items():
                if name != "__metadata__":
                    begin, end = tensor["data_offsets"]
                    found[name] = min(max(0, end - begin), size)
    return found  # what is wrong in a file, the load will refuse


def require_tokenizer(name: str, folder: Path) -> None:
    """Raise ModelError if the folder has no tokenizer files; transformers would try other names."""
    if not any((folder / file).is_file() for file in ("tokenizer_config.json", "tokenizer.json")):
        raise ModelError(f"{name}: expected a tokenizer in the folder, found none")
    model = folder / "tokenizer.model"
    if (folder / "tokenizer.json").is_file() or not model.is_file() or find_spec("sentencepiece"):
        return
    with about(model):
        begin = model.read_bytes()[:1]
    if begin == b"\n":  # first byte of the sentencepiece format; the one of tiktoken is text
        raise ModelError(
            f"{name}: expected tokenizer.json, or the package sentencepiece, which reads tokenizer.model; "
            "pip install sentencepiece"
        )


def require_whole(name: str, loading_info: Mapping[str, Any]) -> None:
    """Raise ModelError if transformers initialised weights at random because they are missing or do not fit.

    loading_info comes from from_pretrained, with output_loading_info and ignore_mismatched_sizes.
    """
    for key, found, expected in sorted(loading_info.get("mismatched_keys", ())):
        raise ModelError(f"{name}: expected {key} of shape {list(expected)}, as the config says, got {list(found)}")
    for key in sorted(loading_info["missing_keys"]):
        raise ModelError(f"{name}: expected weights for {key}, found none")
