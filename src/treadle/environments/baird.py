"""Baird's counterexample: linear function approximation, bootstrapping and off-policy data, which together diverge.

Baird (1995), "Residual algorithms: reinforcement learning with function approximation", in the form of Sutton and
Barto (2018), section 11.2 and figure 11.1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from treadle import exact
from treadle.environments.base import register
from treadle.scene import Circle, Label, Line, Scene
from treadle.spaces import Box, Discrete
from treadle.types import Step

STATES, LOWER = 7, 6
FEATURES = np.array(
    [
        [2, 0, 0, 0, 0, 0, 0, 1],
        [0, 2, 0, 0, 0, 0, 0, 1],
        [0, 0, 2, 0, 0, 0, 0, 1],
        [0, 0, 0, 2, 0, 0, 0, 1],
        [0, 0, 0, 0, 2, 0, 0, 1],
        [0, 0, 0, 0, 0, 2, 0, 1],
        [0, 0, 0, 0, 0, 0, 1, 2],
    ],
    np.float32,
)
"""The features of each state `[7, 8]`: its value is `2 w_i + w_8` in the upper states, `w_7 + 2 w_8` in the lower."""


@register("Baird")
class Baird:
    """Seven states, six above and one below; an episode starts in any of them and never ends. Actions: 0, dashed, leads
    to one of the upper states, each equally likely; 1, solid, to the lower one. Every reward is 0, so every value is 0,
    and all weights 0 are exact. Observation: the state's 8 features.

    The book's behaviour takes the dashed action with probability 6/7, its target policy always the solid one;
    `gamma = 0.99` and the weights start at `(1, 1, 1, 1, 1, 1, 10, 1)`.
    """

    max_episode_steps: int | None = None
    """Time limit in steps; none unless set."""

    @property
    def observation_space(self) -> Box:
        return Box(0.0, 2.0, (8,))

    @property
    def action_space(self) -> Discrete:
        return Discrete(2)

    def reset(self, key: Array) -> tuple[Int[Array, ""], Float[Array, "8"]]:
        """One of the seven, all equally likely."""
        state = jax.random.randint(key, (), 0, STATES)
        return state, jnp.asarray(FEATURES)[state]

    def step(self, state: Int[Array, ""], action: Int[Array, ""], key: Array) -> tuple[Int[Array, ""], Step]:
        """To an upper state or to the lower one, wherever it was."""
        state = jnp.where(action == 0, jax.random.randint(key, (), 0, LOWER), LOWER)
        return state, Step(jnp.asarray(FEATURES)[state], jnp.zeros(()), jnp.array(False))

    def transitions(self) -> exact.Transitions:
        """Over the seven states."""
        upper = np.arange(STATES) < LOWER
        to = np.stack([upper / LOWER, ~upper]).astype(np.float32)
        probability = np.broadcast_to(to, (STATES, 2, STATES))
        return exact.Transitions(probability, np.zeros((STATES, 2), np.float32), np.full(STATES, 1 / 7, np.float32))

    def scene(self, state: Int[Array, ""]) -> Scene:
        """Each state with its value in terms of the weights; the agent's is filled."""
        places = [(2.0 * i + 1.0, 4.0) for i in range(LOWER)] + [(6.0, 1.0)]
        values = [f"2w{i + 1}+w8" for i in range(LOWER)] + ["w7+2w8"]
        lines = tuple(Line((place, places[LOWER]), 0.05, "muted") for place in places[:LOWER])
        circles = tuple(Circle(at, 0.8, "agent" if i == int(state) else "ground") for i, at in enumerate(places))
        labels = tuple(Label(at, text, 0.35) for at, text in zip(places, values, strict=True))
        return Scene((0.0, 0.0), (12.0, 5.0), (*lines, *circles, *labels))
