"""Refuses hidden states that are not finite, and says where they are.

A body that leaves float16's range ends in infinite or NaN states. They are found here, because a soft cap on the logits
would make large numbers of them.

Dimensions: N response positions of a batch, H hidden size.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch

from precompute.models.role_model import RoleModel
from precompute.scoring.packing import places
from precompute.tokens.tokenized import Row
from shards.errors import NonFiniteLogits
from shards.format.schema import Role
from shards.modelfiles.precision import remedy


def require_finite_states(
    hidden: Mapping[Role, torch.Tensor], models: Mapping[Role, RoleModel], batch: Sequence[Row]
) -> None:
    """Raise NonFiniteLogits naming role, sample and position of a batch's first state that is not finite.

    hidden: role -> (N, H). The host waits for the device once, for all roles together.
    """
    home = next(iter(hidden.values())).device
    require_finite_where(finite_states(hidden, home).tolist(), hidden, models, batch)


def finite_states(hidden: Mapping[Role, torch.Tensor], home: torch.device) -> torch.Tensor:
    """Whether all states of each role are finite, (roles,), on the device `home`; nobody waits for it."""
    return torch.stack([states_NH.isfinite().all().to(home) for states_NH in hidden.values()])


def require_finite_where(
    finite: Iterable[bool],
    hidden: Mapping[Role, torch.Tensor],
    models: Mapping[Role, RoleModel],
    batch: Sequence[Row],
) -> None:
    """Raise NonFiniteLogits for the first role whose states are not all finite."""
    for (role, states_NH), fine in zip(hidden.items(), finite, strict=True):
        if not fine:
            _refuse(role, states_NH, models[role].dtype, batch)


def _refuse(role: Role, states_NH: torch.Tensor, dtype: torch.dtype, batch: Sequence[Row]) -> None:
    row_N, token_N = places(batch)
    first = int((~states_NH.isfinite()).any(-1).nonzero()[0, 0])
    got = states_NH[first][~states_NH[first].isfinite()][0].item()
    sample = batch[row_N[first]].sample_id
    where = f"sample {sample} at token {token_N[first]}"
    raise NonFiniteLogits(f"{role}: expected finite hidden states, got {got} for {where}{remedy(dtype)}")
