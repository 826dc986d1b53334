"""Probe worlds: each asks one question of an algorithm, and its action values are known exactly.

A learner that fails the first of them cannot fit a constant; one that fails a later one only cannot do what that
world adds. All are deterministic given observation and action, with float32 observations and two actions, or, at the
end, actions of one real number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from treadle import DQN
from treadle.registry import as_tree
from treadle.spaces import Box, Discrete
from treadle.types import Step

Observation = Float[Array, "1"]


class _TwoActions:
    """What all probes share: observations of `width` numbers in [-1, 1], two actions, no time limit unless set."""

    name: ClassVar[str]
    width: ClassVar[int] = 1

    max_episode_steps: int | None = None

    @property
    def observation_space(self) -> Box:
        return Box(-1.0, 1.0, (self.width,))

    @property
    def action_space(self) -> Discrete:
        return Discrete(2)


def _sign(key: Array) -> Observation:
    return jax.random.rademacher(key, (1,), jnp.float32)


@as_tree
class ConstantReward(_TwoActions):
    """Can it fit a constant? One observation, one step, reward 1: every value is 1."""

    name: ClassVar[str] = "constant-reward"

    def reset(self, key: Array) -> tuple[Observation, Observation]:
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, state: Observation, action: Int[Array, ""], key: Array) -> tuple[Observation, Step]:
        return state, Step(state, jnp.ones(()), jnp.array(True))


@as_tree
class ObservationDependentReward(_TwoActions):
    """Does it look at the observation? -1 or 1 at random, one step, the reward equals it, and so does the value."""

    name: ClassVar[str] = "observation-dependent-reward"

    def reset(self, key: Array) -> tuple[Observation, Observation]:
        obs = _sign(key)
        return obs, obs

    def step(self, state: Observation, action: Int[Array, ""], key: Array) -> tuple[Observation, Step]:
        return state, Step(state, state[0], jnp.array(True))


@as_tree
class DiscountedReward(_TwoActions):
    """Does it bootstrap and discount? Observation 0, then 1, and a reward of 1 at the end: values gamma, then 1."""

    name: ClassVar[str] = "discounted-reward"

    def reset(self, key: Array) -> tuple[Observation, Observation]:
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, state: Observation, action: Int[Array, ""], key: Array) -> tuple[Observation, Step]:
        return jnp.ones(1), Step(jnp.ones(1), state[0], state[0] == 1)


@as_tree
class ActionDependentReward(_TwoActions):
    """Does it tell actions apart? One observation, one step: -1 for action 0, 1 for action 1."""

    name: ClassVar[str] = "action-dependent-reward"

    def reset(self, key: Array) -> tuple[Observation, Observation]:
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, state: Observation, action: Int[Array, ""], key: Array) -> tuple[Observation, Step]:
        return state, Step(state, 2.0 * action - 1.0, jnp.array(True))


@as_tree
class ObservationAndActionDependentReward(_TwoActions):
    """Does it put the two together? -1 or 1 at random, one step: 1 if action 1 met 1 or action 0 met -1, else -1."""

    name: ClassVar[str] = "observation-and-action-dependent-reward"

    def reset(self, key: Array) -> tuple[Observation, Observation]:
        obs = _sign(key)
        return obs, obs

    def step(self, state: Observation, action: Int[Array, ""], key: Array) -> tuple[Observation, Step]:
        return state, Step(state, state[0] * (2.0 * action - 1.0), jnp.array(True))


@as_tree
class TruncationAgainstTermination(_TwoActions):
    """Does it know why an episode ended? Observations -1, 0, 1 in turn, reward 1 a step, three steps an episode.

    Whether the third step terminates or the time limit truncates, a learner sees the same observations and rewards,
    -1 after the last step included; only the flags differ. Truncated, every value is 1 / (1 - gamma), because the
    task goes on; terminated, they are 1 + gamma + gamma^2, 1 + gamma and 1.
    """

    name: ClassVar[str] = "truncation-against-termination"

    terminates: bool = False
    max_episode_steps: int | None = 3

    def reset(self, key: Array) -> tuple[Observation, Observation]:
        return -jnp.ones(1), -jnp.ones(1)

    def step(self, state: Observation, action: Int[Array, ""], key: Array) -> tuple[Observation, Step]:
        obs = jnp.where(state == 1, -1.0, state + 1)
        return obs, Step(obs, jnp.ones(()), (obs[0] == -1) & self.terminates)


@as_tree
class ShortCorridor(_TwoActions):
    """Can it find its way? Four cells, one-hot; 1 goes right, 0 left or against the wall; reward 1 in the last cell.

    Episodes start in any of the first three cells, so that all are visited whatever the policy.
    """

    name: ClassVar[str] = "short-corridor"
    width: ClassVar[int] = 4

    max_episode_steps: int | None = 20

    def reset(self, key: Array) -> tuple[Int[Array, ""], Float[Array, "4"]]:
        cell = jax.random.randint(key, (), 0, 3, jnp.int32)
        return cell, jax.nn.one_hot(cell, 4)

    def step(self, state: Int[Array, ""], action: Int[Array, ""], key: Array) -> tuple[Int[Array, ""], Step]:
        cell = jnp.clip(state + 2 * action.astype(jnp.int32) - 1, 0, 3)
        arrived = cell == 3
        return cell, Step(jax.nn.one_hot(cell, 4), arrived.astype(jnp.float32), arrived)


class Probe(NamedTuple):
    """A world, and the optimal action values of every observation in which an action is taken.

    `values(gamma)` gives observations `[N, width]` and, for each, the values of both actions `[N, 2]`.
    """

    name: str
    environment: Any
    values: Callable[[float], tuple[np.ndarray, np.ndarray]]


def _probe(environment: Any, table: Callable[[float], dict[Any, tuple[float, float]]], suffix: str = "") -> Probe:
    """From a table of gamma: observation (a number, or a tuple) to the values of both actions."""

    def values(gamma: float) -> tuple[np.ndarray, np.ndarray]:
        rows = table(gamma)
        obs = np.array(list(rows), np.float32).reshape(len(rows), -1)
        return obs, np.array(list(rows.values()), np.float32)

    return Probe(environment.name + suffix, environment, values)


def _corridor_values(g: float) -> dict[Any, tuple[float, float]]:
    return {(1, 0, 0, 0): (g**3, g**2), (0, 1, 0, 0): (g**3, g), (0, 0, 1, 0): (g**2, 1)}


def _endless(g: float) -> dict[Any, tuple[float, float]]:
    return dict.fromkeys((-1, 0, 1), (1 / (1 - g), 1 / (1 - g)))


def _three_steps(g: float) -> dict[Any, tuple[float, float]]:
    return {-1: (1 + g + g**2, 1 + g + g**2), 0: (1 + g, 1 + g), 1: (1, 1)}


PROBES = [
    _probe(ConstantReward(), lambda g: {0: (1, 1)}),
    _probe(ObservationDependentReward(), lambda g: {-1: (-1, -1), 1: (1, 1)}),
    _probe(DiscountedReward(), lambda g: {0: (g, g), 1: (1, 1)}),
    _probe(ActionDependentReward(), lambda g: {0: (-1, 1)}),
    _probe(ObservationAndActionDependentReward(), lambda g: {-1: (1, -1), 1: (-1, 1)}),
    _probe(TruncationAgainstTermination(), _endless, ", truncated"),
    _probe(TruncationAgainstTermination(terminates=True), _three_steps, ", terminated"),
    _probe(ShortCorridor(), _corridor_values),
]


@as_tree
class AnyNarrowProbe(_TwoActions):
    """All probes that observe one number in one world, so that one compiled program asks the questions of each. The
    time limit is that of the only ones that have any; the others' episodes are shorter."""

    which: Int[Array, ""]
    max_episode_steps: int | None = 3

    def reset(self, key: Array) -> tuple[Observation, Observation]:
        return jax.lax.switch(self.which, [probe.environment.reset for probe in NARROW], key)

    def step(self, state: Observation, action: Int[Array, ""], key: Array) -> tuple[Observation, Step]:
        return jax.lax.switch(self.which, [probe.environment.step for probe in NARROW], state, action, key)


NARROW = [probe for probe in PROBES if probe.environment.width == 1]


def shared(probe: Probe) -> Any:
    """The world of a probe, as one that others share where it can be."""
    return AnyNarrowProbe(which=jnp.asarray(NARROW.index(probe))) if probe in NARROW else probe.environment


PROBING = DQN(
    learning_rate=3e-3,
    gamma=0.8,
    batch_size=32,
    capacity=1_000,
    learning_starts=100,
    target_update_period=20,
    epsilon_end=0.5,
    hidden_sizes=(32,),
)
"""Learns each of them in some thousand steps."""


# Continuous actions


@as_tree
class AimConstant:
    """Does it find the best of continuous actions? One observation, one step: less by the square of the distance from
    an action of 2, which is worth 1.

    The actions of these worlds go from -1 to 3, so that half their width is 2 and their middle 1.
    """

    name: ClassVar[str] = "aim-constant"
    width: ClassVar[int] = 1

    max_episode_steps: int | None = None

    @property
    def observation_space(self) -> Box:
        return Box(-1.0, 1.0, (self.width,))

    @property
    def action_space(self) -> Box:
        return Box(-1.0, 3.0, (1,))

    def reset(self, key: Array) -> tuple[Any, Any]:
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, state: Any, action: Float[Array, "1"], key: Array) -> tuple[Any, Step]:
        return state, Step(state, 1.0 - (0.5 * (action[0] - 2.0)) ** 2, jnp.array(True))


@as_tree
class AimByObservation(AimConstant):
    """Does it look at the observation? -1 or 1 at random, one step; the best action is 1 more, 0 or 2."""

    name: ClassVar[str] = "aim-by-observation"

    def reset(self, key: Array) -> tuple[Any, Any]:
        obs = _sign(key)
        return obs, obs

    def step(self, state: Any, action: Float[Array, "1"], key: Array) -> tuple[Any, Step]:
        return state, Step(state, 1.0 - (0.5 * (action[0] - 1.0 - state[0])) ** 2, jnp.array(True))


@as_tree
class AimTwice(AimConstant):
    """Does an action see what it leads to? Two steps, and a reward only in the second.

    With `u = (a - 1) / 2` the first observation is (-1, 0) and the second (1, u) of the first action, whose best is
    `u = 1/2`. The reward is `1 - (u - 1/2)^2 - (u' + u)^2`, so that the best second action depends on the first.
    """

    name: ClassVar[str] = "aim-twice"
    width: ClassVar[int] = 2

    def reset(self, key: Array) -> tuple[Any, Any]:
        obs = jnp.array([-1.0, 0.0])
        return obs, obs

    def step(self, state: Any, action: Float[Array, "1"], key: Array) -> tuple[Any, Step]:
        is_second, u = state[0] > 0, 0.5 * (jnp.clip(action[0], -1.0, 3.0) - 1.0)
        reward = jnp.where(is_second, 1.0 - (state[1] - 0.5) ** 2 - (u + state[1]) ** 2, 0.0)
        obs = jnp.stack([jnp.ones(()), u])
        return obs, Step(obs, reward, is_second)


class ContinuousProbe(NamedTuple):
    """A world of continuous actions, observations `[N, width]` in which one is taken, and what is known of them.

    `best` are the best actions `[N, 1]`. `values(gamma, obs, action)` gives the optimal values `[N]` of any actions
    within the bounds.
    """

    environment: Any
    obs: np.ndarray
    best: np.ndarray
    values: Callable[[float, np.ndarray, np.ndarray], np.ndarray]

    @property
    def name(self) -> str:
        return self.environment.name


def _aim_twice_values(g: float, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    u = (action[:, 0] - 1) / 2
    second = 1 - (obs[:, 1] - 0.5) ** 2 - (u + obs[:, 1]) ** 2
    return np.where(obs[:, 0] > 0, second, g * (1 - (u - 0.5) ** 2))


CONTINUOUS_PROBES = [
    ContinuousProbe(
        AimConstant(),
        np.array([[0.0]], np.float32),
        np.array([[2.0]], np.float32),
        lambda g, obs, action: 1 - (action[:, 0] - 2) ** 2 / 4,
    ),
    ContinuousProbe(
        AimByObservation(),
        np.array([[-1.0], [1.0]], np.float32),
        np.array([[0.0], [2.0]], np.float32),
        lambda g, obs, action: 1 - (action[:, 0] - 1 - obs[:, 0]) ** 2 / 4,
    ),
    ContinuousProbe(
        AimTwice(),
        np.array([[-1.0, 0.0], [1.0, 0.5], [1.0, 0.25], [1.0, 0.75]], np.float32),
        np.array([[2.0], [0.0], [0.5], [-0.5]], np.float32),
        _aim_twice_values,
    ),
]
