"""The connection to a Ray cluster: one that is there already, or one of this machine alone."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import re
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from treadle.algorithms.base import require
from treadle.errors import InvalidSetting, TreadleError
from treadle.loops.execution import available_cores

"""Takes a line for the user."""

INSTALL = 'pip install "treadle[cluster]"'


class Connection:
    """This process as a driver of a cluster. Whoever closes it ends the cluster if it was started by `connect`, leaves
    it if it was joined by `connect`, and changes nothing if the process was connected before."""

    def __init__(self, was_made: bool, is_ours: bool):
        self._was_made = was_made
        self.is_ours = is_ours
        """Whether the cluster was started for this connection."""

    def nodes(self) -> list[dict[str, Any]]:
        """The cluster's nodes that are alive, as Ray describes them."""
        import ray

        return [node for node in ray.nodes() if node["Alive"]]

    def cpus(self) -> int:
        """CPUs of all nodes, whether they are in use or not."""
        return int(sum(node["Resources"].get("CPU", 0) for node in self.nodes()))

    def room(self) -> str:
        """What the cluster has, such as `2 nodes with 4 CPUs in all, of which 0 are free`."""
        import ray

        nodes, free = len(self.nodes()), int(ray.available_resources().get("CPU", 0))
        return f"{_count(nodes, 'node')} with {_count(self.cpus(), 'CPU')} in all, of which {free} are free"

    def close(self) -> None:
        """Leave the cluster, if `connect` joined or started it."""
        if self._was_made:
            self._was_made = False
            import ray

            ray.shutdown()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(address: str | None = None, workers: int = 1, seconds: float = 30.0) -> Connection:
    """A connection to the cluster at `address` (`HOST:PORT`), or without one to a cluster of this machine alone, which
    is started for it and which other machines do not reach. A process that is connected already stays so.

    Raises `TreadleError` where Ray is not installed, where nothing answers within so many `seconds`, and where the
    cluster has fewer CPUs than `workers`; `InvalidSetting` for an address that is none.
    """
    require(workers >= 1, "workers", workers, "at least 1")
    host_port = None if address is None else _parsed(address)
    try:
        import ray
    except ImportError as error:
        raise TreadleError(f"a cluster needs Ray, which could not be imported ({error}): {INSTALL}") from None
    if ray.is_initialized():
        _check_same(host_port)
        connection = Connection(was_made=False, is_ours=False)
    else:
        _quieten()
        connection = _start(workers, seconds) if host_port is None else _join(host_port, seconds)
    try:
        _check_room(connection, workers)
    except BaseException:
        connection.close()
        raise
    return connection


def worker_environment() -> dict[str, str]:
    """The environment variables of a worker's process: one device and one thread of a CPU; otherwise what the numbers
    depend on, and where modules are found, as in this process."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    jax_own = {name: value for name, value in os.environ.items() if name.startswith("JAX_") or name == "XLA_FLAGS"}
    values = {name: jax.config.values.get(name) for name in _NUMERIC}
    numeric = {name.upper(): str(value) for name, value in values.items() if value is not None}
    cpu = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return jax_own | numeric | threads | cpu | {"PYTHONPATH": os.pathsep.join(_search_path())}


_NUMERIC = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_disable_most_optimizations",
)


def _search_path() -> list[str]:
    """Where this process finds modules, apart from what Python itself brings."""
    own = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    places = [os.path.abspath(place or ".") for place in sys.path]
    return [place for place in places if not place.startswith(own) and os.path.isdir(place)]


def _parsed(address: str) -> tuple[str, int]:
    """Host and port. Raises `InvalidSetting`."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})", address)
    if found is None or not 1 <= int(found[2]) <= 65535:
        raise InvalidSetting(
            f"the cluster's address was '{address}'; it must be HOST:PORT, such as 10.0.0.5:6379, the address that "
            "`ray start --head` prints."
        )
    return found[1].strip("[]"), int(found[2])


def _check_same(host_port: tuple[str, int] | None) -> None:
    """Raise `TreadleError` where this process is connected to another cluster than the one that was asked for."""
    if host_port is None:
        return
    import ray

    own = ray.get_runtime_context().gcs_address
    if int(own.rpartition(":")[2]) != host_port[1] or not _is_same_host(host_port[0], own.rpartition(":")[0]):
        raise TreadleError(
            f"this process is connected to the cluster at {own} already, and was to use the one at "
            f"{_joined(host_port)}. Call ray.shutdown() first, or leave the address out."
        )


def _is_same_host(given: str, own: str) -> bool:
    """Whether two names are of one machine; that of loopback is of whichever machine the cluster has here."""
    places = [_addresses(name.strip("[]")) for name in (given, own)]
    return bool(places[0] & places[1]) or any(ipaddress.ip_address(place).is_loopback for place in places[0])


def _addresses(host: str) -> set[str]:
    with contextlib.suppress(OSError):
        return {str(found[4][0]).partition("%")[0] for found in socket.getaddrinfo(host, None)}
    return set()


def _check_room(connection: Connection, workers: int) -> None:
    cpus, nodes = connection.cpus(), len(connection.nodes())
    if workers > cpus:
        raise TreadleError(
            f"workers (--workers) was {workers}, each of which takes a CPU, and the cluster has "
            f"{_count(nodes, 'node')} with {_count(cpus, 'CPU')} in all. Take at most {cpus} workers, or add nodes to "
            "the cluster (ray start --address=HOST:PORT)."
        )


def _start(workers: int, seconds: float) -> Connection:
    """A cluster of this machine alone."""
    cpus = max(available_cores(), workers)
    with _on_loopback():
        # By its address: otherwise Ray would join a cluster that somebody else has started here.
        error = _init(seconds, address="local", num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1")
    if isinstance(error, TimeoutError):
        raise TreadleError(
            f"Ray did not start on this machine within {seconds:g} seconds. Is the machine busy? Try again, or start "
            "a cluster (ray start --head) and give its address."
        )
    if error is not None:
        raise TreadleError(f"Ray could not be started on this machine: {_last_line(error)}") from error
    return Connection(was_made=True, is_ours=True)


def _join(host_port: tuple[str, int], seconds: float) -> Connection:
    """A connection to a cluster that runs, of which this machine is a node."""
    until, address = time.monotonic() + seconds, _joined(host_port)
    advice = "Is that the address that `ray start --head` printed, and does the cluster still run?"
    try:
        socket.create_connection(host_port, seconds).close()
    except OSError as error:
        why = "did not answer" if isinstance(error, TimeoutError) else f"cannot be reached ({error.strerror or error})"
        raise TreadleError(f"the cluster at {address} {why} within {seconds:g} seconds. {advice}") from None
    if not _is_cluster(address, until - time.monotonic()):
        raise TreadleError(f"what answers at {address} is no Ray cluster that this Ray understands. {advice}")
    error = _init(max(1.0, until - time.monotonic()), address=address)
    if isinstance(error, TimeoutError):
        raise TreadleError(
            f"the cluster at {address} did not take this process in within {seconds:g} seconds. {advice}"
        )
    if error is not None:
        raise TreadleError(
            f"the cluster at {address} did not take this process in: {_last_line(error)} This machine must be a "
            f"node of it: ray start --address={address}"
        ) from error
    return Connection(was_made=True, is_ours=False)


def _is_cluster(address: str, seconds: float) -> bool:
    """Whether a cluster's head answers there. Asked in a process of its own: Ray ends a process that waits in vain."""
    program = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
    try:
        ended = subprocess.run(
            [sys.executable, "-c", program, address], capture_output=True, timeout=max(1.0, seconds), check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return ended.returncode == 0


def _init(seconds: float, **options: Any) -> BaseException | None:
    """`ray.init`, which can hang, for so long at most; what it raised.

    In a thread, which leaves signals alone, too. It stays for as long as the process does, because the processes that
    Ray begins end with the thread that began them.
    """
    import ray

    raised: list[BaseException] = []
    ended = threading.Event()

    def init() -> None:
        try:
            with warnings.catch_warnings():
                # Ray's processes are begun by fork and exec, between which no thread is needed.
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                ray.init(log_to_driver=False, configure_logging=False, logging_level=logging.ERROR, **options)
            _hush()
        except BaseException as error:
            raised.append(error)
        ended.set()
        threading.Event().wait()

    threading.Thread(target=init, daemon=True, name="treadle-ray-init").start()
    if not ended.wait(seconds):
        return TimeoutError()
    return raised[0] if raised else None


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """While it lasts Ray keeps 127.0.0.1, in the place of which it would take an address that other machines reach."""
    from ray._private import ray_constants

    former = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    if former is not None:
        ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        if former is not None:
            ray_constants.ENABLE_RAY_CLUSTER = former


def _quieten() -> None:
    """No statistics of use sent, no hints, and no chatter, unless the user wants it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)


def _hush() -> None:
    """Ray tells on stdout of each process that died, in ten lines; Treadle tells of it in one."""
    from ray._private import worker

    said = getattr(worker, "print_to_stdstream", None)
    if said is None or hasattr(said, "is_hushed"):
        return

    def say(data: dict[str, Any], *rest: Any, **options: Any) -> None:
        if data.get("pid") != "raylet":
            said(data, *rest, **options)

    say.is_hushed = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = say


def _joined(host_port: tuple[str, int]) -> str:
    host, port = host_port
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
