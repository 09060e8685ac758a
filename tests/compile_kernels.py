"""Compiles the kernels for GPUs that need not be there, and tells what they are made of, a line of JSON for each.

`python -m tests.compile_kernels 80 90`, without TRITON_INTERPRET, for compute capabilities 8.0 and 9.0.

Registers and stack are what ptxas gives a thread. A loop over the vocabulary is one with exponentials in it; what it
must not have is a barrier or a shuffle, for which threads wait, or local memory, which is where spilled registers go.

`--tile ROWS LANES WARPS` compiles for another tile than the chosen one.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from precompute.scoring.kernels import launch
from precompute.scoring.support import SupportRule
from shards import Divergence
from shards.format.nodes import StrengthNodes
from shards.format.schema import ROLES, Pair
from shards.teacher.divergence import Buckets
from student.loss import kernels

BIN = Path(triton.__file__).parent / "backends/nvidia/bin"
POSITIONS, SIZE = 16, 1536
"""Of the tensors that kernels are launched with; like most real ones they start, and have rows, at multiples of 16."""


def launched(tile):
    """(kernel, arguments, options) of every launch by the build and the student; nothing is run."""
    calls = []
    run = JITFunction.run
    JITFunction.run = lambda kernel, *arguments, grid, warmup, **named: calls.append((kernel, arguments, named))
    try:
        _launch_all(tile)
    finally:
        JITFunction.run = run
    return calls


def _launch_all(tile):
    pairs = (Pair("dpo", "reverse"), Pair("reference", "reference"))
    shape = {} if tile is None else dict(zip(("tile_rows", "tile_lanes", "num_warps"), tile, strict=True))
    vocabulary = launch.TritonVocabulary(pairs=pairs, nodes=StrengthNodes(), **shape)
    logits = {role: torch.zeros(POSITIONS, SIZE) for role in ROLES}
    ids_C = torch.zeros(POSITIONS, dtype=torch.long)
    vocabulary.summarise(logits, ids_C, SupportRule(lowest=1, highest=8, log_threshold=None))
    vocabulary.best_log_scores(logits, 8)
    shape = {} if tile is None else {"tile": dict(zip(("R", "L", "num_warps"), tile, strict=True))}
    ones_C = torch.ones(POSITIONS)
    buckets = Buckets(ids_C + 1, ids_C, ones_C, ones_C)
    for name in ("reverse_kl", "forward_kl", "jsd"):
        kernels.with_gradient_(Divergence(name=name), torch.zeros(POSITIONS, SIZE), buckets, **shape)


def compiled(kernel, arguments, named, capability):
    """What Triton would compile for a launch: it specialises on arguments as its launcher does."""
    values = dict(zip(kernel.arg_names, arguments, strict=False))
    values |= {name: value for name, value in named.items() if name in kernel.arg_names}
    options = {name: value for name, value in named.items() if name not in kernel.arg_names}
    signature, constants, attributes = {}, {}, {}
    for number, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            kind, constants[parameter.name] = "constexpr", value
        else:
            kind, known = native_specialize_impl(
                CUDABackend,
                value,
                parameter.is_const,
                not parameter.do_not_specialize,
                not parameter.do_not_specialize_on_alignment,
            )
            several = isinstance(known, tuple)
            for place, one in enumerate(known if several else [known]):
                attributes[(number, place) if several else (number,)] = CUDABackend.parse_attr(one or "")
        signature[parameter.name] = kind
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def ran(tool, *arguments):
    return subprocess.run([BIN / tool, *arguments], capture_output=True, text=True, check=True).stdout


def loops(assembly):
    """The instructions of every innermost loop: from a label to a branch back to it, without another such branch."""
    labels, instructions, found = {}, [], []
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            branch = re.search(r"BRA[^`]*`\((\.L_x_\d+)\)", line)
            instructions.append(line)
            if branch and branch[1] in labels:
                found.append((labels[branch[1]], len(instructions)))
    for start, end in found:
        if not any(start <= a and b < end for a, b in found):
            yield instructions[start:end]


def count(pattern, instructions):
    return sum(bool(re.search(pattern, line)) for line in instructions)


def report(kernel, arguments, named, capability):
    code = compiled(kernel, arguments, named, capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(code.asm["cubin"])
        used = re.search(r"REG:(\d+) STACK:(\d+)", ran("cuobjdump", "--dump-resource-usage", file.name))
        bodies = [body for body in loops(ran("nvdisasm", "-c", file.name)) if count("MUFU.EX2", body)]
    patterns = {"exponentials": "MUFU.EX2", "loads": r"\bLDG", "waits": r"BAR\.|SHFL", "spills": r"\b(LDL|STL)\b"}
    return {
        "kernel": " ".join([kernel.fn.__name__, *filter(None, [named.get("NAME")])]),
        "capability": capability,
        "tile": [named["R"], named["L"], named["num_warps"]],
        "registers": int(used[1]),
        "stack": int(used[2]),
        "loops": [
            {"instructions": len(body)} | {name: count(pattern, body) for name, pattern in patterns.items()}
            for body in bodies
        ],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("capabilities", type=int, nargs="+")
    parser.add_argument("--tile", type=int, nargs=3)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    cases = {(call[0].fn.__name__, call[2].get("NAME")): call for call in launched(options.tile)}
    for capability in options.capabilities:
        for (name, _), case in cases.items():
            if options.only in name:
                print(json.dumps(report(*case, capability)), flush=True)


if __name__ == "__main__":
    main()
