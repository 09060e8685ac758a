"""Tokenizers and chat templates made on the spot, small enough to train in milliseconds.

The templates are like those of real families: ChatML without and with generation markers, one whose generation prompt
differs from a finished conversation (Gemma 4, Qwen 3), and one that refuses roles out of turn (Llama 2).
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
SENTENCES = [
    "What color is the sky? The sky is blue, and the sea is blue too.",
    "Where is the sun? It is in the sky. Tell me more about the sun and the sea.",
    "user assistant system tool think The answer is a number such as 12 or 7.",
    "It is green. It is not. I do not know the answer, but the tool does.",
]

_TOOLS = "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
_CALLS = "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
_START = "<|im_start|>{{ m.role }}\n"
_BODY = "{{ m.content | default('') }}" + _CALLS + "{% if loud %}!{% endif %}<|im_end|>\n"
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_MARKED = "{% generation %}" + _BODY + "{% endgeneration %}"

CHATML = _TOOLS + "{% for m in messages %}" + _START + _BODY + "{% endfor %}" + _PROMPT
CHATML_MARKED = (
    _TOOLS
    + "{% for m in messages %}"
    + _START
    + "{% if m.role == 'assistant' %}"
    + _MARKED
    + "{% else %}"
    + _BODY
    + "{% endif %}{% endfor %}"
    + _PROMPT
)
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think></think>{% endif %}")
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}" + _START + _BODY + "{% endfor %}" + _PROMPT
)


def tiny_tokenizer(
    chat_template: str | None = None, *, bos: bool = False, eos: bool = True, name: str = "tiny"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of a few hundred tokens; with `bos`, <s> comes before text as in Llama."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>" if eos else None, pad_token="<pad>"
    )
    tokenizer.name_or_path = name
    tokenizer.chat_template = chat_template
    return tokenizer
