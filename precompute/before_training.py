"""What a training needs at its end, tried before its first step: weights that can move, a model that can be saved."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from precompute.models import ModelFolder
from shards.errors import OptionError, first_line
from shards.outside import naming, naming_saves

GENERATION_FILE = "generation_config.json"


def require_mergeable(model: Any) -> None:
    """Raise OptionError for an adapter of an embedding whose weight is the output layer's too.

    Merged, it would change the output layer as well, which it did not while it was trained.
    """
    inner = model.get_base_model()
    if getattr(inner.config, "tie_word_embeddings", False) and hasattr(inner.get_input_embeddings(), "base_layer"):
        raise OptionError(
            "lora_target_modules: expected no embedding that is tied to the output layer, which a merged adapter would "
            "change too, got one"
        )


class _KeptGenerationConfig(GenerationConfig):
    """A generation config that is saved as it is. transformers saves none that it finds fault with."""

    def validate(self, *args: Any, **kwargs: Any) -> None:
        pass


def keep_generation_config(model: Any) -> str | None:
    """See that checkpoints can be saved whatever the generation config holds; the fault that transformers finds."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return None
    try:
        config.validate(strict=True)
    except ValueError as exc:
        config.__class__ = _KeptGenerationConfig
        return first_line(exc)
    return None


def carry_generation_config(reference: ModelFolder, folder: Path) -> None:
    """Put the reference's own file beside weights that were trained from it: TRL and Trainer change what they load."""
    source = (reference.base or reference).path / GENERATION_FILE
    if source.is_file():
        shutil.copyfile(source, folder / GENERATION_FILE)


def try_saving(model: Any, tokenizer: Any, work: Path) -> None:
    """Save all that a model folder consists of, but for the weights, and remove it again. Raises OptionError."""
    with naming_saves("out"):
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work, prefix=".trial-") as folder, naming("saving the model"):
            model.save_pretrained(folder, state_dict={})
            tokenizer.save_pretrained(folder)
