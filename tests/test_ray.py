"""Builds on a real Ray cluster of nodes of this machine. It ends with these tests."""

import importlib.util
import os
import signal

import pytest
import torch
from conftest import build_options
from test_build import contents

from precompute.build.build import build
from precompute.cluster.members import Member, Task
from precompute.tokens import token_store
from shards.errors import CacheConflict

if importlib.util.find_spec("ray") is None:  # it is imported where its messages are turned off
    pytest.skip("needs the extra ray", allow_module_level=True)

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_log_monitor": False}
SETTINGS = {"top_k": 5, "max_top_k": 12, "tokens_per_shard": 15}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without workers, and a node with another version of jinja2 (`stranger`): workers load for six seconds."""
    from precompute.cluster.session import import_ray

    ray = import_ray()
    from ray.cluster_utils import Cluster

    fake = tmp_path_factory.mktemp("libraries")
    (fake / "jinja2-9.9.dist-info").mkdir()
    (fake / "jinja2-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: jinja2\nVersion: 9.9\n")
    path = os.pathsep.join(filter(None, [str(fake), os.environ.get("PYTHONPATH")]))
    head = NODE | {"include_dashboard": False, "num_cpus": 0}
    found = Cluster(initialize_head=True, head_node_args=head)
    found.stranger = found.add_node(env_vars={"PYTHONPATH": path}, **NODE)
    ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()


def test_a_worker_with_another_version_of_a_library_is_refused_before_a_byte_is_written(
    cluster, trio_folders, pairs_file, tmp_path
):
    with pytest.raises(CacheConflict) as caught:
        build(build_options(trio_folders, pairs_file, tmp_path / "out", ray="auto", workers=1, **SETTINGS))
    assert "has other inputs than the build, numerics.versions.jinja2: expected " in str(caught.value)
    assert str(caught.value).endswith('got "9.9"') and not (tmp_path / "out").exists()


def test_the_bytes_are_those_of_one_process_though_a_worker_is_killed_and_the_tokens_are_sent(
    cluster, trio_folders, pairs_file, tmp_path, monkeypatch, capsys
):
    torch.set_num_threads(2)  # Ray gives its actors one
    try:
        build(build_options(trio_folders, pairs_file, tmp_path / "one", **SETTINGS))
        cluster.remove_node(cluster.stranger)
        for _ in range(2):
            cluster.add_node(**NODE)
        killed, begin = [], Member.begin

        def begin_and_die(self, work, *args, **flags):
            begin(self, work, *args, **flags)
            if isinstance(work, Task) and work.name == "shard 2" and not killed:
                killed.append(self)
                os.kill(self.pid, signal.SIGKILL)

        monkeypatch.setattr(Member, "begin", begin_and_die)
        monkeypatch.setattr(token_store.platform, "node", lambda: "elsewhere")  # in this process only
        capsys.readouterr()
        build(build_options(trio_folders, pairs_file, tmp_path / "ray", ray="auto", workers=2, **SETTINGS))
    finally:
        torch.set_num_threads(1)
    assert killed and contents(tmp_path / "one") == contents(tmp_path / "ray")
    printed = capsys.readouterr()
    assert "was lost in shard 2, which is begun again (1 of 3 retries)" in printed.err
    assert "A worker died or was killed" not in printed.out + printed.err
