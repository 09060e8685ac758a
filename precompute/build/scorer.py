"""Loads the models of a build as a Scorer, and before them float32 bodies for the precision probe."""

import torch

from precompute.build.inputs import BuildInputs
from precompute.build.options import BuildOptions
from precompute.models.folders import load_models
from precompute.processes import Processes
from precompute.scoring.probe import Exact, exact_logprobs, needs_probe, probe_rows
from precompute.scoring.score import Scorer, require_shared_prompts
from shards.cli.device import resolve_device
from shards.modelfiles.head import require_room


def probe(options: BuildOptions, inputs: BuildInputs) -> Exact | None:
    """Float32 log-probs of a few positions, for the precision probe; None if the bodies are in float32 themselves."""
    found = inputs.identity["numerics"]
    if not needs_probe(found):
        return None
    return exact_logprobs(
        inputs.folders,
        inputs.vocabulary_size,
        probe_rows(inputs.corpus.responses),
        numerics=found,
        device=resolve_device(torch, options.device, 0),
        batch_tokens=options.batch_tokens,
        device_map=options.device_map,
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
    )


def load_scorer(options: BuildOptions, inputs: BuildInputs, processes: Processes) -> Scorer:
    """The models on this process's device. Raises ModelError if the longest row does not fit into one."""
    device = resolve_device(torch, options.device, processes.local_rank)
    models = load_models(
        inputs.folders,
        inputs.vocabulary_size,
        dtype=options.dtype,
        device=str(device),
        one_at_a_time=options.models_in_memory == "one",
        device_map=options.device_map,
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
    )
    longest, pair = inputs.corpus.facts.longest, inputs.corpus.facts.longest_pair
    for role, role_model in models.items():
        require_room(role_model.model.config, longest, role)
    if options.share_prompts and pair is not None:
        require_shared_prompts(models, pair, longest)
    return Scorer(
        models=models,
        pairs=options.served_pairs,
        nodes=options.nodes,
        chunk_positions=options.chunk_positions,
        device=device,
        one_at_a_time=options.models_in_memory == "one",
        share_prompts=options.share_prompts,
    )
