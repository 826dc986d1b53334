"""A cluster of two nodes on this machine, for the tests of this folder.

They run by `make test-cluster` alone, because they start many processes: without TREADLE_TEST_CLUSTER=1 nothing here
is collected.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

collect_ignore_glob = [] if os.environ.get("TREADLE_TEST_CLUSTER") == "1" else ["test_*.py"]

CPUS = 2
"""Of each node."""
PROMPT = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""A node that is gone is missed within seconds instead of half a minute."""


def pytest_configure(config: pytest.Config) -> None:
    """Ray's own warnings, apart from which warnings are errors here too."""
    for ignored in (
        # Ray's processes are begun by fork and exec, between which no thread is needed.
        r"ignore:os.fork\(\) was called:RuntimeWarning",
    ):
        config.addinivalue_line("filterwarnings", ignored)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Two nodes with two CPUs each. Whoever removes a node adds one."""
    from ray.cluster_utils import Cluster

    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": CPUS, "include_dashboard": False, "_system_config": PROMPT},
    )
    made.add_node(num_cpus=CPUS)
    yield made
    made.shutdown()


@pytest.fixture
def address(cluster: Any) -> str:
    """Where the cluster is, to a process that is not connected to it."""
    return cluster.address


@pytest.fixture(scope="module")
def connected(cluster: Any) -> Iterator[Any]:
    """The cluster, to which this process is connected while a module's tests run."""
    from treadle.loops.cluster.connection import connect

    with connect(cluster.address):
        yield cluster
