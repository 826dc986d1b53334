"""Which loop serves an environment: the fused one where the world is in JAX, else the host loop."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any, Literal

from treadle import registry
from treadle.algorithms.base import Algorithm, require
from treadle.dataset import Dataset
from treadle.environments import gymnasium as host_environments
from treadle.environments.base import Environment
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.environments.wrappers import Task, is_world, wrap_world
from treadle.errors import InvalidSetting, TreadleError, UnknownName, nearest
from treadle.loops.crew import Crew, CrewSeeds, check_crew, check_used
from treadle.loops.host import HostSeeds, host_spec
from treadle.loops.offline import OfflineSeeds, check_learns_from_data
from treadle.loops.parallel import DataParallelSeeds
from treadle.loops.rollout import make_spec
from treadle.loops.seeds import FusedSeeds, Layout
from treadle.registry import as_float32
from treadle.types import Spec, space_spec

LoopName = Literal["auto", "fused", "host"]
LayoutName = Literal["auto", "in-turn", "together"]
Trainer = FusedSeeds | HostSeeds | OfflineSeeds | CrewSeeds | DataParallelSeeds


def resolve(environment: Any, loop: LoopName = "auto") -> Environment | Callable[..., GymnasiumEnvironments]:
    """A JAX world, or a function `(num_envs, **options)` that makes host environments.

    `environment` is a name (of Treadle or Gymnasium), a JAX world, a function that makes a Gymnasium environment, a
    Gymnasium vector environment, or a `Task` of one of them. Raises `UnknownName` or `TreadleError`.
    """
    task = Task.of(environment)
    task.wrappers.check()
    found = _resolve(task.environment, loop)
    if isinstance(found, Environment):
        return wrap_world(found, task.wrappers)
    return functools.partial(found, wrappers=task.wrappers)


def _resolve(environment: Any, loop: LoopName) -> Environment | Callable[..., GymnasiumEnvironments]:
    names = typing.get_args(LoopName)
    require(loop in names, "loop", repr(loop), f"one of {', '.join(names)}")
    if isinstance(environment, str):
        return _resolve_name(environment, loop)
    if isinstance(environment, type) and is_world(environment):
        raise InvalidSetting(
            f"the environment was the class {environment.__name__}; it must be a world made from it: "
            f"{environment.__name__}()."
        )
    if is_world(environment):
        if loop == "host":
            raise TreadleError("--loop host runs Gymnasium environments; a world in JAX has the fused loop.")
        return environment
    if loop == "fused":
        raise TreadleError(f"--loop fused needs a world in JAX, and {environment!r} is not one. Use --loop host.")

    def ready(num_envs: int, **options: Any) -> GymnasiumEnvironments:
        return GymnasiumEnvironments(environment, num_envs, **options)

    return ready


def is_made(environment: Any) -> bool:
    """Whether it is a Gymnasium environment that exists already, alone or a vector of them. Whoever plays in it
    disturbs whoever else does."""
    environment = Task.of(environment).environment
    return hasattr(environment, "unwrapped") and not isinstance(environment, type)


def _resolve_name(name: str, loop: LoopName) -> Environment | Callable[..., GymnasiumEnvironments]:
    worlds = registry.environments

    def host(num_envs: int, **options: Any) -> GymnasiumEnvironments:
        return GymnasiumEnvironments(name, num_envs, **options)

    if name in worlds and loop != "host":
        return worlds.make(name)
    counterpart = host_environments.counterpart(name)
    if loop == "fused":
        raise TreadleError(
            f"--loop fused needs a world in JAX, and '{name}' is not one of them ({', '.join(worlds.names())}). "
            "Leave --loop out, and the host loop serves it."
        )
    if name in worlds and counterpart is None:
        raise TreadleError(f"--loop host needs '{name}' in Gymnasium, which has no such environment.")
    if counterpart is None and ":" not in name:
        known = worlds.names() + host_environments.known_ids()
        raise UnknownName(
            f"there is no environment '{name}', neither in Treadle nor in Gymnasium.{nearest(name, known)} "
            "`treadle list` shows Treadle's worlds; a Gymnasium environment of your own is registered by the file "
            "that --import names."
        )
    return host


def check_timesteps(total_timesteps: Any) -> None:
    """Raise `InvalidSetting` unless it is a whole number of steps that can be counted in 32 bits."""
    fits = hasattr(total_timesteps, "__index__") and 1 <= total_timesteps < 2**31
    require(fits, "total_timesteps", total_timesteps, "a whole number between 1 and 2^31 - 1")


def make_trainer(
    algorithm: Algorithm,
    environment: Any,
    total_timesteps: int,
    seed: int = 0,
    num_seeds: int = 1,
    loop: LoopName = "auto",
    keep_data: bool = False,
    layout: LayoutName = "auto",
    crew: Crew | None = None,
    to_learn: bool = True,
    devices: int = 1,
    overlap: bool = True,
) -> FusedSeeds | HostSeeds | CrewSeeds | DataParallelSeeds:
    """The loop that serves, with `num_seeds` fresh seeds; what it reports has the transitions too if it is to
    `keep_data`. In the fused loop a device trains its seeds in turn or `together`. A `crew` says by how many workers
    steps are taken, and where; a trainer that is not `to_learn` has none, and is looked at only. In the fused loop a
    seed's environments and batches may be split over several `devices`; in the host loop, environments that step by
    themselves do so during updates if these `overlap` and the method learns from former policies. Settings and spaces
    are checked first.

    Raises `InvalidSetting`, `UnsupportedSpace`, `UnknownName` or another `TreadleError`.
    """
    _check_counts(total_timesteps, seed, num_seeds)
    crew = crew or Crew()
    crew.check()
    crew = dataclasses.replace(crew, engine=crew.engine_for(algorithm, loop))
    _check_apart(environment, num_seeds, crew)
    algorithm.check()
    world = resolve(environment, loop)
    _check_fused_only(world, crew, devices, keep_data)
    if crew.engine == "none":
        check_used(crew, "there are none here: give --workers, or leave it out")
    else:
        return _with_workers(algorithm, world, total_timesteps, crew, seed, num_seeds, to_learn)
    if not isinstance(world, Environment):
        return _in_host(algorithm, world, total_timesteps, seed, num_seeds, keep_data, overlap, to_learn)
    algorithm.check(make_spec(algorithm, world, total_timesteps))
    require(layout in _LAYOUTS, "layout", repr(layout), f"one of {', '.join(_LAYOUTS)}")
    prepared, world = as_float32(algorithm.prepared()), as_float32(world)
    if devices > 1 and to_learn:
        split = devices, _LAYOUTS[layout], keep_data
        return DataParallelSeeds(prepared, world, total_timesteps, seed, num_seeds, *split)
    return FusedSeeds(prepared, world, total_timesteps, seed, num_seeds, _LAYOUTS[layout], keep_data)


_LAYOUTS: dict[str, Layout | None] = {"auto": None, "in-turn": "map", "together": "vmap"}


def _check_apart(environment: Any, num_seeds: int, crew: Crew) -> None:
    """Raise `InvalidSetting` where several would play in one Gymnasium environment that exists already."""
    if not is_made(environment) or (num_seeds == 1 and crew.engine == "none"):
        return
    made, workers = Task.of(environment).environment, crew.count()
    players = f"seeds was {num_seeds}" if crew.engine == "none" else f"{num_seeds} x {workers} workers were asked for"
    raise InvalidSetting(
        f"{players}, and {made!r} is made already: they would play in the same one. Give a function that makes one."
    )


def _check_fused_only(world: Any, crew: Crew, devices: int, keep_data: bool) -> None:
    """Raise `InvalidSetting` for what other loops do not have."""
    if devices > 1 and (crew.engine != "none" or not isinstance(world, Environment)):
        raise InvalidSetting(
            f"devices (--devices) was {devices}; it splits the fused loop, which runs worlds in JAX without workers. "
            "Leave it out."
        )
    if keep_data and crew.engine != "none":
        raise InvalidSetting("--save-data is for one loop without workers: leave it out, or take --engine none.")


def _in_host(
    algorithm: Algorithm,
    world: Callable[..., GymnasiumEnvironments],
    total_timesteps: int,
    seed: int,
    num_seeds: int,
    keep_data: bool,
    overlap: bool,
    to_learn: bool,
) -> HostSeeds:
    first = world(algorithm.num_envs)
    if first.num_envs != algorithm.num_envs:
        raise InvalidSetting(
            f"the vector environment has {first.num_envs} environments and num_envs is {algorithm.num_envs}; they must "
            f"be equal: num_envs={first.num_envs}."
        )
    algorithm.check(host_spec(algorithm, first, total_timesteps))
    opened = [first]

    def make_environments() -> GymnasiumEnvironments:
        return opened.pop() if opened else world(algorithm.num_envs)

    prepared = as_float32(algorithm.prepared())
    return HostSeeds(
        prepared,
        make_environments,
        total_timesteps,
        seed,
        num_seeds,
        keep_data,
        overlap=overlap and _learns_from_former_policies(algorithm),
        to_learn=to_learn,
    )


def _learns_from_former_policies(algorithm: Algorithm) -> bool:
    """Whether an action that was chosen before an update may be learned from after it."""
    is_off_policy = algorithm.survey is not None and algorithm.survey.policy == "off-policy"
    return is_off_policy or algorithm.corrects_staleness


def _with_workers(
    algorithm: Algorithm,
    world: Environment | Callable[..., GymnasiumEnvironments],
    total_timesteps: int,
    crew: Crew,
    seed: int,
    num_seeds: int,
    to_learn: bool,
) -> CrewSeeds:
    check_crew(algorithm, crew, crew.count())
    prepared = as_float32(algorithm.prepared())
    if crew.engine == "ray" and num_seeds > 1:
        raise InvalidSetting(
            f"seeds was {num_seeds}: here the workers of a cluster serve one learner of {algorithm.name}. Train its "
            "seeds one run each (--seed), or in threads."
        )
    if isinstance(world, Environment):
        spec = make_spec(algorithm, world, total_timesteps)
        algorithm.check(spec)
        return CrewSeeds(prepared, as_float32(world), spec, crew, seed, num_seeds, to_learn=to_learn)
    first = world(1)
    try:
        spec = dataclasses.replace(host_spec(algorithm, first, total_timesteps), num_envs=algorithm.num_envs)
        masked = first.masks_rows
    finally:
        first.close()
    algorithm.check(spec)
    return CrewSeeds(prepared, world, spec, crew, seed, num_seeds, masked, to_learn)


def make_offline_trainer(
    algorithm: Algorithm,
    environment: Any,
    data: Dataset | None,
    total_timesteps: int,
    seed: int = 0,
    num_seeds: int = 1,
    loop: LoopName = "auto",
) -> OfflineSeeds:
    """`num_seeds` fresh seeds that learn from stored transitions; of the environment only what it says of itself is
    asked for, such as its spaces. A changed time limit has no say: the episodes of the data have ended already. Without
    `data` the seeds can only be looked at, as for evaluation.

    Raises what `make_trainer` does, `InvalidSetting` for methods that cannot learn from another policy's data, and
    `DatasetError` for data that is not of this environment.
    """
    _check_counts(total_timesteps, seed, num_seeds)
    algorithm.check()
    check_learns_from_data(algorithm)
    world, wrappers = resolve(environment, loop), Task.of(environment).wrappers
    if isinstance(world, Environment):
        spec = spec_by_spaces(algorithm, world, total_timesteps)
    else:
        made = world(1)
        spec, wrappers = spec_by_spaces(algorithm, made, total_timesteps), made.wrappers
        _check_lives(made, data)
        if not is_made(environment):
            made.close()
    algorithm.check(spec)
    fitted = None if data is None else data.fitted(spec.observation_space, spec.action_space)
    return OfflineSeeds(as_float32(algorithm.prepared()), spec, fitted, wrappers, seed, num_seeds)


def _check_counts(total_timesteps: Any, seed: Any, num_seeds: int) -> None:
    require(num_seeds >= 1, "seeds", num_seeds, "at least 1")
    require(hasattr(seed, "__index__") and 0 <= seed < 2**31, "seed", seed, "a whole number between 0 and 2^31 - 1")
    check_timesteps(total_timesteps)


def _check_lives(made: GymnasiumEnvironments, data: Dataset | None) -> None:
    """Raise `InvalidSetting` where the loss of a life would be terminal: stored transitions do not tell of it."""
    if data is not None and made.ends_lives:
        made.close()
        raise InvalidSetting(
            f"in {made.name} the loss of a life is terminal for learning, and stored transitions (--data) do not say "
            "where one was lost. Learn without that: --no-lost-life-terminates."
        )


def spec_by_spaces(algorithm: Algorithm, world: Environment | GymnasiumEnvironments, total_timesteps: int) -> Spec:
    """What the algorithm may know of an environment that is not stepped."""
    spec = space_spec(world.observation_space, world.action_space, algorithm.num_envs, total_timesteps)
    transitions = getattr(world, "transitions", None)
    return dataclasses.replace(spec, max_episode_steps=world.max_episode_steps, transitions=transitions)


def evaluation_environment(environment: Any, num_envs: int, **options: Any) -> Environment | GymnasiumEnvironments:
    """Gymnasium's own environment where the world has a counterpart there, else the training world; without the
    changes that are for learning alone."""
    given = Task.of(environment)
    task = Task(evaluated_as(given.environment), given.wrappers.in_evaluation())
    name = task.environment
    if isinstance(name, str) and (host_environments.counterpart(name) or ":" in name):
        return GymnasiumEnvironments(name, num_envs, wrappers=task.wrappers, **options)
    world = resolve(task)
    if isinstance(world, Environment):
        return as_float32(world)
    return world(1 if is_made(environment) else num_envs, **options)


def evaluated_as(environment: Any) -> Any:
    """The task in which agents trained in an environment are evaluated: another only for worlds that name one, as
    those with a shaped reward do."""
    if isinstance(environment, str):
        if environment not in registry.environments:
            return environment
        return getattr(registry.environments.make(environment), "evaluated_as", None) or environment
    return (getattr(environment, "evaluated_as", None) if is_world(environment) else None) or environment


def drawn_environment(environment: Any) -> Environment | GymnasiumEnvironments:
    """What an episode is drawn of: a world in JAX that has a scene, which needs no other library and looks the same
    everywhere, or one of Gymnasium's environment, which renders frames; without the changes that are for learning
    alone.

    Raises `TreadleError` where neither can be drawn.
    """
    given = Task.of(environment)
    name = evaluated_as(given.environment)
    if is_world(name) or name in registry.environments:
        world: Any = resolve(Task(name, given.wrappers.in_evaluation()))
        if hasattr(world, "scene"):
            return as_float32(world)
    try:
        world = evaluation_environment(environment, 1, render_mode="rgb_array")
    except (TreadleError, TypeError) as error:  # Gymnasium's, where an environment takes no render_mode
        raise TreadleError(f"{name} cannot be drawn: {error}") from None
    if not isinstance(world, GymnasiumEnvironments):
        raise TreadleError(f"{name} has no drawing yet: the world has no method scene(state), and Gymnasium has none.")
    return world
