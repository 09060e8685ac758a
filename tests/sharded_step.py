"""Run on two ranks: one loss and its gradients with FSDP2's fully_shard, compared with those of the whole model.

Sharded in two ways: with the output layer in the model's own group, where its weight is whole inside the forward, and
in a separate group, where it is whole only inside the module's own call. The loss runs there, and with one call.
"""

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from shards import Divergence, TeacherSpec
from student.data.collate import Collator
from student.data.order import BatchItem
from student.data.responses import CachedResponses
from student.loss.forward import DistillForward
from student.loss.sparse import SparseTargets
from student.loss.whole import is_split


def loss_and_gradients(folder, cache, shard, head_apart=False):
    spec = TeacherSpec()
    data = CachedResponses([cache], train_on="both").for_teacher(spec)
    batch = Collator(spec=spec, nodes=data.nodes, reduction="sequence", pad_token_id=0)(
        data.__getitems__([BatchItem(row, True) for row in range(4)])
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    forward = DistillForward(model, vocabulary_size=18, divergence=Divergence(), chunk_positions=3)
    forward.install()
    if shard:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        if head_apart:
            fully_shard(model.lm_head, mesh=mesh)
        fully_shard(model, mesh=mesh)
    reasons = []
    distill = forward.distill
    forward.distill = lambda *given: (reasons.append(forward.why_not_fused), distill(*given))[1]
    out = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position=batch["position"],
        targets=SparseTargets(batch),
    )
    assert reasons == [None] and is_split(model.lm_head) == head_apart
    out["loss_sum"].backward()
    grads = [p.grad.full_tensor() if shard else p.grad for p in model.parameters()]
    return out["loss_sum"].detach(), torch.cat([g.flatten() for g in grads])


def main():
    cache, folder = sys.argv[1:]
    dist.init_process_group("gloo")
    whole = loss_and_gradients(folder, cache, shard=False)
    for head_apart in (False, True):
        sharded = loss_and_gradients(folder, cache, shard=True, head_apart=head_apart)
        torch.testing.assert_close(sharded[0], whole[0], rtol=1e-6, atol=0)
        assert (sharded[1] - whole[1]).norm() <= 1e-5 * whole[1].norm()
    print("same loss and gradients", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
