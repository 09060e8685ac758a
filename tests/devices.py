"""The devices of tests whose paths differ on a GPU: a body runs on a CPU always, and on a GPU where there is one.

`python -m pytest -m gpu` runs only the latter.
"""

import pytest
import torch

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]
