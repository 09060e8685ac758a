"""The reference: a tiny Llama trained on what people write. `precompute.teachers` makes the other two from it."""

import random
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS = SPECIAL_TOKENS = ["<pad>", "<s>", "</s>"]
PAD_ID, BOS_ID, EOS_ID = range(3)
# DPO for a model this small, mild on purpose: the method's teachers go further than dpo itself
TEACHER_FLAGS = shlex.split(
    "--learning_rate 4e-5 --per_device_train_batch_size 32 --num_train_epochs 1 --gradient_checkpointing false "
    "--use_cpu --dataloader_pin_memory false --logging_steps 20 --save_strategy no --report_to none"
)


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every word of the texts ends up as one token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def new_model(vocabulary_size: int, seed: int, hidden_size: int = 128) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.08,  # a model this narrow learns far slower from the default of 0.02
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    return LlamaForCausalLM(config)


def train_reference(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    seed: int,
    hidden_size: int = 128,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
) -> LlamaForCausalLM:
    """Next-token prediction over the texts, once; the learning rate falls linearly to zero."""
    model = new_model(len(tokenizer), seed, hidden_size).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    num_steps = len(texts) // batch_size
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 20, 1 - step / num_steps))
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    with tqdm(range(num_steps), desc="reference", unit="step", mininterval=0.5) as bar:
        for step in bar:
            batch = [texts[i] + EOS for i in order[step * batch_size : (step + 1) * batch_size]]
            encoded = tokenizer(batch, padding=True, return_tensors="pt", return_token_type_ids=False)
            labels_BT = encoded["input_ids"].masked_fill(encoded["input_ids"] == PAD_ID, -100)
            loss = model(**encoded, labels=labels_BT).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval()


def load_model(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder).eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)
