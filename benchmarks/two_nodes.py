"""Run a command with a Ray cluster of two nodes, in a network of its own that has the loopback device alone.

    python benchmarks/two_nodes.py --cpus 2 COMMAND ...

The command finds the cluster's address in RAY_ADDRESS. Nodes of one machine are processes: what passes between them
crosses no cable. Needs a Linux that permits `unshare -n` or, for users who are not root, `unshare -rn`: nothing else
keeps a cluster, which asks nobody who they are, from other machines.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Any

SEPARATE = "TREADLE_SEPARATE_NETWORK"
OBJECT_STORE = 300 * 2**20
"""Bytes of each node's."""


def in_own_network(command: list[str]) -> None:
    """Become that command, in a network namespace of its own."""
    ways = (["unshare", "-n"], ["unshare", "-rn"])
    allowed = [
        way
        for way in ways
        if shutil.which("unshare") and subprocess.run([*way, "true"], capture_output=True, check=False).returncode == 0
    ]
    if not allowed:
        sys.exit("A cluster for measurements needs a network of its own, and `unshare -n` is not permitted here.")
    os.environ[SEPARATE] = "1"
    shell = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    os.execvp(allowed[0][0], [*allowed[0], *shell, *command])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpus", type=int, default=1, help="that each node offers")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if SEPARATE not in os.environ:
        in_own_network([sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        # Its own folder: otherwise whoever looks for "the" cluster of this machine would find this one.
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        os.environ.update(quiet, RAY_TMPDIR=folder)
        return with_cluster(options.cpus, options.command)


def with_cluster(cpus: int, command: list[str]) -> int:
    """The command's exit status."""
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": OBJECT_STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        environment = {**os.environ, "RAY_ADDRESS": str(cluster.address)}
        return subprocess.run(command, env=environment, check=False).returncode
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main())
