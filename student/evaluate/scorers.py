"""Scorers of completions: a reward model, or a function of the user."""

import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from shards.errors import ModelError, OptionError, first_line
from shards.progress import progress
from student.evaluate.win_rate import Scorer
from student.load import load_tokenizer, load_whole


def find_scorer(
    name: str, *, device: torch.device, dtype: str, batch_size: int, trust_remote_code: bool = False
) -> Scorer:
    """The scorer called `module:function`, `file.py:function`, or the folder or hub name of a reward model.

    Raises OptionError for a missing function, ModelError for a model that is not a reward model.
    """
    module, separator, function = name.rpartition(":")
    if separator and not Path(name).is_dir():
        return _function(name, module, function)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    with _quiet():
        model = load_whole(
            name,
            AutoModelForSequenceClassification,
            "a reward model (sequence classification)",
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
    return RewardModel(name, model.to(device).eval(), tokenizer, batch_size)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' table of missing weights: a model that lacks some is refused in one line."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


class RewardModel:
    """A sequence-classification model with one label, with the input format of TRL's RewardTrainer: prompt and
    completion with the end-of-sequence token, or the chat template. Raises ModelError for other numbers of labels."""

    def __init__(self, name: str, model: Any, tokenizer: Any, batch_size: int) -> None:
        if model.config.num_labels != 1:
            raise ModelError(f"{name}: expected a reward model with one label, got {model.config.num_labels}")
        self.name, self.model, self.tokenizer = name, model, tokenizer
        # the model reads the last token that is not padding; without a padding token, one row at a time
        self.batch_size = batch_size if tokenizer.pad_token_id is not None else 1
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id

    @torch.no_grad()
    def __call__(self, prompts: list[Any], completions: list[Any]) -> list[float]:
        ids = [self._ids(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        self._require_room(max(len(row) for row in ids))
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        scores = [0.0] * len(ids)
        with progress(None, "scoring", total=len(ids), unit="sample") as bar:
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                for row, score in zip(rows, self._score([ids[row] for row in rows]), strict=True):
                    scores[row] = score
                bar.update(len(rows))
        return scores

    def _ids(self, prompt: Any, completion: Any) -> list[int]:
        if isinstance(prompt, str):
            end = self.tokenizer.eos_token or ""
            return self.tokenizer(prompt + completion.removesuffix(end) + end)["input_ids"]
        try:
            return self.tokenizer.apply_chat_template(prompt + completion, tokenize=True, return_dict=True)["input_ids"]
        except Exception as exc:  # a template is code that can raise anything
            got = (str(exc).splitlines() or [type(exc).__name__])[0]
            raise ModelError(f"{self.name}: expected a chat template that takes the messages, got {got}") from exc

    def _score(self, ids: Sequence[list[int]]) -> list[float]:
        longest = max(len(row) for row in ids)
        pad = self.tokenizer.pad_token_id or 0
        batch = {
            "input_ids": torch.tensor([row + [pad] * (longest - len(row)) for row in ids]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
        }
        inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        return self.model(**inputs).logits[:, 0].float().tolist()

    def _require_room(self, longest: int) -> None:
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and longest > positions:
            raise ModelError(f"{self.name}: expected samples of at most {positions} tokens, got one of {longest}")


def _function(name: str, module: str, function: str) -> Scorer:
    """A function of a .py file or of an importable module, also from the working directory."""
    expected = f"scorer: expected module:function, file.py:function or a reward model's folder, got {name!r}"
    if module.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(module).stem, module)
        if spec is None or spec.loader is None or not Path(module).is_file():
            raise OptionError(f"{expected}, no such file")
        loaded = importlib.util.module_from_spec(spec)
        with _refusing(name):
            spec.loader.exec_module(loaded)
    else:
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        try:
            found_module = importlib.util.find_spec(module)
        except (ImportError, ValueError, TypeError) as exc:
            raise OptionError(f"{expected} ({exc})") from exc
        if found_module is None:
            raise OptionError(f"{expected} (No module named {module!r})")
        with _refusing(name):
            loaded = importlib.import_module(module)
    found = getattr(loaded, function, None)
    if not callable(found):
        raise OptionError(f"{expected}, whose module has no function {function!r}")

    def scores(prompts: list[Any], completions: list[Any]) -> Sequence[float]:
        with _refusing(name):
            return found(prompts, completions)

    return scores


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn an error in the user's code into one line that says where it is."""
    try:
        yield
    except Exception as exc:
        if isinstance(exc, SyntaxError):
            text, file, line = exc.msg, exc.filename, exc.lineno
        else:
            frame = traceback.extract_tb(exc.__traceback__)[-1]
            text, file, line = first_line(exc), frame.filename, frame.lineno
        what = f"{type(exc).__name__}: {text} ({file} line {line})"
        raise OptionError(f"scorer: expected {name} to give scores, got {what}") from exc
