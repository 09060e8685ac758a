"""The three models: a tiny Llama trained on what people write, and two that TRL's DPOTrainer makes of it."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import DPOConfig, DPOTrainer

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>"]
PAD_ID, BOS_ID, EOS_ID = range(3)
BETA = 0.1


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every word of the texts ends up as one token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    pad, bos, eos = SPECIAL_TOKENS
    backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, BOS_ID)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos)


def new_model(vocabulary_size: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    return LlamaForCausalLM(config)


def train_reference(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, seed: int, batch_size: int = 64, peak: float = 4e-3
) -> LlamaForCausalLM:
    """Next-token prediction over the texts, once; the learning rate falls linearly to zero."""
    model = new_model(len(tokenizer), seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0)
    num_steps = len(texts) // batch_size
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 20, 1 - step / num_steps))
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    with tqdm(range(num_steps), desc="reference", unit="step") as bar:
        for step in bar:
            batch = [texts[i] + SPECIAL_TOKENS[EOS_ID] for i in order[step * batch_size : (step + 1) * batch_size]]
            encoded = tokenizer(batch, padding=True, return_tensors="pt", return_token_type_ids=False)
            labels_BT = encoded["input_ids"].masked_fill(encoded["input_ids"] == PAD_ID, -100)
            loss = model(**encoded, labels=labels_BT).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def train_dpo(reference: Path, pairs: Sequence[dict[str, str]], out: Path, *, swap: bool, seed: int) -> None:
    """DPO from the reference; the reverse model is the same run with chosen and rejected swapped."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    rows = [{(other.get(name, name) if swap else name): text for name, text in pair.items()} for pair in pairs]
    config = DPOConfig(
        output_dir=str(out),
        beta=BETA,
        learning_rate=1e-4,
        lr_scheduler_type="linear",
        per_device_train_batch_size=32,
        num_train_epochs=1,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        seed=seed,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = DPOTrainer(
        model=LlamaForCausalLM.from_pretrained(reference),
        ref_model=LlamaForCausalLM.from_pretrained(reference),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast.from_pretrained(reference),
    )
    trainer.train()
    trainer.save_model(str(out))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_jsonl(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
