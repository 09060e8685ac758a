"""Logits computed from a model's parts equal the model's own, within the precision of its dtype."""

import pytest
import torch
from tiny import make_llama

from precompute.models.role_model import RoleModel, own_logits
from shards import Divergence
from shards.errors import ModelError
from student.loss.forward import DistillForward

V = 18
ROUNDED = 1 + 2**-10


def as_student(model):
    plain = model.forward

    def forward(**given):
        found = plain(**given)
        found.logits *= ROUNDED
        return found

    model.forward = forward
    DistillForward(model, vocabulary_size=V, divergence=Divergence(), chunk_positions=4)


def as_role(model):
    RoleModel("dpo", model, V, own_logits_TV=own_logits(model, V) * ROUNDED)


@pytest.mark.parametrize("read", [as_student, as_role])
def test_a_last_bit_of_the_models_dtype_is_no_other_model(read):
    for dtype in (torch.float16, torch.bfloat16):
        read(make_llama(0).to(dtype))
    with pytest.raises(ModelError, match="this model class is not supported"):
        read(make_llama(0))
