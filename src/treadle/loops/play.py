"""One environment stepped for somebody who watches it, by a policy or by hand, from starts that can be had again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from treadle.algorithms.base import Algorithm
from treadle.environments.base import Environment
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.errors import TreadleError
from treadle.loops.evaluate import STEP_LIMIT
from treadle.loops.execution import compile_small
from treadle.loops.seeding import host_seed, purpose, seed_key
from treadle.scene import Scene
from treadle.spaces import Discrete, Grid, Space
from treadle.types import Spec, Step

GRID_PACE, OTHER_PACE, HOST_PACE = 4.0, 25.0, 50.0
"""Steps a second where a world says nothing of time: in grids, whose steps are large, elsewhere, and in Gymnasium."""

PersonAction = int | Float[np.ndarray, "..."]


class Seen(NamedTuple):
    """What there is to see after a step, or at an episode's start, where `reward` and `action` are `None`."""

    picture: Scene | UInt8[np.ndarray, "H W 3"]
    step: int
    """Steps of the episode so far."""
    reward: float | None
    """The environment's own."""
    episode_return: float
    ended: Literal["terminated", "truncated"] | None
    success: bool | None
    """Whether an episode that has ended reached what the task is about; `None` where it has not, or nobody knows."""
    action: int | list[float] | None
    """The last, as the agent counts it, or as the environment takes it from a person."""
    by_person: bool
    insight: dict[str, np.ndarray]
    """What the method says of itself for the observation at hand."""


class _Decision(NamedTuple):
    """What a policy makes of one observation."""

    action: Array
    carry: Any
    insight: dict[str, Array]


class _Outcome(NamedTuple):
    """Of a step, in plain numbers."""

    reward: float
    terminated: bool
    truncated: bool
    success: bool | None


class Player:
    """What playing is in any environment. A policy is put in by `follow`, before `step` or `see`; an episode begins
    with `reset`, which is to come first too.

    An episode follows from the number of its start, the policy, and what a person does.
    """

    keys: dict[str, Any]
    """What a person does by a key held down, as the world's `keys` say."""
    steps_per_second: float
    is_drawn_as_scene: bool

    def __init__(self, action_space: Space, own_actions: Space, max_episode_steps: int | None):
        """The agent chooses in `action_space`, a person in the environment's own."""
        self.action_space, self.own_actions = action_space, own_actions
        self._limit = max_episode_steps or STEP_LIMIT
        self._algorithm: Algorithm | None = None
        self._state = self._carry = self._fresh_carry = self._decision = None
        self._obs: Any = None
        self._clear(jax.random.key(0))

    @property
    def ended(self) -> Literal["terminated", "truncated"] | None:
        return self._ended

    def follow(self, algorithm: Algorithm, state: PyTree, spec: Spec) -> None:
        """Act by the greedy policy of one seed's state from now on. The environment stays as it is; what acting
        remembers begins afresh. `algorithm` and `spec` are a trainer's. What is not `needed` may be a
        `jax.ShapeDtypeStruct`."""
        self._algorithm, self._state = algorithm, jax.tree.map(_here_or_blank, state)
        self._fresh_carry = self._carry = _here(algorithm.init_carry(dataclasses.replace(spec, num_envs=1)))
        self._decision = None

    def reset(self, start: int) -> None:
        """Begin the episode of this number, in [0, 2^31)."""
        key = _here(jax.random.fold_in(purpose(seed_key(0), "window"), start))
        self._clear(key)
        self._begin(purpose(key, "reset"))

    def step(self, person_action: PersonAction | None = None) -> None:
        """One step by the policy, or with an action of the environment's own. After an episode's end nothing happens
        until `reset`."""
        if self._ended:
            return
        decision = self._decide()
        outcome = self._advance(decision.action, person_action)
        self._step += 1
        self._reward, self._return = outcome.reward, self._return + outcome.reward
        self._carry, self._decision = decision.carry, None
        self._by_person = person_action is not None
        self._action = _plain(np.asarray(decision.action if person_action is None else person_action))
        if outcome.terminated:
            self._ended = "terminated"
        elif outcome.truncated or self._step >= self._limit:
            self._ended = "truncated"
        self._success = outcome.success if self._ended else None

    def see(self) -> Seen:
        """Raises `TreadleError` for a host environment that renders no frames."""
        return Seen(
            self._picture(),
            self._step,
            self._reward,
            self._return,
            self._ended,
            self._success,
            self._action,
            self._by_person,
            jax.device_get(self._decide().insight),
        )

    def move(self, handle: str, to: tuple[float, float]) -> None:
        """Move something of the scene, as far as the world lets it. Raises `TreadleError` where it lets nothing."""
        raise TreadleError("nothing of this environment can be moved by hand.")

    def close(self) -> None:
        """Release the environment."""

    def _clear(self, key: Array) -> None:
        self._act_key, self._step_key = purpose(key, "act"), purpose(key, "step")
        self._carry, self._decision = self._fresh_carry, None
        self._step, self._return, self._by_person = 0, 0.0, False
        self._reward: float | None = None
        self._ended: Literal["terminated", "truncated"] | None = None
        self._success: bool | None = None
        self._action: int | list[float] | None = None

    def _decide(self) -> _Decision:
        if self._decision is None:
            args = self._algorithm, self._state, self._carry, self._obs, self._act_key
            self._decision = _decide(*args, np.int32(self._step))
        return self._decision

    def _begin(self, key: Array) -> None:
        """Set the first observation."""
        raise NotImplementedError

    def _advance(self, action: Array, person_action: PersonAction | None) -> _Outcome:
        """One step with the agent's action, or with the person's, and the next observation."""
        raise NotImplementedError

    def _picture(self) -> Scene | np.ndarray:
        raise NotImplementedError


def _here(tree: PyTree) -> PyTree:
    """On one device, which is enough to play: the seeds of a run are spread over all. What comes first is put there
    like what comes of it, lest each program be compiled twice."""
    return jax.device_put(tree, jax.devices()[0])


def _here_or_blank(leaf: Any) -> Any:
    """What no program takes is only said to be there: zeros of its shape, in next to no memory."""
    is_there = not isinstance(leaf, jax.ShapeDtypeStruct)
    return _here(leaf) if is_there else np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


@compile_small
def _decide(algorithm: Algorithm, state: PyTree, carry: Any, obs: Any, key: Array, step: Int[Array, ""]) -> _Decision:
    """Whatever of the state acting does not need is no part of the program."""
    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], obs)
    key = jax.random.fold_in(key, step)
    action, carry, _ = algorithm.act(algorithm.policy(state), carry, batch, key, explore=False)
    return _Decision(jax.tree.map(lambda x: x[0], action), carry, algorithm.inspect(state, obs))


def needed(algorithm: Algorithm, state: PyTree, spec: Spec) -> PyTree[bool]:
    """Which leaves of one seed's state, given by their shapes, a player asks for: not those of a replay memory."""
    carry = algorithm.init_carry(dataclasses.replace(spec, num_envs=1))
    decide = functools.partial(_decide.__wrapped__, algorithm)  # type: ignore[attr-defined]
    return _asked_for(decide, state, carry, spec.example.obs, jax.random.key(0), np.int32(0))


def needed_for_policy(algorithm: Algorithm, state: PyTree) -> PyTree[bool]:
    """Which leaves of one seed's state, given by their shapes, its policy consists of."""
    return _asked_for(algorithm.policy, state)


def _asked_for(function: Callable[..., Any], state: PyTree, *others: Any) -> PyTree[bool]:
    jaxpr = jax.make_jaxpr(function)(state, *others).jaxpr
    used = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in used for variable in equation.outvars):
            used.update(map(id, equation.invars))
    leaves, structure = jax.tree.flatten(state)
    # Keys, which are small, have no blanks.
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    variables = jaxpr.invars[: len(leaves)]
    return structure.unflatten([id(v) in used or key for v, key in zip(variables, is_key, strict=True)])


class WorldPlayer(Player):
    """A world in JAX that has a scene."""

    is_drawn_as_scene = True

    def __init__(self, world: Environment):
        given: Any = world
        space = world.action_space
        own = given.environment.action_space if isinstance(space, Grid) else space
        super().__init__(space, own, world.max_episode_steps)
        self._world = world
        self._fixed: Any = jax.device_get(world)  # plain numbers, with which a scene is quickly made
        self._env_state: Any = None
        self._idle = np.zeros(own.shape, own.dtype)
        self.keys = dict(getattr(world, "keys", None) or {})
        self.action_names: Sequence[str] | None = getattr(world, "action_names", None)
        self.reset(0)
        dt = getattr(self._fixed, "dt", None)
        pace = GRID_PACE if self._picture().cells else OTHER_PACE if dt is None else 1 / float(dt)
        self.steps_per_second = round(min(max(pace, 1.0), 200.0), 3)

    @property
    def world(self) -> Environment:
        return self._world

    def move(self, handle: str, to: tuple[float, float]) -> None:
        scene = self._picture()
        if not hasattr(self._world, "move") or handle not in [h.name for h in scene.handles]:
            raise TreadleError(f"there is no {handle[:40]!a} to be moved in this world.")
        moved = self._fixed.move(jax.device_get(self._env_state), handle, to)
        # Of the dtypes that compiled programs have seen.
        self._env_state = _here(jax.tree.map(lambda new, old: np.asarray(new, old.dtype), moved, self._env_state))
        self._obs = _observe(self._world, self._env_state)
        self._decision = None

    def _begin(self, key: Array) -> None:
        self._env_state, self._obs = _begin(self._world, key)

    def _advance(self, action: Array, person_action: PersonAction | None) -> _Outcome:
        is_by_person = person_action is not None
        own = np.asarray(person_action, self._idle.dtype).reshape(self._idle.shape) if is_by_person else self._idle
        args = self._world, self._env_state, action, own, np.bool_(is_by_person)
        self._env_state, step, success = _step(*args, self._step_key, np.int32(self._step))
        self._obs = step.obs
        reward, terminated, success = jax.device_get((step.reward, step.terminated, success))
        return _Outcome(float(reward), bool(terminated), False, None if success is None else bool(success))

    def _picture(self) -> Scene:
        return self._fixed.scene(jax.device_get(self._env_state))


@compile_small
def _begin(world: Any, key: Array) -> tuple[Any, Any]:
    return world.reset(key)


@compile_small
def _observe(world: Any, env_state: Any) -> Any:
    return world.observe(env_state)


@compile_small
def _step(
    world: Any, env_state: Any, action: Array, own: Array, by_person: Array, key: Array, number: Int[Array, ""]
) -> tuple[Any, Step, Array | None]:
    """A step with the agent's action or with a person's `own`, in one program, so that the first key held down is
    answered at once. Last: whether the state is one of success, `None` where the world does not say."""
    space = world.action_space
    inner, taken = (world.environment, space.take(action)) if isinstance(space, Grid) else (world, action)
    env_state, step = inner.step(env_state, jnp.where(by_person, own, taken), jax.random.fold_in(key, number))
    success = world.is_success(env_state) if hasattr(world, "is_success") else None
    return env_state, step, success


class HostPlayer(Player):
    """One Gymnasium environment that renders frames (`render_mode="rgb_array"`). A person cannot steer it."""

    is_drawn_as_scene = False

    def __init__(self, environments: GymnasiumEnvironments):
        super().__init__(environments.action_space, environments.action_space, environments.max_episode_steps)
        self._environments = environments
        self._recorded: _Recorded | _Screen = (
            _Screen(environments) if environments.keeps_last_frame else environments.wrap_first(_Recorded)
        )
        self.keys, self.action_names = {}, None
        self.steps_per_second = environments.steps_per_second or HOST_PACE

    def close(self) -> None:
        self._environments.close()

    def _begin(self, key: Array) -> None:
        self._obs = self._environments.reset(host_seed(key))[0]

    def _advance(self, action: Array, person_action: PersonAction | None) -> _Outcome:
        if person_action is not None:
            raise TreadleError("a Gymnasium environment cannot be steered by hand.")
        step = self._environments.step(np.asarray(action)[None])
        self._obs = step.next_obs[0]
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        return _Outcome(float(step.reward[0]), terminated, truncated, self._recorded.success)

    def _picture(self) -> np.ndarray:
        frame = self._recorded.last if self._ended else None
        frame = self._recorded.frame() if frame is None else frame
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            name = self._environments.name
            raise TreadleError(f"{name} cannot be drawn: it renders nothing in the mode rgb_array.")
        return frame


class _Screen:
    """What environments draw that keep an episode's last frame until their next step."""

    last = success = None

    def __init__(self, environments: GymnasiumEnvironments):
        self._environments = environments

    def frame(self) -> Any:
        return self._environments.render()[0]


class _Recorded:
    """A Gymnasium environment that keeps the last frame of an episode, which has given way to the next before anybody
    could ask, and what it says of success."""

    def __init__(self, env: Any):
        self.env, self.last = env, None
        self.success: bool | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        _, _, terminated, truncated, info = result
        found = info.get("is_success")
        self.success = None if found is None else bool(found)
        self.last = self.frame() if terminated or truncated else None
        return result

    def frame(self) -> Any:
        from gymnasium.error import DependencyNotInstalled

        try:
            return self.env.render()
        except NotImplementedError:
            return None
        except DependencyNotInstalled as error:
            raise TreadleError(f"this environment cannot be drawn: {error}") from None


def player_of(world: Environment | GymnasiumEnvironments) -> WorldPlayer | HostPlayer:
    """The player of what `loops.choose.drawn_environment` gives."""
    return HostPlayer(world) if isinstance(world, GymnasiumEnvironments) else WorldPlayer(world)


def action_of_keys(player: Player, held: Sequence[str]) -> PersonAction | None:
    """What a person does who holds down these keys, the last at the end; `None` where none of them means anything."""
    actions = [player.keys[key] for key in held if key in player.keys]
    space = player.own_actions
    if not actions:
        return None
    if isinstance(space, Discrete):
        return int(actions[-1])
    total = functools.reduce(np.add, [np.asarray(a, np.float64) for a in actions])
    return np.clip(np.broadcast_to(total, space.shape), space.low, space.high).astype(space.dtype)


def _plain(action: np.ndarray) -> int | list[float]:
    return int(action) if np.issubdtype(action.dtype, np.integer) and action.ndim == 0 else action.ravel().tolist()
