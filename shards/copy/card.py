"""The data set card of a cache on the hub: README.md. Pure.

Its front matter tells `datasets` which files are the shards, since the folder has another Arrow file, the index.
"""

from pathlib import Path
from typing import Any

from shards.format.manifest import SHARD_GLOB, Manifest, read_provenance
from shards.format.schema import Role
from shards.places.url import Url

CARD_FILE = "README.md"
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
"""The hub's names of sizes: under a thousand rows, and ten times as many with each."""


def card(manifest: Manifest, folder: Path, url: Url, license: str | None) -> str:
    """README.md of a cache. folder: with its provenance.json, of which only names on the hub are shown."""
    plan = manifest.plan
    total = sum(entry.bytes for entry in manifest.entries)
    models = "".join(_model(role, plan.identity, read_provenance(folder)) for role in plan.roles)
    inside = url.prefix.split("/", 2)[2:]
    shards = "/".join([*inside, SHARD_GLOB])
    return f"""---
{_license(license)}tags:
- aligndistil
- distillation
- alignment
size_categories:
- {_size(plan.rows)}
configs:
- config_name: default
  data_files:
  - split: train
    path: "{shards}"
---

# A cache of teacher log-probs for AlignDistil

{plan.rows:,} responses with {plan.positions:,} response tokens in {len(plan.shards):,} shards, {total / 1e6:,.1f} MB.
Every response token has the log-probs of {len(plan.roles)} models on the tokens that matter for a teacher made of them,
and the weight of all other tokens ([AlignDistil](https://arxiv.org/abs/2503.02832)). A student is trained from it
without running a teacher.

| role | model | sha256 of the weights |
|---|---|---|
{models}
Served pairs (anchor/negative): {", ".join(map(str, plan.pairs))}. Values: {plan.values}. Vocabulary:
{plan.vocabulary_size:,} tokens.

## Use

    python -m student.train --shards {url} --output_dir student --gain 10
    python -m shards.inspect {url}
    python -m shards.copy {url} shards/

```python
from shards import ShardCache, TeacherSpec

cache = ShardCache("{url}")
cache[0]                                        # tokens, and log-probs of every role
cache.teacher([0, 1], TeacherSpec(gain=10))     # any teacher that the cache serves
```

`load_dataset` shows the rows as they are stored, without composing a teacher from them.

Build {plan.sha256}.
"""


def _model(role: Role, identity: Any, provenance: Any) -> str:
    """A row of the table of models. A folder of somebody's machine is not named."""
    recorded = identity["models"][role]
    commit = recorded.get("hub_commit")
    name = f"{provenance['models'][role]} at {commit}" if commit else "from a folder"
    return f"| {role} | {name} | {str(recorded.get('weights_sha256'))[:16]} |\n"


def _size(rows: int) -> str:
    return SIZES[min(len(SIZES) - 1, max(0, len(str(rows)) - 3))]


def _license(name: str | None) -> str:
    return f"license: {name}\n" if name else ""
