"""student.train as `accelerate launch` starts it, with FSDP or DeepSpeed on CPUs.

accelerate turns FSDP on for accelerators only, and finds no backend for DeepSpeed on a machine without one. Both are
corrected here and nothing else: what is sharded, gathered, reduced, saved and loaded is their own code, over gloo.
"""

import os
import runpy

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

plain_init, plain_backend = AcceleratorState.__init__, PartialState._prepare_backend


def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    plain_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)


def with_gloo(self, *args, **kwargs):
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return "gloo", DistributedType.MULTI_CPU
    return plain_backend(self, *args, **kwargs)


AcceleratorState.__init__, PartialState._prepare_backend = with_fsdp, with_gloo
if __name__ == "__main__":
    runpy.run_module("student.train", run_name="__main__", alter_sys=True)
