"""Training by many workers: which engine runs them, and the trainer around their learners."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from treadle import registry
from treadle.algorithms.base import Algorithm, require
from treadle.environments.base import Environment
from treadle.errors import InvalidSetting
from treadle.loops.desk import Desk, LearnerState
from treadle.loops.execution import available_cores
from treadle.loops.fused import Record
from treadle.loops.seeding import purpose, seed_key
from treadle.loops.threads import Threads
from treadle.loops.workers import HostPlan, Post, Shapes, World, learner_programs
from treadle.types import Counter, Spec

EngineName = Literal["auto", "none", "threads", "ray"]
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Crew:
    """By whom a run's steps are taken."""

    engine: EngineName = "auto"
    """What workers are: `threads` of this process, or actors of `ray` on many machines. `none`: no workers, one loop.
    `auto`: threads where --workers is given or the algorithm is asynchronous (a3c), else none."""
    workers: int | None = None
    """Workers side by side; as many as this process may use cores unless given. With `ray` and several seeds each
    trains some of the seeds."""
    address: str | None = None
    """HOST:PORT of a Ray cluster; one is started on this machine unless given."""
    max_staleness: int = 0
    """Rollouts of a policy that is up to so many updates old still teach, where the algorithm corrects for it; older
    ones are dropped. Gradients are applied whatever their age."""
    patience: float | None = 2.0
    """A rollout that takes so many times as long as they usually do is not waited for: another worker begins one in its
    place. None: every update takes a rollout of every worker."""
    worker_timeout: float = 120.0
    """Seconds after which a worker that does not answer is replaced."""

    def check(self) -> None:
        """Raise `InvalidSetting` for a value outside its range."""
        engines = ("auto", "none", "threads", "ray")
        require(self.engine in engines, "engine", repr(self.engine), f"one of {', '.join(engines)}")
        require(self.workers is None or self.workers >= 1, "workers", self.workers, "at least 1")
        require(self.max_staleness >= 0, "max_staleness", self.max_staleness, "0 or more")
        patience, timeout = self.patience, self.worker_timeout
        require(patience is None or 1 <= patience < math.inf, "patience", patience, "at least 1, or None")
        require(0 < timeout < math.inf, "worker_timeout", timeout, "greater than 0 seconds, and finite")
        if self.address is not None and self.engine != "ray":
            raise InvalidSetting(f"--address was {self.address}, which is for --engine ray. Give both, or neither.")
        if self.workers is not None and self.engine == "none":
            raise InvalidSetting(
                f"--engine none has no workers, and --workers was {self.workers}. Leave one of them out."
            )

    def engine_for(self, algorithm: Algorithm, loop: str = "auto") -> Literal["none", "threads", "ray"]:
        """What serves an algorithm."""
        if self.engine != "auto":
            return self.engine
        if loop == "fused" and self.workers is None:
            return "none"
        return "threads" if self.workers is not None or algorithm.workers == "gradients" else "none"

    @property
    def engine_is_given(self) -> bool:
        """Whether workers were asked for."""
        return self.engine in ("threads", "ray") or self.workers is not None

    def count(self) -> int:
        """Workers in this process, or as many elsewhere."""
        return self.workers or available_cores()


class Engine(Protocol):
    """Workers, wherever they are."""

    def run(self, desk: Desk) -> None:
        """Work until the desk is done."""
        ...

    def rest(self) -> None:
        """End the workers; a later `run` begins with fresh ones."""
        ...

    def close(self) -> None:
        """End the workers, for good."""
        ...


class CrewSeeds:
    """Training of `num_seeds` seeds, one after the other, each by many workers.

    The same interface as `FusedSeeds`. `resume` continues with the same parameters and schedules, but begins new
    episodes. Workers wait for nobody, so that two runs of a seed are alike but not equal, but for rollouts with a
    `patience` of `None` and no staleness.
    """

    exact_resume = False
    what_begins_anew = "Workers begin new episodes, all else continues."

    def __init__(
        self,
        algorithm: Algorithm,
        world: World,
        spec: Spec,
        crew: Crew,
        seed: int = 0,
        num_seeds: int = 1,
        masked: bool = False,
        to_learn: bool = True,
        log: Log | None = None,
    ):
        """`spec` is the learner's, of all environments of a seed together. `masked`: whether host environments give
        rows that do not count. One that is not `to_learn` has no workers."""
        self.algorithm, self.spec, self.num_seeds, self.crew = algorithm, spec, num_seeds, crew
        in_jax = isinstance(world, Environment)
        # Where steps may take long, a stop is to be noticed soon.
        self.chunk_steps = 5_000 if in_jax and crew.engine == "threads" else 500
        count = crew.count()
        check_crew(algorithm, crew, count)
        log = log or print_line
        gradients = algorithm.workers == "gradients"
        post = Post(algorithm, world, spec.num_envs if gradients else spec.num_envs // count)
        plan = Shapes.of(world) if in_jax else HostPlan.of(spec, masked)
        programs = learner_programs(Shapes.of(algorithm), plan)
        settings = programs.settings.pack(algorithm)
        self._desks: list[Desk] = []
        self._engines: list[Engine] = []
        for index in range(num_seeds):
            key = seed_key(seed, index)
            buffers, _ = programs.init(settings, purpose(key, "init"), spec.total_timesteps)
            state = LearnerState(programs.state.unpack(buffers), Counter.zero(), key)
            needed = 1 if gradients else count
            self._desks.append(Desk(post, programs, state, needed, crew.max_staleness, crew.patience))
            if to_learn:
                self._engines.append(make_engine(crew, post, count, purpose(key, "workers"), log))

    @property
    def state(self) -> LearnerState:
        """What a checkpoint keeps of all seeds, stacked along a leading axis."""
        return jax.tree.map(lambda *x: jnp.stack(x), *[desk.state for desk in self._desks])

    def restore(self, state: LearnerState) -> None:
        """Go on from a state as `state` returned it."""
        for index, desk in enumerate(self._desks):
            own = jax.tree.map(lambda x, i=index: x[i], state)
            desk.restore(own._replace(algorithm=self.algorithm.begin_episodes(own.algorithm)))

    def advance(self, num_updates: int) -> Record:
        """`num_updates` updates of every seed: metrics averaged `[S, 1]`, episodes `[S, N, T, B]`."""
        records = []
        for desk, engine in zip(self._desks, self._engines, strict=True):
            desk.ask(num_updates)
            engine.run(desk)
            records.append(desk.take_record())
        return jax.tree.map(lambda *x: np.stack(x), *records)

    def policies(self) -> PyTree:
        """What acting greedily needs, of all seeds."""
        return self.algorithm.policy(self.state.algorithm)

    def rest(self) -> None:
        """Give back what workers hold, until the next `advance`, in which they begin new episodes."""
        for engine in self._engines:
            engine.rest()

    def close(self) -> None:
        """End the workers."""
        for engine in self._engines:
            engine.close()


def make_engine(crew: Crew, post: Post, count: int, key: Any, log: Log) -> Engine:
    """The workers of one seed."""
    if crew.engine == "ray":
        from treadle.loops.cluster.workers import RayWorkers

        return RayWorkers(post, count, key, crew.address, crew.worker_timeout, log)
    return Threads(post, count, key, crew.worker_timeout, log)


def check_used(crew: Crew, instead: str) -> None:
    """Raise `InvalidSetting` for what only workers of one learner have, where there are none; `instead` says what there
    is."""
    for name in ("max_staleness", "patience"):
        value = getattr(crew, name)
        if value != getattr(Crew, name):
            flag = f"--{name.replace('_', '-')}"
            raise InvalidSetting(f"{name} ({flag}) was {value}; it is for workers of one learner, and {instead}.")


def check_crew(algorithm: Algorithm, crew: Crew, count: int) -> None:
    """Raise `InvalidSetting` where an algorithm cannot learn from such workers."""
    if algorithm.workers is None:
        able = [name for name, (cls, _) in registry.algorithms.entries().items() if cls.workers is not None]
        raise InvalidSetting(
            f"{algorithm.name} learns from the steps of one stream, and workers bring many. Leave --workers and "
            f"--engine out, or take one of {', '.join(able)}."
        )
    if algorithm.workers == "gradients":
        return
    envs = algorithm.num_envs
    if envs % count:
        raise InvalidSetting(
            f"workers (--workers) was {count} and num_envs (--num-envs) is {envs}: the environments of an update are "
            f"shared out among the workers, so it must be a multiple of their number, such as --num-envs "
            f"{-(-envs // count) * count}."
        )
    if algorithm.needs_same_environments and crew.patience is not None:
        raise InvalidSetting(
            f"{algorithm.name} as it is set follows each environment (normalise_rewards does), and rollouts come from "
            "whichever worker is first. Leave that out, or wait for every worker: --patience None."
        )
    if crew.max_staleness > 0 and not algorithm.corrects_staleness:
        raise InvalidSetting(
            f"max_staleness (--max-staleness) was {crew.max_staleness}, and {algorithm.name} as it is set learns from "
            "its present policy only. With ppo, --remember-policy corrects for older ones (without --stop-at-kl, which "
            "older ones would reach at once)."
        )


def print_line(text: str) -> None:
    """What happened to workers, for whoever runs them."""
    print(f"treadle: {text}", file=sys.stderr, flush=True)
