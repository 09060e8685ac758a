"""Tiny models, tokenizers and data, made on the spot."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "slept", "big", "small", "."]
SPECIAL = ["<pad>", "<s>", "</s>"]


def make_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token per word; an unknown word is the pad token."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )


def make_llama(seed: int, width: int = len(WORDS) + len(SPECIAL), *, scale: float = 0.4, **overrides: Any) -> Any:
    """A Llama of two layers with random weights, large enough that its distributions are not flat."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": width,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": scale,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | overrides
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def nudged(model: PreTrainedModel, seed: int, size: float) -> PreTrainedModel:
    """A copy of a model with every weight moved a little."""
    torch.manual_seed(seed)
    other = type(model)(model.config).to(model.dtype).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * size)
    return other


def with_dropout(model: Any) -> Any:
    """The model with dropout in its attention: in train mode no two of its forward passes are alike."""
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    return model


def save(model: PreTrainedModel, folder: Path, tokenizer: Any = None) -> Path:
    model.save_pretrained(folder)
    (make_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return folder


def make_trio(
    folder: Path, make: Callable[..., PreTrainedModel] = make_llama, *, size: float = 0.05, **overrides: Any
) -> dict[str, Path]:
    """reference, dpo and reverse: the second and third are the first with moved weights."""
    reference = make(0, **overrides)
    models = {"reference": reference, "dpo": nudged(reference, 1, size), "reverse": nudged(reference, 2, size)}
    return {role: save(model, folder / role) for role, model in models.items()}


def make_pairs(count: int, seed: int = 0, longest: int = 9) -> list[dict[str, str]]:
    generator = torch.Generator().manual_seed(seed)

    def text(low: int, high: int) -> str:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist())

    # the space before a response keeps the last word of the prompt a separate token
    return [
        {"prompt": text(2, 6), "chosen": " " + text(1, longest), "rejected": " " + text(1, longest)}
        for _ in range(count)
    ]


def write_jsonl(path: Path, rows: Sequence[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
