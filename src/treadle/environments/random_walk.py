"""The random walk on a line, on which ways to predict are compared.

Sutton and Barto (2018): example 6.2 (5 states) and example 7.1 (19 states).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from treadle import exact
from treadle.environments import grid
from treadle.environments.base import register
from treadle.scene import Scene
from treadle.spaces import Discrete
from treadle.types import Step


@register("RandomWalk19", num_states=19, left_reward=-1.0)
@register("RandomWalk")
class RandomWalk:
    """A line of states between two ends; an episode starts in the middle and ends at an end. The chance is the
    policy's: uniform actions make it the walk of the examples. Actions: 0 left, 1 right. Observation: the place on the
    line, 1 to `num_states`; 0 and `num_states + 1` are the ends. Reward: that of the end which a step reaches, else 0.
    """

    action_names, keys = grid.names((grid.LEFT, grid.RIGHT)), grid.keys((grid.LEFT, grid.RIGHT))

    num_states: int = 5
    """States between the ends; with an even number, an episode starts left of the middle."""
    left_reward: float = 0.0
    """Reward for reaching the left end."""
    right_reward: float = 1.0
    """Reward for reaching the right end."""
    max_episode_steps: int | None = None
    """Time limit in steps; none unless set."""

    @property
    def observation_space(self) -> Discrete:
        return Discrete(self.num_states + 2)

    @property
    def action_space(self) -> Discrete:
        return Discrete(2)

    @property
    def _middle(self) -> int:
        return (self.num_states + 1) // 2

    def reset(self, key: Array) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """The middle."""
        place = jnp.full((), self._middle, jnp.int32)
        return place, place

    def step(self, state: Int[Array, ""], action: Int[Array, ""], key: Array) -> tuple[Int[Array, ""], Step]:
        """One state to a side. Deterministic; the ends are never left."""
        right_end = self.num_states + 1
        at_end = (state == 0) | (state == right_end)
        place = jnp.where(at_end, state, state + 2 * action - 1)
        left, right = (place == 0) & ~at_end, (place == right_end) & ~at_end
        reward = left * self.left_reward + right * self.right_reward
        return place, Step(place, reward, (place == 0) | (place == right_end))

    def transitions(self) -> exact.Transitions:
        places, inner = np.arange(self.num_states + 2), np.arange(1, self.num_states + 1)
        probability = np.zeros((len(places), 2, len(places)), np.float32)
        probability[inner[1:], 0, inner[:-1]] = 1.0
        probability[inner[:-1], 1, inner[1:]] = 1.0
        to_left_end, to_right_end = np.zeros((2, len(places), 2), np.float32)
        to_left_end[1, 0] = to_right_end[self.num_states, 1] = 1.0
        reward = to_left_end * self.left_reward + to_right_end * self.right_reward
        return exact.Transitions(probability, reward, (places == self._middle).astype(np.float32))

    def true_values(self, gamma: float = 1.0) -> Float[Array, " S"]:
        """The value of every place under uniform actions, 0 at the two ends. At gamma 1 it is a straight line between
        the rewards of the ends: 1/6, 2/6 ... 5/6 for the five states."""
        transitions = self.transitions()
        uniform = jnp.full(transitions.reward.shape, 0.5)
        return exact.policy_evaluation(transitions, uniform, gamma).v

    def scene(self, state: Int[Array, ""]) -> Scene:
        looks = {0: grid.Look("[", "danger"), self.num_states + 1: grid.Look("]", "goal")}
        return grid.draw(1, self.num_states + 2, state, looks)
