"""DistillKit's compression of sparse log-probs (arcee-ai/DistillKit), run from the user's checkout.

It stores one model: the tokens, likely ones first, with bit-packed ids; the first few log-probs unchanged, the rest as
a polynomial of their rank. Three models are stored as three of these.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.codec.codecs import Arrays, Codec, Kept, likely_first
from shards.errors import OptionError
from shards.format.schema import ROLES
from shards.format.scores import Scores

SETTINGS: dict[str, dict[str, Any]] = {
    "its budget pick": {"k": 50, "exact_k": 1, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, "sqrt"]},
    "its recommended setting": {
        "k": 128,
        "exact_k": 16,
        "exact_dtype": "bfloat16",
        "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"],
    },
    "as exact as it can be": {"k": 64, "exact_k": 64, "exact_dtype": "float32", "polynomial_terms": []},
}
"""The first two are its README's; all of them without residuals, deltas and error diffusion, as these are."""


def distillkit_codecs(folder: Path, vocabulary_size: int) -> list[Codec]:
    """A codec for each setting. Raises OptionError if the folder is not a checkout that can be imported."""
    sys.path.insert(0, str(folder))
    try:
        config = importlib.import_module("distillkit.compression.config")
        compressor = importlib.import_module("distillkit.compression.compressor")
    except ImportError as exc:
        raise OptionError(f"distillkit: expected a checkout of arcee-ai/DistillKit in {folder}: {exc}") from exc
    finally:
        sys.path.remove(str(folder))
    if not Path(str(config.__file__)).resolve().is_relative_to(folder.resolve()):
        raise OptionError(f"distillkit: expected a checkout of arcee-ai/DistillKit in {folder}, got {config.__file__}")
    common = {"d": vocabulary_size, "term_dtype": "float32", "residual_bins": [], "delta_encoding": False}
    return [
        _codec(
            f"DistillKit, {name}, k = {setting['k']}",
            compressor.LogprobCompressor(config.DistributionQuantizationConfig(**common, **setting)),
            setting["k"],
        )
        for name, setting in SETTINGS.items()
    ]


def _codec(name: str, compressor: Any, top_k: int) -> Codec:
    def pack(scores: Scores) -> Arrays:
        found = {}
        for role in ROLES:
            ids_NK, logprobs_NK = likely_first(scores, role, top_k)
            for part, bytes_NB in compressor.compress_from_sparse(ids_NK, logprobs_NK).items():
                found[f"{role} {part}"] = bytes_NB.numpy()
        return found

    def unpack(arrays: Arrays, scores: Scores) -> Kept:
        found: Kept = {}
        for role in ROLES:
            parts = {n.removeprefix(f"{role} "): a for n, a in arrays.items() if n.startswith(f"{role} ")}
            ids_NK, logprobs_NK = compressor.decompress_to_sparse(
                {part: torch.from_numpy(np.array(array)) for part, array in parts.items()}
            )
            found[role] = (ids_NK.flatten().numpy(), logprobs_NK.float().flatten().numpy())
        return found

    return Codec(name=name, pack=pack, unpack=unpack, top_k=top_k)
