"""The table of workers at the end of a build."""

from collections.abc import Mapping, Sequence

from precompute.cluster.members import Member
from precompute.feeding.stages import Times


def workers_text(members: Sequence[Member], times: Mapping[int, Times]) -> str:
    """A line for each worker: machine, device, shards, tokens a second of its own work, retries."""
    lines = [f"{'worker':>18}  {'machine':<20} {'device':<24} {'shards':>8} {'tokens/s':>9} {'idle':>6} {'lost':>5}"]
    for member in members:
        rate = f"{member.tokens / member.seconds:,.0f}" if member.seconds else "-"
        found = times.get(member.number)
        idle = f"{found.idle / found.wall:.0%}" if found and found.wall else "-"
        lines.append(
            f"{member.number:>18}  {member.machine[:20]:<20} {member.device[:24]:<24} {member.tasks:>8,} {rate:>9} "
            f"{idle:>6} {member.retries:>5}"
        )
    return "\n".join(lines)
