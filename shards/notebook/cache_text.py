"""What a cache says of itself: one line, and a small table for a notebook. Pure, but for reading the manifest."""

from html import escape
from typing import Any

from shards.cli.text import counted
from shards.teacher.served import served_presets


def cache_facts(cache: Any) -> dict[str, str]:
    """Label -> text about a ShardCache."""
    plan = cache.plan
    size = sum(entry.bytes for entry in cache.manifest.entries)
    return {
        "cache": cache.name,
        "responses": f"{len(cache):,}, {plan.positions:,} response tokens",
        "size": f"{size / 1e6:,.1f} MB in {counted(len(plan.shards), 'shard')}, {plan.values} values",
        "models": ", ".join(plan.roles),
        "teachers": ", ".join(served_presets(plan)) or "no preset is served",
        "look at": "cache.show(0), cache.row(0).to_pandas(), cache.to_polars(['pair_id', 'num_tokens'])",
    }


def cache_text(cache: Any) -> str:
    facts = cache_facts(cache)
    return f"ShardCache({cache.name!r}: {facts['responses']}; {facts['models']}; teachers {facts['teachers']})"


def cache_html(cache: Any) -> str:
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in cache_facts(cache).items())
    return f"<table>{''.join(lines)}</table>"
