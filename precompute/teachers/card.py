"""Writes the model card of a dpo or reverse model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from precompute.models.made_from import MADE_FROM_FILE

CARD_FILE = "README.md"


def write_card(folder: Path, record: Mapping[str, Any], reference: str) -> None:
    """Write README.md: in which direction the model was trained, and its purpose."""
    data = ModelCardData(library_name="transformers", tags=["aligndistil", "dpo", "trl"])
    training = record["training"]
    text = f"""---
{data.to_yaml()}
---

# {record["role"]}

Trained with TRL's DPOTrainer, {record["direction"]}, to be one of the models that a teacher of
[AlignDistil](https://arxiv.org/abs/2503.02832) is composed from.{_WARNING.get(record["role"], "")}

| | |
|---|---|
| started from | {reference} |
| pairs | {record["data"]["pairs"]:,} |
| beta | {training["beta"]:g} |
| learning rate, global batch size | {training["learning_rate"]:g}, {training["global_batch_size"]} |

`{MADE_FROM_FILE}` has every setting, and hashes of reference and data.
"""
    ModelCard(text).save(folder / CARD_FILE)


_WARNING = {"reverse": " It prefers what people rejected: not meant to be used by itself."}
