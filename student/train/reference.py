"""Finds the reference of a cache, which is the default student to start from."""

from pathlib import Path

from shards import ShardCache
from shards.errors import CacheMissing, ModelError
from shards.format.manifest import differences
from shards.modelfiles.find import ModelFolder, fingerprint, resolve


def reference_of(cache: ShardCache) -> ModelFolder:
    """The reference that the cache was built with; a hub model at the commit of the build.

    Raises ModelError if it is missing or has changed.
    """
    try:
        source = str(cache.provenance["models"]["reference"])
    except (CacheMissing, KeyError, TypeError) as exc:
        raise ModelError(f"{cache.name}: expected the place of its reference, found none; give --model") from exc
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise ModelError(f"{cache.name}: was built with the reference {source}, which is not there; give --model")
    recorded = cache.plan.identity["models"]["reference"]
    folder = resolve(source, recorded=recorded)
    changed = [name for name, _, _ in differences(recorded, fingerprint(folder)) if name.endswith("_sha256")]
    if changed:
        what = " and ".join(name.removesuffix("_sha256").replace(".", "'s ") for name in changed)
        raise ModelError(
            f"{cache.name}: expected the reference {source} as it was scored, got other {what}; give --model"
        )
    return folder
