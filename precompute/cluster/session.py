"""The connection to a Ray cluster, or a cluster of this machine that ends with the command."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from precompute.cluster.options import LOCAL, ClusterOptions
from shards.errors import OptionError, first_line

LOCAL_STORE_BYTES = 1 << 30
"""Memory of a local cluster's object store. No shard and no tokens go there, only tables of about 50 bytes a row."""


@contextlib.contextmanager
def session(options: ClusterOptions) -> Iterator[Any]:
    """Ray, connected to the cluster of --ray. Raises OptionError if Ray is not installed or finds no cluster.

    A connection that the process has already is used, and stays.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    assert options.ray is not None
    with _one_line(options.ray):
        ray.init(address=options.ray, log_to_driver=False, logging_level=logging.ERROR, **_local_flags(options))
    try:
        yield ray
    finally:
        ray.shutdown()


def import_ray() -> Any:
    """Ray, which does not print what its machines say of a lost process: it is long, and one line of ours says it."""
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as exc:
        raise OptionError(f"ray: expected the extra ray (pip install 'aligndistil-offline[ray]'), got {exc}") from exc
    return ray


def logs_text(ray: Any) -> str:
    """Where Ray keeps what its processes print."""
    return (
        f"Ray's logs are in {ray.get_runtime_context().get_session_name()}/logs under its temporary folder (/tmp/ray)"
    )


def _local_flags(options: ClusterOptions) -> dict[str, Any]:
    if options.ray != LOCAL:
        return {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return {
        "num_cpus": max(os.cpu_count() or 1, options.workers or 1),
        "include_dashboard": False,
        "object_store_memory": LOCAL_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }


@contextlib.contextmanager
def _one_line(address: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, ValueError, RuntimeError, OSError, AssertionError) as exc:
        raise OptionError(f"ray: expected a cluster at {address}, got {first_line(exc)}") from exc
