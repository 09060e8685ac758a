"""Faults to plant into a sound cache, for the tests of `shards.verify`."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
from fake_cache import with_scores

from shards.files import file_sums
from shards.format.encoding.seal import SEAL_KEYS, sealed
from shards.format.manifest import MANIFEST_FILE
from shards.format.schema import Pair
from shards.format.writer import json_bytes, write_bytes
from shards.verify.__main__ import verify
from shards.verify.rules import RULES

V = 24
CONTRAST, PLAIN = Pair("dpo", "reverse"), Pair("reference", "reference")


def require_only(folder, rule):
    """All faults of the cache; asserts that they are of this rule."""
    faults = list(verify(folder))
    assert faults, f"rule {rule} found nothing"
    assert {fault.rule for fault in faults} == {rule}, "\n".join(map(str, faults))
    for fault in faults:
        assert "\n" not in str(fault)
        assert str(fault).startswith(str(folder))
        assert str(fault).endswith(f"[rule {rule}: {RULES[rule]}]")
    return faults


# ---- files


def edit_manifest(folder, change):
    manifest = manifest_fields(folder)
    change(manifest)
    write_fields(folder, manifest)


def manifest_fields(folder):
    """The manifest as JSON, without its seal."""
    fields = json.loads((folder / MANIFEST_FILE).read_text())
    return {key: value for key, value in fields.items() if key not in SEAL_KEYS}


def write_fields(folder, fields):
    """Write the manifest with a seal that is right, as somebody would who knows how."""
    write_bytes(folder, MANIFEST_FILE, sealed(json_bytes(fields)))


def set_entry(folder, shard, **changed):
    edit_manifest(folder, lambda manifest: manifest["shards"][shard].update(changed))


def fix_entry(folder, shard):
    """Write the shard's current sums into the manifest."""
    path = folder / f"part-{shard:05d}.arrow"
    set_entry(folder, shard, **file_sums(path)._asdict())


def rewrite_shard(folder, change):
    """Write the first shard again from (record batch, metadata) pairs, and update the manifest."""
    path = folder / "part-00000.arrow"
    file = pa.ipc.open_file(pa.OSFile(str(path), "rb"))
    batches = [file.get_batch_with_custom_metadata(i) for i in range(file.num_record_batches)]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, file.schema) as writer:
        for batch, metadata in change([(found.batch, found.custom_metadata) for found in batches]):
            writer.write_batch(batch, custom_metadata=metadata)
    fix_entry(folder, 0)


# ---- values of a row


def changed(values, index, value):
    values = np.array(values)
    values[index] = value
    return values


def set_role(response, field, key, index, value):
    """One value of a column by role, negative or pair."""
    columns = getattr(response.scores, field)
    return with_scores(response, **{field: {**columns, key: changed(columns[key], index, value)}})


def full_position(response):
    """A position where all tokens are kept, its entries, and its kept next token."""
    n = int(np.flatnonzero(response.scores.support_count == V)[0])
    first = int(response.scores.support_count[:n].sum())
    return n, slice(first, first + V), int(response.input_ids[response.loss_mask][n])


def partial_position(response, *, kept):
    """A position with a tail, whose next token is kept or not."""
    scores, start = response.scores, 0
    for n, count in enumerate(scores.support_count):
        next_id = response.input_ids[response.loss_mask][n]
        if count < V and (next_id in scores.support_ids[start : start + count]) == kept:
            return n
        start += count
    raise AssertionError("no such position")


def set_reverse_distribution(response, change):
    """Change the log-probs under reverse at a position with all tokens kept; D_t and the next token's follow."""
    n, entries, next_id = full_position(response)
    logprobs_V = change(response.scores.logprobs["reverse"][entries].astype(np.float64), next_id)
    distance = np.abs(np.exp(response.scores.logprobs["dpo"][entries]) - np.exp(logprobs_V)).sum()
    response = set_role(response, "logprobs", "reverse", entries, logprobs_V)
    response = set_role(response, "next_logprob", "reverse", n, logprobs_V[next_id])
    return set_role(response, "l1_distance", "reverse", n, min(distance, 2.0))


def above_zero(logprobs_V, next_id):
    return np.where(np.arange(V) == next_id, 5e-5, -40.0)


def without_some_mass(logprobs_V, next_id):
    return np.where(np.arange(V) == next_id, logprobs_V, logprobs_V - 0.1)


def drop_last(response, field, key=None):
    value = getattr(response.scores, field)
    short = value[:-1] if key is None else {**value, key: np.ravel(value[key])[:-1]}
    return with_scores(response, **{field: short})


def move_mask_to_start(response):
    mask = response.loss_mask.copy()
    mask[np.flatnonzero(mask)[0]], mask[0] = False, True
    return replace(response, loss_mask=mask, response_start=0)


def move_count(response, count):
    """Keep `count` tokens at the first position, and at the next one what is left of both."""
    counts = response.scores.support_count.copy()
    counts[1] += counts[0] - count
    counts[0] = count
    return with_scores(response, support_count=counts)


def swap_first_ids(response):
    return set_first_ids(response, lambda first, second: (second, first))


def repeat_first_id(response):
    return set_first_ids(response, lambda first, second: (first, first))


def set_first_ids(response, change):
    """Change the first two ids of a position with so many."""
    n = int(np.flatnonzero(response.scores.support_count > 1)[0])
    first = int(response.scores.support_count[:n].sum())
    ids = response.scores.support_ids.copy()
    ids[first : first + 2] = change(*ids[first : first + 2])
    return with_scores(response, support_ids=ids)


def shift_tail(response, pair, amount):
    """Move the pair's log partitions at a position with a tail."""
    n = partial_position(response, kept=True)
    stored = response.scores.tail_logpartition[pair]
    return set_role(response, "tail_logpartition", pair, n, stored[n] + amount)


def raise_middle_node(response):
    amount = np.zeros(6)
    amount[3] = 0.5
    return shift_tail(response, CONTRAST, amount)


def set_next(response, role, kept, amount):
    n = partial_position(response, kept=kept)
    start = response.scores.next_logprob[role][n] if kept else response.scores.tail_logprob[role][n]
    return set_role(response, "next_logprob", role, n, start + amount)


def add_distance(response, amount):
    n, _, _ = full_position(response)
    return set_distance(response, response.scores.l1_distance["reverse"][n] + amount)


def set_distance(response, value):
    return set_role(response, "l1_distance", "reverse", full_position(response)[0], value)


def has_a_position_of_every_kind(response):
    count_N, ids = response.scores.support_count, response.scores.support_ids
    next_N = response.input_ids[response.loss_mask]
    starts_N = np.cumsum(count_N) - count_N
    kept_N = [next_N[n] in ids[starts_N[n] : starts_N[n] + count_N[n]] for n in range(len(count_N))]
    partial_N = count_N < V
    distances = response.scores.l1_distance["reverse"][count_N == V]
    return {True, False} <= {kept for kept, partial in zip(kept_N, partial_N, strict=True) if partial} and (
        len(distances) > 0 and 0.02 < distances[0] < 1.9
    )


ROW_FAULTS = {
    "names: another kind": (9, "sample_id", lambda r: replace(r, sample_id=f"{r.pair_id}/best")),
    "names: another pair": (9, "sample_id", lambda r: replace(r, pair_id=77)),
    "names: preference": (9, "chosen", lambda r: replace(r, chosen=not r.chosen)),
    "names: negative pair": (9, "pair_id", lambda r: replace(r, pair_id=-1)),
    "lengths: input_ids": (10, "loss_mask", lambda r: replace(r, input_ids=r.input_ids[:-1])),
    "lengths: mask": (10, "support_count", lambda r: replace(r, loss_mask=changed(r.loss_mask, -1, False))),
    "lengths: no token": (10, "loss_mask", lambda r: replace(r, loss_mask=np.zeros_like(r.loss_mask))),
    "lengths: ids": (10, "support_ids", lambda r: drop_last(r, "support_ids")),
    "lengths: log-probs": (10, "reference_logprobs", lambda r: drop_last(r, "logprobs", "reference")),
    "lengths: next": (10, "dpo_next_logprob", lambda r: drop_last(r, "next_logprob", "dpo")),
    "lengths: nodes": (10, "dpo_reverse_tail_logpartition", lambda r: drop_last(r, "tail_logpartition", CONTRAST)),
    "mask: start beyond": (11, "response_start", lambda r: replace(r, response_start=len(r.input_ids))),
    "mask: start negative": (11, "response_start", lambda r: replace(r, response_start=-1)),
    "mask: before start": (11, "loss_mask", lambda r: replace(r, response_start=r.response_start + 1)),
    "mask: first token": (11, "loss_mask", move_mask_to_start),
    "token ids: V": (12, "input_ids", lambda r: replace(r, input_ids=changed(r.input_ids, 0, V))),
    "token ids: negative": (12, "input_ids", lambda r: replace(r, input_ids=changed(r.input_ids, 0, -1))),
    "support: order": (13, "support_ids", swap_first_ids),
    "support: V": (13, "support_ids", lambda r: with_scores(r, support_ids=changed(r.scores.support_ids, -1, V))),
    "support: negative": (
        13,
        "support_ids",
        lambda r: with_scores(r, support_ids=changed(r.scores.support_ids, 0, -1)),
    ),
    "support: twice": (13, "support_ids", repeat_first_id),
    "support: none": (13, "support_count", lambda r: move_count(r, 0)),
    "support: below none": (13, "support_count", lambda r: move_count(r, -1)),
    "finite: nan": (14, "reverse_logprobs", lambda r: set_role(r, "logprobs", "reverse", 2, np.nan)),
    "finite: -inf kept": (14, "dpo_logprobs", lambda r: set_role(r, "logprobs", "dpo", -1, -np.inf)),
    "finite: next": (14, "dpo_next_logprob", lambda r: set_role(r, "next_logprob", "dpo", 0, -np.inf)),
    "finite: no tail": (
        14,
        "dpo_tail_logprob",
        lambda r: set_role(r, "tail_logprob", "dpo", partial_position(r, kept=True), -np.inf),
    ),
    "finite: a tail of nothing": (
        14,
        "reference_tail_logprob",
        lambda r: set_role(r, "tail_logprob", "reference", full_position(r)[0], -20.0),
    ),
    "finite: partition": (
        14,
        "dpo_reverse_tail_logpartition",
        lambda r: set_role(r, "tail_logpartition", CONTRAST, (partial_position(r, kept=True), 2), np.nan),
    ),
    "finite: a partition of nothing": (
        14,
        "dpo_reverse_tail_logpartition",
        lambda r: set_role(r, "tail_logpartition", CONTRAST, (full_position(r)[0], 2), -9.0),
    ),
    "log-probs": (15, "reverse_logprobs", lambda r: set_reverse_distribution(r, above_zero)),
    "mass": (16, "reverse_logprobs", lambda r: set_reverse_distribution(r, without_some_mass)),
    "next: kept": (17, "dpo_next_logprob", lambda r: set_next(r, "dpo", True, -1e-3)),
    "next: in the tail": (17, "reverse_next_logprob", lambda r: set_next(r, "reverse", False, 1e-3)),
    "distance: negative": (18, "l1_distance_reverse", lambda r: set_distance(r, -0.1)),
    "distance: over 2": (18, "l1_distance_reverse", lambda r: set_distance(r, 2.1)),
    "distance: too short": (18, "l1_distance_reverse", lambda r: add_distance(r, -1e-3)),
    "distance: too long": (18, "l1_distance_reverse", lambda r: add_distance(r, 1e-3)),
    "tail: dent": (19, "dpo_reverse_tail_logpartition", raise_middle_node),
    "tail: not the anchor's": (19, "dpo_reverse_tail_logpartition", lambda r: shift_tail(r, CONTRAST, 5.0)),
    "tail: not dpo's": (19, "reference_reference_tail_logpartition", lambda r: shift_tail(r, PLAIN, -0.5)),
}
