"""Refuses bodies whose hidden states change if rows are packed in another way than one by one.

Dimensions: N response positions of a batch, H hidden size.
"""

from collections.abc import Mapping

from precompute.models.role_model import RoleModel
from precompute.scoring.finite import require_finite_states
from precompute.scoring.packing import Packed, pack, pack_flat
from precompute.scoring.score import Batch, hidden_states, packed_states
from shards.errors import ModelError, first_line
from shards.format.schema import Role
from shards.modelfiles.precision import rounding_apart


def require_shared_prompts(models: Mapping[Role, RoleModel], pair: Batch, longest: int) -> None:
    """Run a pair both ways through every body. Raises ModelError if the hidden states differ by more than rounding.

    They differ for layers that ignore a custom mask: state-space and linear attention, flash attention 2. pair: any
    pair, preferably the longest. longest: tokens of the longest of all rows; if it exceeds an attention window, it is
    refused without a test.
    """
    for role, model in models.items():
        if (window := model.window) is not None and longest > window:
            raise ModelError(
                f"{role}: expected rows of at most {window} tokens, its window of attention, with --share_prompts, got "
                f"one of {longest}; leave it out"
            )
        _require_same(model, pair, pack(pair, share_prompts=True), "a shared prompt", "--share_prompts", "pair")


def require_padding_free(models: Mapping[Role, RoleModel], rows: Batch) -> None:
    """Run rows in one and one by one through every body. Raises ModelError if the hidden states differ by more than
    rounding: for layers that know no rows inside of a row, such as state-space layers.
    """
    for model in models.values():
        _require_same(model, rows, pack_flat(rows), "rows in one", "--padding_free", "row")


def _require_same(model: RoleModel, rows: Batch, packed: Packed, way: str, flag: str, what: str) -> None:
    role = model.role
    apart_NH = hidden_states(model, rows)
    require_finite_states({role: apart_NH}, {role: model}, rows)
    try:
        together_NH = packed_states(model, packed)
    except (RuntimeError, TypeError, ValueError) as exc:
        raise ModelError(
            f"{role}: expected a body that takes a mask and positions of one's own, got {first_line(exc)}; leave "
            f"{flag} out"
        ) from exc
    length_N = apart_NH.float().norm(dim=-1)
    off = float(((together_NH.float() - apart_NH.float()).norm(dim=-1) / length_N).max())
    if not off <= rounding_apart(model.dtype):
        raise ModelError(
            f"{role}: expected the same hidden states with {way}, got some {off:.1%} off in the {what} of "
            f"{rows[0].sample_id}; leave {flag} out"
        )
