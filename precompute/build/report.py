"""What the build prints: the plan before the work, the summary after it."""

import textwrap
from collections.abc import Mapping, Sequence

from precompute.build.options import BuildOptions
from precompute.feeding.stages import Times
from precompute.models.role_model import RoleModel
from precompute.scoring.packing import padding_share
from precompute.tokens.corpus import Corpus
from precompute.tokens.tally import Facts
from precompute.tokens.tokenized import TokenizedResponse
from shards.cli.text import WIDTH, counted, duration, skipped_text
from shards.format.manifest import Manifest
from shards.format.plan import Plan, ShardPlan
from shards.format.schema import Role
from shards.format.statistics import distribution_table
from shards.preferences.directions import Direction
from shards.spread import spread
from shards.teacher.precision import Precision
from shards.teacher.served import lacks
from shards.teacher.spec import DEFAULT_PRESET, PRESETS, TeacherSpec

PADDED_SHARDS = 8
"""Shards on which the share of padding is counted."""


def plan_text(
    plan: Plan, corpus: Corpus, todo: Sequence[ShardPlan], top_k: int, tokens_per_second: float | None
) -> str:
    """Rows, response tokens, projected bytes (before compression) and time."""
    left = sum(shard.positions for shard in todo)
    per_position = bytes_per_position(plan, top_k)
    skipped = skipped_text(plan.skipped)
    lines = [
        f"{'responses':>18}  {plan.rows:,}, from {counted(corpus.rows_read, 'row')} of data{skipped}",
        f"{'response tokens':>18}  {plan.positions:,} in {counted(len(plan.shards), 'shard')}"
        + (f", {plan.positions - left:,} already done" if left < plan.positions else ""),
        f"{'projected size':>18}  {plan.positions * per_position / 2**20:,.1f} MiB "
        f"({per_position:,.0f} bytes per response token before compression)",
        f"{'projected time':>18}  {_time_text(left, tokens_per_second)}",
        f"{'vocabulary':>18}  {_kernels_text(plan)}",
    ]
    if found := Precision.of(plan):
        lines += [_wrapped("precision", text) for text in (str(found), *(fault for _, fault in found.faults()))]
    lines += [f"{'note':>18}  {note}" for note in (*corpus.notes, *teacher_notes(plan))]
    return "\n".join(lines)


def plan_warnings(plan: Plan, directions: Sequence[Direction]) -> list[str]:
    """What of the plan and of a few rows should be looked at, for a build that shows nothing else."""
    precision = Precision.of(plan)
    found = [fault for _, fault in precision.faults()] if precision else []
    return found + [str(one).removeprefix("warning: ") for one in directions if one.share <= 0.5]


def dtype_text(models: Mapping[Role, RoleModel]) -> str:
    """The dtype of the bodies, and how their hidden states are multiplied with their output layers."""
    dtypes = dict.fromkeys(str(model.dtype).removeprefix("torch.") for model in models.values())
    layers = dict.fromkeys(model.output_layer.why for model in models.values())
    return "\n".join([_wrapped("dtype", ", ".join(dtypes)), *(_wrapped("output layers", why) for why in layers)])


def batches_text(plan: Plan, rows: Sequence[TokenizedResponse], options: BuildOptions) -> str:
    """How large batches are, and how much of them is padding, on some of the shards."""
    found = f"{'batches':>18}  of up to {options.tokens_per_batch:,} tokens, "
    if options.padding_free:
        return f"{found}without padding"
    sample = [plan.shards[number] for number in spread(len(plan.shards), PADDED_SHARDS)]
    sampled = [rows[shard.first_row : shard.first_row + shard.rows] for shard in sample]
    flags = {"share_prompts": options.share_prompts}
    shares = [padding_share(found, options.tokens_per_batch, **flags) for found in sampled]
    return f"{found}{sum(shares) / len(shares):.1%} of it padding"


def shared_text(facts: Facts) -> str:
    """How many tokens are not run twice because prompts are shared."""
    total, saved = facts.tokens, facts.saved_tokens
    return f"{'shared prompts':>18}  {saved:,} of {total:,} tokens ({saved / total:.1%}) are not run twice"


def teacher_notes(plan: Plan) -> list[str]:
    """A line if the cache does not serve the teacher that `student.train` uses by default."""
    if (lacking := lacks(plan, TeacherSpec.preset(DEFAULT_PRESET))) is None:
        return []
    served = [name for name in PRESETS if lacks(plan, TeacherSpec.preset(name)) is None]
    what = f"train with --teacher {' or '.join(served)}" if served else "no preset is served"
    return [f"the default teacher {DEFAULT_PRESET} is not served: {lacking}; {what}"]


def corpus_warnings(corpus: Corpus) -> list[str]:
    """What is odd about the tokens; and a line if max_length skips or cuts most responses."""
    overlong, total = corpus.skipped.get("overlong", 0), len(corpus.responses) + sum(corpus.skipped.values())
    if 2 * (overlong + corpus.truncated) <= total:
        return list(corpus.warnings)
    found = f"{overlong:,} skipped and {corpus.truncated:,} cut of {counted(total, 'response')}"
    return [*corpus.warnings, f"max_length: expected room for most responses, got {found}"]


def summary_text(manifest: Manifest) -> str:
    """Skipped rows by reason, bytes per token, coverage and D_t."""
    plan = manifest.plan
    total = sum(entry.bytes for entry in manifest.entries)
    lines = [
        f"{'responses':>18}  {plan.rows:,}{skipped_text(plan.skipped)}; {plan.truncated:,} cut at max_length; "
        f"{plan.prompt_not_prefix:,} whose prompt alone tokenises otherwise",
        f"{'size':>18}  {total / 2**20:,.1f} MiB, {total / plan.positions:,.1f} bytes per response token, "
        f"{sum(e.entries for e in manifest.entries) / plan.positions:.1f} tokens kept on average",
        distribution_table(manifest.statistics),
    ]
    return "\n".join(lines)


def times_text(times: Times, processes: int) -> str:
    """Where the time of scoring went, added up over the processes; empty if nothing was scored."""
    if not times.bodies:
        return ""
    shares = {
        "bodies": times.bodies,
        "output layers and vocabulary": times.vocabulary,
        "device idle": times.idle,
    }
    parts = ", ".join(f"{seconds / times.wall:.1%} {name}" for name, seconds in shares.items())
    total = f"{processes} x {duration(times.wall / processes)}" if processes > 1 else duration(times.wall)
    waits = (f"{getattr(times, name):,.1f} s for {name}" for name in ("input", "results", "writers"))
    waited = f"{', '.join(waits)}, who worked {times.writing:,.1f} s beside it"
    return "\n".join([_wrapped("time", f"{total} of scoring: {parts}"), _wrapped("waits", waited)])


def directions_text(directions: Sequence[Direction]) -> str:
    """What the models prefer, a line each; a plain warning where it is not what their roles say."""
    lines = [str(direction) for direction in directions]
    if len(directions) == 2 and all(direction.share < 0.5 for direction in directions):
        lines.append("dpo and reverse look swapped: each prefers what the other should")
    return "\n".join(f"{'' if i else 'preferences':>18}  {line}" for i, line in enumerate(lines))


def bytes_per_position(plan: Plan, top_k: int) -> float:
    """Bytes of the stored values of one response position with top_k tokens, before compression."""
    width = {"position": 1.0, "node": len(plan.nodes) - 1.0, "entry": float(top_k), "token": 1.0, "row": 0.0}
    return sum(
        width[column.level] * column.value_type.bit_width / 8 for column in plan.columns() if width[column.level]
    )


def _kernels_text(plan: Plan) -> str:
    """What computes over the vocabulary."""
    kernels = plan.identity.get("numerics", {}).get("kernels")
    return "computed by plain torch code" if kernels is None else f"computed by the kernels of {kernels}"


def _time_text(left: int, tokens_per_second: float | None) -> str:
    if tokens_per_second is None:
        return "after the first shard; models are moved to the device in turn"
    return f"{duration(left / tokens_per_second)} at {tokens_per_second:,.0f} response tokens/s"


def _wrapped(label: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"{label:>18}  ", subsequent_indent=" " * 20)
