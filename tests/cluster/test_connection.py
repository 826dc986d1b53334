"""The connection to a cluster: whatever is wrong with it is told in a sentence, and in time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import ray

from treadle.errors import InvalidSetting, TreadleError
from treadle.loops.cluster.connection import connect, worker_environment


@pytest.fixture(autouse=True)
def _not_connected() -> Iterator[None]:
    ray.shutdown()
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    "address", ["", "localhost", "localhost:", ":6379", "a:b", "10.0.0.1:0", "h:70000", "ray://h:1"]
)
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(InvalidSetting, match=r"it must be HOST:PORT, such as"):
        connect(address)


def test_an_address_at_which_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(TreadleError, match=rf"the cluster at 127.0.0.1:{port} cannot be reached \(.*refused\)"):
        connect(f"127.0.0.1:{port}")


def test_an_address_at_which_something_else_listens():
    before = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(TreadleError, match=rf"what answers at 127.0.0.1:{port} is no Ray cluster"):
            connect(f"127.0.0.1:{port}", seconds=4)
    assert time.monotonic() - before < 8


def test_without_ray_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TreadleError, match=r'pip install "treadle\[cluster\]"'):
        connect()


def test_more_workers_than_the_cluster_has_cpus(address):
    with pytest.raises(
        TreadleError, match=r"workers \(--workers\) was 5, .* 2 nodes with 4 CPUs in all. Take at most 4"
    ):
        connect(address, workers=5)
    assert not ray.is_initialized()


def test_a_cluster_is_joined_and_left(address):
    with connect(address, workers=4) as connection:
        assert not connection.is_ours
        assert len(connection.nodes()) == 2 and connection.cpus() == 4
        assert connection.room() == "2 nodes with 4 CPUs in all, of which 4 are free"
    assert not ray.is_initialized()


def test_who_is_connected_already_stays_so(address):
    with connect(address):
        with connect() as second, connect(address) as third:
            assert second.cpus() == third.cpus() == 4
        assert ray.is_initialized()
        with pytest.raises(TreadleError, match=r"connected to the cluster at .* already, and was to use"):
            connect("127.0.0.1:1")
        with pytest.raises(TreadleError, match=r"was to use the one at 192\.0\.2\.9:"):
            connect(f"192.0.2.9:{address.rpartition(':')[2]}")


ALONE = """
import os, ray
from treadle.loops.cluster.connection import connect
with connect(workers=3) as connection:
    assert connection.is_ours and connection.cpus() >= 3
    (node,) = connection.nodes()
    assert node["NodeManagerAddress"] == "127.0.0.1", node
    assert ray.get(ray.remote(lambda: os.getpid()).remote(), timeout=60) != os.getpid()
assert not ray.is_initialized()
"""


def test_without_an_address_a_cluster_of_this_machine_begins(cluster):
    """Although there is another. In a process of its own: one that has had a cluster of its own cannot run actors in
    another cluster (Ray 2.60)."""
    ended = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""


def test_a_worker_computes_on_one_core_of_a_cpu_and_finds_the_same_modules(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = worker_environment()
    assert found["JAX_PLATFORMS"] == "cpu" and found["JAX_NUM_CPU_DEVICES"] == found["OMP_NUM_THREADS"] == "1"
    assert found["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path)
    assert found["JAX_ENABLE_X64"] == "False"


def test_nobody_pays_for_ray_who_does_not_use_it():
    program = "import sys, treadle, treadle.cli, treadle.loops.choose; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
