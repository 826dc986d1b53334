"""Changes to an environment by settings, alike for worlds in JAX and for Gymnasium's environments.

What an agent may do (discretised actions) is changed wherever it acts. Rewards and the time limit are changed for
learning alone: `step` gives the environment's own reward, from which the returns of training and of evaluation are
counted, and the loops learn from `learning_reward`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Array, Float

from treadle.algorithms.base import require
from treadle.environments.atari import AtariOptions
from treadle.environments.base import Environment
from treadle.errors import InvalidSetting, UnsupportedSpace, nearest
from treadle.exact import Transitions
from treadle.registry import as_tree
from treadle.spaces import Discrete, Grid, Space
from treadle.types import Action, EnvState, Obs, Step

if TYPE_CHECKING:
    import gymnasium

MOST_ACTIONS = 100_000


@as_tree
class Wrappers(AtariOptions):
    """What is changed about an environment, and how Atari games are made."""

    discretise_actions: int | None = None
    """Choose each number of a continuous action among so many values between its bounds, these included."""
    reward_scale: float = 1.0
    """Learning sees (r + reward_offset) * reward_scale; returns stay the environment's own."""
    reward_offset: float = 0.0
    """Added to each reward before it is scaled; only learning sees it."""
    terminal_reward: float = 0.0
    """Added, unscaled, in a step that terminates, not in one that the time limit truncates; only learning sees it."""
    clip_rewards: bool | None = None
    """Learning sees the sign of what has become of each reward, -1, 0 or 1; as is usual in Atari games and nowhere else
    unless given."""
    time_limit: int | Literal["own", "none"] = "own"
    """Steps of an episode in training: another number, `none` for no limit, or the environment's `own`."""

    def check(self) -> None:
        """Raise `InvalidSetting` for a value outside its range."""
        levels, limit = self.discretise_actions, self.time_limit
        fits = levels is None or (_is_whole(levels) and levels >= 2)
        require(fits, "discretise_actions", repr(levels), "a whole number, at least 2, or None")
        for name in _REWARDS:
            value = getattr(self, name)
            require(_is_number(value) and math.isfinite(value), name, repr(value), "a finite number")
        require(self.reward_scale != 0, "reward_scale", self.reward_scale, "another number than 0")
        fits = limit in ("own", "none") or (_is_whole(limit) and limit >= 1)
        require(fits, "time_limit", repr(limit), "a whole number, at least 1, or one of own, none")
        self.check_atari()

    @property
    def changes_rewards(self) -> bool:
        """Whether learning sees another reward than the environment's."""
        return bool(self.clip_rewards) or any(getattr(self, name) != getattr(Wrappers, name) for name in _REWARDS)

    @property
    def changes_anything(self) -> bool:
        changes_play = self.discretise_actions is not None or self.time_limit != "own"
        return self.changes_rewards or changes_play or self.atari_setting is not None

    def in_evaluation(self) -> Wrappers:
        """What of this holds in evaluation too."""
        atari = {field.name: getattr(self, field.name) for field in dataclasses.fields(AtariOptions)}
        return Wrappers(**atari, discretise_actions=self.discretise_actions)

    def action_space(self, own: Space) -> Space:
        """The space in which actions are chosen, where the environment's is `own`.

        Raises `UnsupportedSpace` where it cannot be discretised, `InvalidSetting` for too many actions.
        """
        return own if self.discretise_actions is None else grid(own, self.discretise_actions)

    def max_episode_steps(self, own: int | None) -> int | None:
        """The time limit in training, where the environment's is `own`."""
        if isinstance(self.time_limit, str):
            return own if self.time_limit == "own" else None
        return self.time_limit

    def learning_reward(self, reward: Float[Array | np.ndarray, "..."], terminated: Any) -> Any:
        """What learning sees, of JAX's arrays or of NumPy's, as float32."""
        changed = (reward + self.reward_offset) * self.reward_scale
        changed = changed + self.terminal_reward * terminated.astype(np.float32)
        return ((changed > 0) * 1.0 - (changed < 0) if self.clip_rewards else changed).astype(np.float32)


_REWARDS = ("reward_scale", "reward_offset", "terminal_reward")


def grid(space: Space, levels: int) -> Grid:
    """The grid of `levels` values in each dimension of a bounded `Box`.

    Raises `UnsupportedSpace` for other spaces, and `InvalidSetting` where there would be more than 100,000 actions.
    """
    given = f"discretise_actions (--discretise-actions) was {levels}"
    if isinstance(space, Discrete):
        raise UnsupportedSpace(f"{given}, and this environment's {space.n} actions are discrete already. Leave it out.")
    if not space.is_bounded or not np.issubdtype(space.dtype, np.floating):
        raise UnsupportedSpace(
            f"{given}; it needs actions that are real numbers with a bound on either side, and this environment has "
            f"{space}."
        )
    size = math.prod(space.shape)
    if levels**size > MOST_ACTIONS:
        raise InvalidSetting(
            f"{given}, which makes {levels}^{size} actions in {size} dimensions; {MOST_ACTIONS:,} are the most. Take "
            "fewer levels, or an algorithm for continuous actions."
        )
    return Grid(levels**size, box=space, levels=levels)


@as_tree
class Wrapped:
    """A world in JAX with such changes, a world itself. `step` gives its own reward; `learning_reward` the other.

    What else the world offers, such as its `scene`, is there too; `transitions` are those that learning sees.
    """

    environment: Any
    wrappers: Wrappers
    changes_rewards: bool

    @property
    def observation_space(self) -> Space:
        return self.environment.observation_space

    @property
    def action_space(self) -> Space:
        return self.wrappers.action_space(self.environment.action_space)

    @property
    def max_episode_steps(self) -> int | None:
        return self.wrappers.max_episode_steps(self.environment.max_episode_steps)

    def reset(self, key: Array) -> tuple[EnvState, Obs]:
        return self.environment.reset(key)

    def step(self, state: EnvState, action: Action, key: Array) -> tuple[EnvState, Step]:
        space = self.action_space
        return self.environment.step(state, space.take(action) if isinstance(space, Grid) else action, key)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in {f.name for f in dataclasses.fields(Wrapped)}:  # before they are set
            raise AttributeError(name)
        offered = getattr(self.environment, name)
        if name == "transitions" and self.changes_rewards:
            return lambda: _learning_transitions(offered(), self.wrappers)
        return offered


def learning_reward(world: Environment, step: Step) -> Float[Array, "..."]:
    """The reward that learning sees of a step: the world's own, at no cost, unless a wrapper changes it."""
    if isinstance(world, Wrapped) and world.changes_rewards:
        return world.wrappers.learning_reward(step.reward, step.terminated)
    return step.reward


def _learning_transitions(own: Transitions, wrappers: Wrappers) -> Transitions:
    """The table with the rewards that learning sees; a step terminates with what its probabilities lack to 1."""
    terminated = 1.0 - own.probability.sum(-1)
    reward = wrappers.learning_reward(own.reward, terminated)
    is_left = (own.probability.sum((1, 2)) > 0) | (own.reward != 0).any(1)
    return own._replace(reward=reward * is_left[:, None])


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment (a name, a world, a function that makes one, or one that is made) and what is changed about it.

    Whatever takes an environment takes a task.
    """

    environment: Any
    wrappers: Wrappers = Wrappers()  # noqa: RUF009 - frozen

    @classmethod
    def of(cls, environment: Any) -> Task:
        """The task that an environment of any kind stands for."""
        if isinstance(environment, Wrapped):
            return cls(environment.environment, environment.wrappers)
        return environment if isinstance(environment, Task) else cls(environment)


def wrap(environment: Any, **changes: Any) -> Any:
    """An environment with changes (the fields of `Wrappers`), to be given wherever an environment is:

        Agent(DQN(), wrap("Pendulum-v1", discretise_actions=11, reward_scale=0.1))

    A world in JAX becomes another world, for `train`, `vmap` and the like; of a name or a function it is a `Task`.
    Changes upon changes add up. Raises `InvalidSetting`, and `UnsupportedSpace` where a world's actions cannot be
    discretised.
    """
    known = {f.name for f in dataclasses.fields(Wrappers)}
    for name in changes:
        if name not in known:
            raise InvalidSetting(
                f"there is no change '{name}' to an environment.{nearest(name, known)} There is: "
                f"{', '.join(sorted(known))}."
            )
    task = Task.of(environment)
    wrappers = dataclasses.replace(task.wrappers, **changes)
    wrappers.check()
    # The same numbers as from the command line: neither whole ones nor NumPy's.
    wrappers = dataclasses.replace(wrappers, **{name: float(getattr(wrappers, name)) for name in _REWARDS})
    if is_world(task.environment) and not isinstance(task.environment, type):
        return wrap_world(task.environment, wrappers)
    return Task(task.environment, wrappers)


def is_world(environment: Any) -> bool:
    """Whether it is a world in JAX, or the class of one; a Gymnasium environment may happen to have attributes of the
    same names."""
    return isinstance(environment, Environment) and not hasattr(environment, "unwrapped")


def wrap_world(world: Environment, wrappers: Wrappers) -> Environment:
    """A world in JAX with such changes: itself where there are none, so that they cost nothing.

    Raises `UnsupportedSpace` or `InvalidSetting` where its actions cannot be discretised.
    """
    if not wrappers.changes_anything:
        return world
    wrappers.refuse_atari("a world in JAX")
    wrappers.action_space(world.action_space)
    return Wrapped(environment=world, wrappers=wrappers, changes_rewards=wrappers.changes_rewards)


def with_time_limit(env: gymnasium.Env, limit: int | None) -> gymnasium.Env:
    """A Gymnasium environment that was made for this, with a limit, or none, in the place of Gymnasium's."""
    from gymnasium import Wrapper
    from gymnasium.wrappers import TimeLimit

    def bare(env: Any) -> Any:
        while isinstance(env, TimeLimit):
            env = env.env
        if isinstance(env, Wrapper):
            env.env = bare(env.env)
        return env

    return bare(env) if limit is None else TimeLimit(bare(env), limit)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0
