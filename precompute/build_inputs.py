"""What a build reads before any model is loaded: first what names the inputs, then the tokens where there is work."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precompute.corpus import Corpus, load_corpus, rows_sha256
from precompute.models import ModelFolder, check_vocabularies, identity, load_tokenizer, resolve
from precompute.options import BuildOptions
from precompute.plan import build_identity, holds_build, resolve_device, with_tokens
from precompute.processes import Processes
from precompute.roles import require_different_models
from precompute.share import load_on_first
from shards.errors import OptionError
from shards.schema import Role
from shards.space import require_writable


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a build is asked to read, by names and hashes; `corpus` where it was tokenised on the way."""

    folders: dict[Role, ModelFolder]
    vocabulary: dict[str, int]
    tokenizer: Any
    identity: dict[str, Any]
    corpus: Corpus | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a build has read, before any model is loaded."""

    folders: dict[Role, ModelFolder]
    vocabulary: dict[str, int]
    corpus: Corpus
    identity: dict[str, Any]

    @property
    def vocabulary_size(self) -> int:
        """V: the tokenizer's largest id + 1; the widths of output layers may be larger."""
        return max(self.vocabulary.values()) + 1


def find_sources(options: BuildOptions, processes: Processes) -> Sources:
    """Find the models, compare their tokenizers, hash the data.

    Where no build was begun the first process tokenises them while it is at it.
    """
    folders = {role: resolve(name) for role, name in options.model_names.items()}
    trust = options.trust_remote_code
    tokenizers = {role: load_tokenizer(folder, trust_remote_code=trust) for role, folder in folders.items()}
    vocabulary = check_vocabularies(tokenizers)
    size = max(vocabulary.values()) + 1
    if options.top_k > size:
        raise OptionError(f"top_k: expected at most the vocabulary's {size} tokens, got {options.top_k}")
    models = {role: identity(folder, trust_remote_code=trust) for role, folder in folders.items()}
    require_different_models(models, folders)
    device = resolve_device(options.device, processes.local_rank)
    tokenizer, corpus = tokenizers["reference"], None
    if processes.is_first and not holds_build(Path(options.out)):
        require_writable(Path(options.out))
        corpus = tokenized(options, tokenizer)
        data_sha256 = corpus.data_sha256
    else:
        show = processes.is_first
        data_sha256 = rows_sha256(options.data_sources, progress=show)
    asked = build_identity(options, device, models, tokenizer, data_sha256)
    return Sources(folders=folders, vocabulary=vocabulary, tokenizer=tokenizer, identity=asked, corpus=corpus)


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


def read_inputs(options: BuildOptions, sources: Sources, processes: Processes) -> Inputs:
    """The data, tokenised by the first process for all."""
    expected = sources.identity["data"]["rows_sha256"]
    load = functools.partial(tokenized, options, sources.tokenizer)
    corpus = load_on_first(lambda: sources.corpus or load(), processes, rows_sha256=expected)
    asked = with_tokens(sources.identity, corpus.tokens_sha256)
    return Inputs(folders=sources.folders, vocabulary=sources.vocabulary, corpus=corpus, identity=asked)
