"""A fake cache whose responses are sentences, with the tokenizer that reads them."""

from dataclasses import replace

import numpy as np
from fake_cache import make_cache, write_cache
from tiny_tokenizers import SENTENCES, tiny_tokenizer


def readable_cache(folder, text=None, **options):
    """text: what all responses are made of, beginning at different places; by default sentences with odd characters."""
    inner = tiny_tokenizer().backend_tokenizer
    vocabulary = inner.get_vocab()
    fake = make_cache(folder, vocabulary_size=len(vocabulary), top_k=8, **{"response_tokens": 24} | options)
    ids = inner.encode(" ".join(SENTENCES) + " naïve 👩!\n\n<|im_end|>" if text is None else text).ids
    responses = [
        replace(response, input_ids=np.resize(np.roll(ids, 7 * row), len(response.input_ids)).astype(np.int32))
        for row, response in enumerate(fake.responses)
    ]
    write_cache(folder, fake.plan, vocabulary, responses, inner.to_str())
    return replace(fake, vocabulary=vocabulary, responses=responses)
