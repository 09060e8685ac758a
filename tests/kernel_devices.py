"""Where the kernels' tests run: in Triton's interpreter on CPU tensors, and compiled on a CUDA device (marked `gpu`).

A process does one of the two: Triton decides when it is imported, by TRITON_INTERPRET, which `conftest` sets where
there is no GPU. On a machine with one, `python -m pytest -m gpu` runs the compiled kernels.
"""

import inspect
import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="the CPU needs TRITON_INTERPRET=1")),
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


def speed_up_interpreter(monkeypatch):
    """The interpreter prepares the language anew for every call inside a kernel; here once for each kernel."""
    if not INTERPRETED:
        return
    import triton.language as tl
    import triton.runtime.interpreter as interpreter

    patch, scopes, prepared, depth = interpreter._patch_lang, [], set(), []

    class Scope:
        def restore(self):
            depth.pop()
            while not depth and scopes:
                scopes.pop().restore()
            if not depth:
                prepared.clear()

    def once(fn):
        seen = {id(value) for value in fn.__globals__.values() if inspect.ismodule(value) and value in (tl, tl.core)}
        if not seen <= prepared:
            scopes.append(patch(fn))
            prepared.update(seen)
        depth.append(fn)
        return Scope()

    monkeypatch.setattr(interpreter, "_patch_lang", once)
