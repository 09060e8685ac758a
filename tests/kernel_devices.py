"""Where the kernels' tests run: in Triton's interpreter on CPU tensors, and compiled on a CUDA device (marked `gpu`).

A process does one of the two: Triton decides when it is imported, by TRITON_INTERPRET, which `conftest` sets where
there is no GPU. On a machine with one, `python -m pytest -m gpu` runs the compiled kernels.
"""

import dataclasses
import functools
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


def speed_up_interpreter(monkeypatch, *, overflows=False):
    """The interpreter prepares the language anew for every call inside a kernel; here once for each kernel.

    overflows: check every sum of integers for one, which takes a third of the time. numpy's dtype of each of Triton's
    is looked up in a table that is otherwise made for every value.
    """
    if not INTERPRETED:
        return
    import triton.language as tl
    import triton.runtime.interpreter as interpreter

    patch, scopes, prepared, depth = interpreter._patch_lang, [], set(), []
    options = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=overflows)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)
    number = functools.cache(np_dtype := interpreter._get_np_dtype)

    def looked_up(kind):
        scalar = kind.element_ty if isinstance(kind, tl.block_type) else kind
        return np_dtype(scalar) if isinstance(scalar, tl.pointer_type) else number(scalar)

    monkeypatch.setattr(interpreter, "_get_np_dtype", looked_up)

    class Scope:
        def restore(self):
            depth.pop()
            while not depth and scopes:
                scopes.pop().restore()
            if not depth:
                prepared.clear()

    @functools.cache
    def languages(fn):
        return {id(value) for value in fn.__globals__.values() if inspect.ismodule(value) and value in (tl, tl.core)}

    def once(fn):
        seen = languages(fn)
        if not seen <= prepared:
            scopes.append(patch(fn))
            prepared.update(seen)
        depth.append(fn)
        return Scope()

    monkeypatch.setattr(interpreter, "_patch_lang", once)
