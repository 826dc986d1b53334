"""Studies: the seeds of one run, spread over the workers of a cluster.

Each worker trains some seeds, next to each other by number, with the loop that would train them here. A seed's numbers
follow from its key alone, so the run is the same, to the last bit, as one that a single device of a CPU trains, however
many workers there are. (A program that is compiled for several devices at once may round differently.)

A worker that is lost is started anew from the state that was last fetched, which is that of the last checkpoint, and
does again what it had done since.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from treadle import hoist
from treadle.algorithms.base import Algorithm, require
from treadle.environments.base import Environment
from treadle.environments.wrappers import Task
from treadle.errors import InvalidSetting
from treadle.loops.choose import LayoutName, LoopName, is_made, make_trainer, resolve
from treadle.loops.cluster.connection import Connection, connect
from treadle.loops.cluster.remote import Limits, Lost, Remote, WorkerFailed, answers, pickled, raise_failure
from treadle.loops.cluster.worker import Failure, Pulse
from treadle.loops.crew import Log, print_line
from treadle.loops.fused import Record
from treadle.loops.host import HostSeeds
from treadle.loops.seeds import FusedSeeds, Layout
from treadle.registry import as_float32


class RaySeeds:
    """Training of `num_seeds` seeds by `workers` workers of a cluster, each on one core of a CPU.

    The same interface as `FusedSeeds` and `HostSeeds`. What `state` returns has NumPy arrays; it is also what lost
    workers are restored from.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        environment: Any,
        total_timesteps: int,
        seed: int = 0,
        num_seeds: int = 1,
        loop: LoopName = "auto",
        keep_data: bool = False,
        layout: LayoutName = "auto",
        *,
        workers: int,
        address: str | None = None,
        imports: Sequence[str] = (),
        limits: Limits | None = None,
        log: Log = print_line,
    ):
        """Settings, spaces and environment are checked here, as `make_trainer` does, before there is a connection to
        the cluster at `address` (as `connect` makes it). No more workers are taken than there are seeds. Each runs the
        files `imports` first. `log` is told of workers that are lost.

        Raises what `make_trainer` and `connect` do, `TreadleError` for an environment that cannot be sent to another
        process, and `WorkerFailed` where no worker can be started.
        """
        require(workers >= 1, "workers", workers, "at least 1")
        require(num_seeds >= 1, "seeds", num_seeds, "at least 1")
        if is_made(environment):
            raise InvalidSetting(
                f"the environment {Task.of(environment).environment!r} is made already, and workers make their own. "
                "Give its name, or a function that makes it."
            )
        self.num_seeds, self._log = num_seeds, log
        alone = make_trainer(algorithm, environment, total_timesteps, seed, 1, loop, keep_data, layout)
        self.algorithm, self.spec, self.exact_resume = alone.algorithm, alone.spec, alone.exact_resume
        self.chunk_steps = alone.chunk_steps
        if isinstance(alone, HostSeeds):
            self._like = alone.shapes, jax.eval_shape(alone.algorithm.policy, alone.shapes.algorithm)
        else:
            self._like = jax.eval_shape(lambda: (alone.state, alone.policies()))
        alone.close()

        shares = np.array_split(np.arange(num_seeds), min(workers, num_seeds))
        self._shares = [range(int(share[0]), int(share[-1]) + 1) for share in shares]
        common = (algorithm, environment, total_timesteps, seed, loop, keep_data, layout)
        described = {"environment": environment, "algorithm": algorithm}
        programs = [pickled(SeedBatch, (share.start, len(share), *common), described) for share in self._shares]

        self._base: list[np.ndarray] | None = None  # leaves of all seeds; None: as they begin
        self._has_begun = False  # whether every worker has had a process
        self._done: list[int] = []  # the updates of each `advance` since then
        self._workers: list[Remote] = []
        self._connection: Connection = connect(address, len(self._shares))
        try:
            self._workers = [Remote(self._connection, p, imports, limits or Limits()) for p in programs]
            self._losses = [0] * len(programs)
            for worker in self._workers:
                worker.start()
            self._of_all("ready")
            self._has_begun = True
        except BaseException:
            self.close()
            raise

    def advance(self, num_updates: int) -> Record:
        """`num_updates` rounds of every seed, as the loop that serves reports them."""
        records = self._of_all("advance", num_updates)
        self._done.append(num_updates)
        return jax.tree.map(lambda *x: np.concatenate(x), *records)

    @property
    def state(self) -> Any:
        """What a checkpoint keeps of all seeds, stacked along a leading axis, as read-only NumPy arrays."""
        if self._base is None or self._done:
            leaves = _joined(self._of_all("state"))
            if self.exact_resume or self._done:  # a host loop that has not begun is repeated only by beginning
                self._base, self._done = leaves, []
        else:
            leaves = self._base
        return _from_host(leaves, self._like[0])

    def restore(self, state: Any) -> None:
        """Go on from a state as `state` returned it."""
        self._base, self._done = [x.copy() for x in _to_host(state)], []
        for worker, share in zip(self._workers, self._shares, strict=True):
            worker.call("restore", self._part(share))
        self._of_all("ready")

    def policies(self) -> PyTree:
        """What acting greedily needs, of all seeds."""
        return jax.tree.map(jnp.asarray, _from_host(_joined(self._of_all("policies")), self._like[1]))

    def processes(self) -> list[Pulse | None]:
        """Node and process of each worker, where they are known."""
        for worker in self._workers:
            worker.late()
        return [worker.seen for worker in self._workers]

    def close(self) -> None:
        """End the workers, and the connection if it was made here."""
        for worker in self._workers:
            worker.kill()
        self._workers = []
        self._connection.close()

    def _of_all(self, method: str, *arguments: Any) -> list[Any]:
        """The workers' answers, in order of seeds. Those that are lost meanwhile are started anew."""
        found: dict[int, Any] = {}
        numbers = {id(worker): number for number, worker in enumerate(self._workers)}
        calls = {worker.call(method, *arguments): worker for worker in self._workers}
        for worker, answer in answers(calls):
            number = numbers[id(worker)]
            if isinstance(answer, Lost):
                self._revive(number, answer)
                calls[worker.call(method, *arguments)] = worker
            elif isinstance(answer, Failure):
                raise_failure(answer, self._name(number))
            else:
                found[number], self._losses[number] = answer, 0
        return [found[number] for number in range(len(self._workers))]

    def _revive(self, number: int, lost: Lost) -> None:
        """Start a worker anew, and have it catch up. Does not wait for it."""
        limit = self._workers[number].limits.losses
        self._losses[number] += 1
        if lost.has_no_place and self._has_begun and not self._workers[number].shares_a_core:
            return self._squeeze_in(number, lost)
        if lost.is_final:
            raise WorkerFailed(f"{self._name(number)} cannot go on: {lost.reason}.")
        if self._losses[number] > limit:
            raise WorkerFailed(
                f"{self._name(number)} was lost {self._losses[number]} times in the same stretch of training, at last "
                f"because {lost.reason}. Does its environment end the process, or need more memory than there is?"
            )
        again = "" if self.exact_resume or self._base is None else ", its environments at the start of new episodes"
        self._log(f"{self._name(number)} was lost ({lost.reason}) and is started anew{again}")
        self._begin_again(number)

    def _squeeze_in(self, number: int, lost: Lost) -> None:
        """Start a worker for which no core is left, since a node left: the others wait for it, so it may share one."""
        self._log(f"{self._name(number)} has no place ({lost.reason}), and shares a core with another from now on")
        self._workers[number].shares_a_core = True
        self._begin_again(number)

    def _begin_again(self, number: int) -> None:
        worker = self._workers[number]
        worker.start()
        if self._base is not None or self._done:
            base = None if self._base is None else self._part(self._shares[number])
            worker.call("catch_up", base, self._done)

    def _part(self, share: range) -> list[np.ndarray]:
        """Of what is to be gone on from, some seeds'."""
        assert self._base is not None
        return [leaf[share.start : share.stop] for leaf in self._base]

    def _name(self, number: int) -> str:
        share = self._shares[number]
        seeds = f"seed {share[0]}" if len(share) == 1 else f"seeds {share[0]} to {share[-1]}"
        return f"worker {number} ({seeds})"


class SeedBatch:
    """In a worker: the trainer of its seeds. States and policies are lists of NumPy leaves, whose structure the driver
    knows."""

    def __init__(
        self,
        first: int,
        count: int,
        algorithm: Algorithm,
        environment: Any,
        total_timesteps: int,
        seed: int,
        loop: LoopName,
        keep_data: bool,
        layout: LayoutName,
    ):
        world, prepared = resolve(environment, loop), as_float32(algorithm.prepared())
        self._trainer: FusedSeeds | HostSeeds
        if isinstance(world, Environment):
            layouts: dict[str, Layout | None] = {"auto": None, "in-turn": "map", "together": "vmap"}
            how = layouts[layout]
            self._trainer = FusedSeeds(
                prepared, as_float32(world), total_timesteps, seed, count, how, keep_data, first=first
            )
        else:
            make: Any = world
            self._trainer = HostSeeds(
                prepared, lambda: make(algorithm.num_envs), total_timesteps, seed, count, keep_data, first=first
            )

    @property
    def stepping(self) -> float | None:
        """Seconds since the step began that a host environment is at; `None` in JAX's worlds, which cannot hang."""
        found = [made.stepping for made in getattr(self._trainer, "environments", ())]
        return max((seconds for seconds in found if seconds is not None), default=None)

    def ready(self) -> None:
        """Answered once all that was asked before is done."""

    def advance(self, num_updates: int) -> Record:
        return self._trainer.advance(num_updates)

    def state(self) -> list[np.ndarray]:
        return _to_host(self._trainer.state)

    def policies(self) -> list[np.ndarray]:
        return _to_host(self._trainer.policies())

    def restore(self, leaves: list[np.ndarray]) -> None:
        state: Any = jax.tree.map(jnp.asarray, _from_host(leaves, self._trainer.state))
        self._trainer.restore(state)

    def catch_up(self, leaves: list[np.ndarray] | None, done: list[int]) -> None:
        """Go on from there, or from the beginning, and do again what was done since."""
        if leaves is not None:
            self.restore(leaves)
        for num_updates in done:
            self._trainer.advance(num_updates)


def _to_host(tree: PyTree) -> list[np.ndarray]:
    """The leaves as NumPy arrays, keys as their data."""
    leaves = [jax.random.key_data(x) if hoist.is_key(x) else x for x in jax.tree.leaves(tree)]
    return [np.asarray(x) for x in jax.device_get(leaves)]


def _from_host(leaves: list[np.ndarray], like: PyTree) -> PyTree:
    """The tree of such leaves in the structure of `like`."""
    expected, structure = jax.tree.flatten(like)

    def leaf(data: np.ndarray, example: Any) -> Any:
        return (
            jax.random.wrap_key_data(jnp.asarray(data), impl=_implementation(example))
            if hoist.is_key(example)
            else data
        )

    return jax.tree.unflatten(structure, [leaf(x, e) for x, e in zip(leaves, expected, strict=True)])


def _implementation(example: Any) -> Any:
    """Of keys, also of those that are described by their type alone."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), example)
    return found[0]


def _joined(parts: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Leaves of all seeds from those of each worker, never to be written to."""
    leaves = [np.concatenate(x) for x in zip(*parts, strict=True)]
    for leaf in leaves:
        leaf.setflags(write=False)
    return leaves
