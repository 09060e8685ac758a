"""The paper table: what a build and its students need, from the assumptions of the options. Pure."""

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.scaling.options import ScalingOptions

MODELS = 3
"""dpo, reverse and reference."""
MANIFEST_BYTES, PLAN_BYTES, INDEX_BYTES = 216, 87, 16.1
"""Of a shard in manifest.json and plan.json, of a row in index.arrow; measured (`--measure growth`)."""
SAVE_STEPS = 500
"""transformers' default."""


class Figure(NamedTuple):
    """A line of the table: what, how much, and the formula."""

    what: str
    value: str
    formula: str


def sections(o: ScalingOptions) -> dict[str, list[Figure]]:
    """Heading -> its lines."""
    return {
        "The cache": list(cache(o)),
        "The build": list(build(o)),
        "A student": list(student(o)),
        "What a failure costs": list(failures(o)),
    }


def cache(o: ScalingOptions) -> Iterator[Figure]:
    shards = num_shards(o)
    yield Figure("response tokens", f"{tokens(o):.3g}", "responses * response_tokens")
    yield Figure("bytes", size(tokens(o) * o.bytes_per_token), "tokens * bytes_per_token")
    yield Figure("shards", f"{shards:,}", "tokens / tokens_per_shard")
    yield Figure("rows of a shard", f"{o.responses / shards:.0f}", "responses / shards")
    yield Figure("bytes of a shard", size(shard_bytes(o)), "tokens_per_shard * bytes_per_token")
    yield Figure("files in the folder", f"{shards + 5:,}", "shards + 5")
    yield Figure("manifest.json", size(MANIFEST_BYTES * shards), f"{MANIFEST_BYTES} bytes * shards")
    yield Figure("plan.json", size(PLAN_BYTES * shards), f"{PLAN_BYTES} bytes * shards")
    yield Figure("index.arrow", size(INDEX_BYTES * o.responses), f"{INDEX_BYTES} bytes * responses")


def build(o: ScalingOptions) -> Iterator[Figure]:
    hours, workers = build_hours(o), o.gpus / o.gpus_per_worker
    seconds = hours / o.gpus * 3600
    yield Figure("GPU hours", f"{hours:,.0f}", "2 * parameters * (prompt + response tokens) * 3 / (peak * mfu)")
    yield Figure("hours", f"{hours / o.gpus:.0f}", "GPU hours / gpus")
    yield Figure("dollars", f"{hours * o.dollars_per_gpu_hour:,.0f}", "GPU hours * dollars_per_gpu_hour")
    yield Figure("response tokens a second, all", f"{tokens(o) / seconds:,.0f}", "tokens / seconds")
    yield Figure("seconds a shard, of a worker", f"{shard_seconds(o):.1f}", "seconds * workers / shards")
    yield Figure("bytes written a second, all", size(tokens(o) * o.bytes_per_token / seconds), "bytes / seconds")
    yield Figure("the same, of a worker", size(tokens(o) * o.bytes_per_token / seconds / workers), "that / workers")
    yield Figure("PUT requests", f"{num_shards(o) + 5:,}", "one a file")
    weights = MODELS * 2e9 * o.parameters_billion
    yield Figure("weights that a worker loads", size(weights), "3 models, 2 bytes a parameter")


def student(o: ScalingOptions) -> Iterator[Figure]:
    hours, nodes = student_hours(o), -(-o.gpus // o.gpus_per_node)
    seconds = hours / o.gpus * 3600
    steps = -(-o.responses // o.global_batch_size)
    yield Figure("GPU hours of an epoch", f"{hours:,.0f}", "6 * student * (prompt + response tokens) / (peak * mfu)")
    yield Figure("hours", f"{hours / o.gpus:.1f}", "GPU hours / gpus")
    yield Figure("dollars", f"{hours * o.dollars_per_gpu_hour:,.0f}", "GPU hours * dollars_per_gpu_hour")
    yield Figure("steps", f"{steps:,}", "responses / global_batch_size")
    yield Figure("seconds a step", f"{seconds / steps:.2f}", "seconds / steps")
    yield Figure(
        "response tokens a second, of a rank", f"{tokens(o) / seconds / o.gpus:,.0f}", "tokens / seconds / gpus"
    )
    yield Figure(
        "bytes read a second, of a machine",
        size(tokens(o) * o.bytes_per_token / seconds),
        "bytes / seconds: a machine fetches whole shards, of which it uses its ranks' rows",
    )
    yield Figure("GET requests of an epoch", f"{nodes * num_shards(o):,}", "shards * machines")
    yield Figure("bytes out of the store", size(nodes * tokens(o) * o.bytes_per_token), "bytes * machines")
    rows = o.shuffle_window + 1 + -(-o.global_batch_size * num_shards(o) // o.responses)
    yield Figure(
        "disk of a machine", size(rows * shard_bytes(o)), "(shuffle_window + 1 + shards of a global batch) * shard"
    )
    spread = min(1, o.shuffle_window / num_shards(o)) / 12**0.5
    yield Figure("spread of a shard's rows over the epoch", f"{spread:.5f}", "shuffle_window / shards / sqrt(12)")


def failures(o: ScalingOptions) -> Iterator[Figure]:
    per_node = max(1, o.gpus_per_node // o.gpus_per_worker)
    price = o.gpus_per_worker * o.dollars_per_gpu_hour / 3600
    one, load = shard_seconds(o), MODELS * 2e9 * o.parameters_billion
    text = f"{one:.0f} s of {o.gpus_per_worker} GPUs, {one * price:.2f} dollars"
    yield Figure("a worker of the build", text, "a shard at most, and loading the weights again")
    yield Figure("a machine of the build", f"{per_node} times that", "workers of a machine, a shard each")
    yield Figure("loading at 2 GB/s", f"{load / 2e9:.0f} s", "weights / 2 GB a second; the shared disk decides")
    yield Figure(
        "the driver", f"{o.gpus / o.gpus_per_worker:.0f} shards", "those under way; finished ones are found again"
    )
    yield Figure("the store", "0 finished shards", "tries with back-off, then one line; the same command goes on")
    step = student_hours(o) / o.gpus * 3600 / -(-o.responses // o.global_batch_size)
    yield Figure(
        "a rank of the student", f"{SAVE_STEPS * step:.0f} s of all GPUs", f"{SAVE_STEPS} steps (--save_steps) at most"
    )


def tokens(o: ScalingOptions) -> float:
    return float(o.responses) * o.response_tokens


def num_shards(o: ScalingOptions) -> int:
    return round(tokens(o) / o.tokens_per_shard) or 1


def shard_bytes(o: ScalingOptions) -> float:
    return o.tokens_per_shard * o.bytes_per_token


def build_hours(o: ScalingOptions) -> float:
    run = float(o.responses) * (o.prompt_tokens + o.response_tokens)
    return 2e9 * o.parameters_billion * run * MODELS / (o.peak_tflops * 1e12 * o.mfu) / 3600


def student_hours(o: ScalingOptions) -> float:
    run = float(o.responses) * (o.prompt_tokens + o.response_tokens)
    return 6e9 * o.student_billion * run / (o.peak_tflops * 1e12 * o.student_mfu) / 3600


def shard_seconds(o: ScalingOptions) -> float:
    """Of one worker, for one shard."""
    return build_hours(o) * 3600 / o.gpus_per_worker / num_shards(o)


def size(count: float) -> str:
    """Bytes for a person, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
