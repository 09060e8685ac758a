"""The reference of a cache, as the student that training starts from by default."""

from pathlib import Path

from shards import ShardCache
from shards.errors import CacheMissing, ModelError
from shards.find_model import ModelFolder, fingerprint, resolve
from shards.manifest import differences


def reference_of(cache: ShardCache) -> ModelFolder:
    """The reference that the cache was built with, from the hub at the commit of the build.

    Raises ModelError where it is gone, or not the same any more.
    """
    try:
        source = str(cache.provenance["models"]["reference"])
    except (CacheMissing, KeyError, TypeError) as exc:
        raise ModelError(f"{cache.folder}: expected the place of its reference, found none; give --model") from exc
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise ModelError(f"{cache.folder}: was built with the reference {source}, which is not there; give --model")
    recorded = cache.plan.identity["models"]["reference"]
    folder = resolve(source, recorded=recorded)
    changed = [name for name, _, _ in differences(recorded, fingerprint(folder)) if name.endswith("_sha256")]
    if changed:
        what = " and ".join(name.removesuffix("_sha256").replace(".", "'s ") for name in changed)
        raise ModelError(
            f"{cache.folder}: expected the reference {source} as it was scored, got other {what}; give --model"
        )
    return folder
