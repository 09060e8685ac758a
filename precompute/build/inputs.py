"""The inputs of a build: models, tokenizers and data by their hashes; if there is work to do, the tokens and models."""

import functools
from dataclasses import dataclass
from typing import Any

import torch

from precompute.build.identity import build_identity, build_numerics, holds_build, with_tokens
from precompute.build.options import BuildOptions
from precompute.feeding.stages import Stages, marks_for
from precompute.feeding.transfer import transfer_for
from precompute.models.folders import check_vocabularies, identity, load_models, load_tokenizer
from precompute.models.roles import require_different_models
from precompute.models.tokenizer_identity import backend_json
from precompute.processes import Processes
from precompute.scoring.probe import Exact, default_spec, exact_logprobs, needs_probe, precision, probe_rows
from precompute.scoring.score import Scorer
from precompute.scoring.sharing import require_padding_free, require_shared_prompts
from precompute.tokens.corpus import Corpus, load_corpus, rows_sha256
from precompute.tokens.share import load_on_first
from shards.cli.device import resolve_device, resolve_kernels
from shards.cli.space import require_writable
from shards.errors import OptionError
from shards.format.schema import Role
from shards.modelfiles.find import ModelFolder, resolve
from shards.modelfiles.head import require_room
from shards.places.out import Out
from shards.spread import spread


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModels:
    """The models by name and hash; none is loaded. identity: of each model; tokenizer: the one that is used."""

    folders: dict[Role, ModelFolder]
    vocabulary: dict[str, int]
    tokenizer: Any
    identity: dict[Role, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSources:
    """The inputs by names and hashes. corpus: the tokenised data, if they were tokenised at the same time."""

    models: FoundModels
    identity: dict[str, Any]
    corpus: Corpus | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInputs:
    """Everything that a build has read before it loads a model. tokenizer_json: None if the tokenizer has none."""

    folders: dict[Role, ModelFolder]
    vocabulary: dict[str, int]
    corpus: Corpus
    identity: dict[str, Any]
    tokenizer_json: str | None = None

    @property
    def places(self) -> dict[str, str]:
        """The folder of each model, or its name on the hub."""
        found = {
            role: folder.name if folder.commit is not None else str(folder.path.resolve())
            for role, folder in self.folders.items()
        }
        return dict(sorted(found.items()))

    @property
    def vocabulary_size(self) -> int:
        """V: the tokenizer's largest id + 1; the widths of output layers may be larger."""
        return max(self.vocabulary.values()) + 1


def find_models(options: BuildOptions) -> FoundModels:
    """Find the models on this machine, compare their tokenizers, hash their weights. Raises ModelError, OptionError."""
    folders = {role: resolve(name) for role, name in options.model_names.items()}
    trust = options.trust_remote_code
    tokenizers = {role: load_tokenizer(folder, trust_remote_code=trust) for role, folder in folders.items()}
    vocabulary = check_vocabularies(tokenizers)
    size = max(vocabulary.values()) + 1
    if options.top_k > size:
        raise OptionError(f"top_k: expected at most the vocabulary's {size} tokens, got {options.top_k}")
    models = {role: identity(folder, trust_remote_code=trust) for role, folder in folders.items()}
    require_different_models(models, folders)
    return FoundModels(folders=folders, vocabulary=vocabulary, tokenizer=tokenizers["reference"], identity=models)


def find_sources(options: BuildOptions, place: Out, device: torch.device, processes: Processes) -> BuildSources:
    """Find the models, compare their tokenizers, hash the data.

    If the place holds no build yet, the first process also tokenises the data.
    """
    models = find_models(options)
    numbers = build_numerics(options, device)
    corpus = tokenized_if_new(options, place, models.tokenizer) if processes.is_first else None
    asked = build_identity(options, numbers, models.identity, models.tokenizer, data_sha256(options, corpus, processes))
    return BuildSources(models=models, identity=asked, corpus=corpus)


def tokenized_if_new(options: BuildOptions, place: Out, tokenizer: Any) -> Corpus | None:
    """The tokenised data if the place holds no build yet. Raises OptionError if nothing can be written there."""
    if holds_build(place):
        return None
    require_writable(place.folder, place.option)
    return tokenized(options, tokenizer)


def data_sha256(options: BuildOptions, corpus: Corpus | None, processes: Processes) -> str:
    """The sha256 of the rows of data, which are read for it unless they have been tokenised."""
    return corpus.data_sha256 if corpus else rows_sha256(options.data_sources, progress=processes.is_first)


def tokenized(options: BuildOptions, tokenizer: Any) -> Corpus:
    return load_corpus(
        options.data_sources,
        tokenizer=tokenizer,
        responses=options.responses,
        max_length=options.max_length,
        on_overlong=options.on_overlong,
        on_empty=options.on_empty,
        sample_pairs=options.sample_rows,
        progress=True,
    )


def read_inputs(options: BuildOptions, sources: BuildSources, processes: Processes) -> BuildInputs:
    """The inputs with the tokenised data. The first process tokenises for all."""
    expected = sources.identity["data"]["rows_sha256"]
    load = functools.partial(tokenized, options, sources.models.tokenizer)
    corpus = load_on_first(lambda: sources.corpus or load(), processes, rows_sha256=expected)
    asked = with_tokens(sources.identity, corpus.tokens_sha256)
    models = sources.models
    return BuildInputs(
        folders=models.folders,
        vocabulary=models.vocabulary,
        corpus=corpus,
        identity=asked,
        tokenizer_json=backend_json(models.tokenizer),
    )


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
        device_map=options.device_map,
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
    )


def measured_precision(options: BuildOptions, scorer: Scorer, exact: Exact) -> dict[str, Any]:
    """What the dtype of the bodies costs. Raises NonFiniteLogits for a body that overflows."""
    return precision(scorer, exact, default_spec(options.served_pairs)).to_json()


def load_scorer(options: BuildOptions, inputs: BuildInputs, local_rank: int = 0) -> Scorer:
    """The models on this process's device. Raises ModelError if the longest row does not fit into one."""
    assert options.chunk_positions is not None, "with_sizes has set it"
    device = resolve_device(torch, options.device, local_rank)
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
    if options.padding_free:
        require_padding_free(models, [inputs.corpus.responses[i] for i in spread(len(inputs.corpus.responses), 4)])
    if options.torch_compile:
        for role_model in models.values():
            role_model.compile()
    return Scorer(
        models=models,
        pairs=options.served_pairs,
        nodes=options.nodes,
        chunk_positions=options.chunk_positions,
        device=device,
        one_at_a_time=options.models_in_memory == "one",
        share_prompts=options.share_prompts,
        padding_free=options.padding_free,
        kernels=resolve_kernels(options.kernels, device.type),
        transfer=transfer_for(device),
        stages=Stages(marks_for(device)),
    )
