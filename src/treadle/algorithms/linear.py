"""What methods have in common whose values are a table, or linear in features of the observation.

A table is the linear function of one-hot features, so each method is written once and serves both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from treadle import exploration
from treadle.algorithms.base import Algorithm, require
from treadle.errors import InvalidSetting, UnsupportedSpace
from treadle.features import Encoder, FeatureMap, LinearFunction, Own, Polynomial, Table, TileCoding
from treadle.sharding import whole
from treadle.spaces import Discrete, Space
from treadle.types import Alarm, Mean, Metrics, Spec, Transition, select

LARGEST_TABLE = 50_000_000
"""Weights (features times actions) that are allowed: 200 MB for each seed."""

C = TypeVar("C")


class LinearPolicy(NamedTuple):
    """What acting greedily needs."""

    q: LinearFunction


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear(Algorithm):
    """A method whose values are linear in features of the observation."""

    learning_rate: float = 0.1
    """Step size alpha. With tile coding as many features are active as there are tilings: divide by their number."""
    learning_rate_end: float | None = None
    """Step size at the last timestep, approached linearly; constant when not given."""
    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    initial_value: float = 0.0
    """What every weight starts with; in a table the first value of every state."""
    features: Literal["auto", "table", "tile-coding", "polynomial", "raw"] = "auto"
    """`table`: a value for each state; `raw`: the observation's own numbers. `auto` is a table, which needs discrete
    observations."""
    tilings: int = 8
    """Grids of a tile coding."""
    tiles: int = 8
    """Tiles of a grid in each dimension."""
    degree: int = 3
    """Highest power of each number in a polynomial."""
    low: tuple[float, ...] | None = None
    """Lower bounds of the observation for tile coding and polynomials; those of its space when not given."""
    high: tuple[float, ...] | None = None
    """Upper bounds, likewise."""
    encoder: Callable[..., Any] | None = None
    """Your own features instead: any callable, also one that is a JAX tree, from one observation to a vector."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "greater than 0")
        end = self.learning_rate_end
        require(end is None or end >= 0, "learning_rate_end", end, "0 or more, or None")
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "between 0 and 1")
        for name in ("tilings", "tiles"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.degree >= 0, "degree", self.degree, "0 or more")
        if spec is not None:
            self._check_size(spec)

    def prepared(self) -> Self:
        own = {f.name: value for f in dataclasses.fields(self) if callable(value := getattr(self, f.name))}
        return dataclasses.replace(self, **{name: Own.of(value) for name, value in own.items()})

    def columns(self, spec: Spec) -> int:
        """Numbers that are kept for each feature."""
        return spec.action_space.n if isinstance(spec.action_space, Discrete) else 1

    def _check_size(self, spec: Spec) -> None:
        space, columns = spec.observation_space, self.columns(spec)
        size = self.feature_map(space).size * columns
        if size <= LARGEST_TABLE:
            return
        what = f"{space.n:,} states, " if isinstance(space, Discrete) else ""
        instead = (
            "--features tile-coding or polynomial, which generalise over states"
            if isinstance(space, Discrete)
            else "fewer --tiles or a smaller --degree, your own features (encoder=...), or dqn"
        )
        raise UnsupportedSpace(
            f"{self.name} would need {size:,} numbers ({what}{columns} for each feature, {4 * size / 2**30:,.1f} GiB "
            f"for each seed), and the limit is {LARGEST_TABLE:,}. Use {instead}."
        )

    def feature_map(self, space: Space) -> FeatureMap:
        """The features of the observations of a space. Raises `UnsupportedSpace` or `InvalidSetting`."""
        if self.encoder is not None:
            return _own_features(self.encoder, space)
        if self.features == "raw":
            return Encoder(size=math.prod(space.shape))
        if self.features in ("tile-coding", "polynomial"):
            low, high = self._bounds(space)
            if self.features == "polynomial":
                return Polynomial(low=low, high=high, degree=self.degree)
            return TileCoding(low=low, high=high, tilings=self.tilings, tiles=self.tiles)
        if isinstance(space, Discrete):
            return Table(size=space.n, start=space.start)
        raise UnsupportedSpace(
            f"{self.name} keeps a table of states, and this environment's observations are continuous ({space}). Give "
            "it features (--features tile-coding, polynomial or raw), or use a method with a network, such as dqn."
        )

    def _bounds(self, space: Space) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The bounds of each number of an observation."""
        if isinstance(space, Discrete):
            own = [space.start], [space.start + space.n - 1]
        else:
            bounds = (np.asarray(b, np.float64) for b in (space.low, space.high))
            own = tuple(np.broadcast_to(b, space.shape).ravel() for b in bounds)
        size = len(own[0])
        for name in ("low", "high"):
            given = getattr(self, name)
            require(given is None or len(given) == size, name, given, f"{size} numbers, as the observation has")
        low, high = (tuple(map(float, own[i] if g is None else g)) for i, g in enumerate((self.low, self.high)))
        for i, (a, b) in enumerate(zip(low, high, strict=True)):
            if not (math.isfinite(a) and math.isfinite(b) and a < b):
                raise InvalidSetting(
                    f"number {i} of the observation lies between {a:g} and {b:g}; {self.features} features need finite "
                    f"bounds, the lower one first. Give bounds for all {size} numbers: --low ... --high ..."
                )
        return low, high

    def function(self, spec: Spec, columns: tuple[int, ...]) -> LinearFunction:
        """The function to be learned at its start, with weights `[n, *columns]`."""
        features = self.feature_map(spec.observation_space)
        return LinearFunction(weights=jnp.full((features.size, *columns), self.initial_value), features=features)

    def rate(self, state) -> Any:
        """The step size of now."""
        return state.schedule.at(self.learning_rate, self.learning_rate_end)

    def each_row(
        self,
        learn: Callable[[C, Int[Array, ""] | int, Transition], tuple[C, Array | Mean]],
        start: C,
        rollout: Transition,
    ) -> tuple[C, Metrics]:
        """Learn from the rows of a rollout one after the other, in order of time and of environments.

        `learn(learned, b, t)` is given the transition `t` of environment `b`, and gives what was learned then and the
        TD error, or the `Mean` of several absolute ones. Rows that are not valid change nothing.
        """
        rollout = whole(rollout)
        steps, batch = rollout.reward.shape

        def one_row(learned: Any, place):
            t = jax.tree.map(lambda x: x[place // batch, place % batch], rollout)
            new, td_error = learn(learned, place % batch, t)
            error = td_error if isinstance(td_error, Mean) else Mean(jnp.abs(td_error), jnp.ones(()))
            if t.valid is None:
                return new, error
            return select(t.valid, new, learned), Mean(error.total * t.valid, error.weight * t.valid)

        learned: Any
        if steps * batch == 1:
            learned, error = one_row(start, 0)
        else:
            learned, errors = jax.lax.scan(one_row, start, jnp.arange(steps * batch))
            error = Mean(jnp.sum(errors.total), jnp.sum(errors.weight))
        return learned, {"td_error": error}


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearControl(Linear):
    """A method that learns `Q(s, a)` and acts epsilon-greedily. Its state has `q` and `schedule`."""

    actions = ("discrete",)

    epsilon: float = 0.1
    """Probability of a random action."""
    epsilon_end: float | None = None
    """The same at the last timestep, approached linearly; constant when not given."""
    evaluation_epsilon: float = 0.0
    """Probability of a random action when evaluated; greedy unless set."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        for name in ("epsilon", "epsilon_end", "evaluation_epsilon"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, name, value, "between 0 and 1")

    def q_function(self, spec: Spec) -> LinearFunction:
        """`Q` at its start."""
        assert isinstance(spec.action_space, Discrete)
        return self.function(spec, (spec.action_space.n,))

    def act(self, state, carry, obs, key, *, explore: bool = True):
        q = jax.vmap(state.q)(obs)
        if not explore:
            return exploration.epsilon_greedy(key, q, self.evaluation_epsilon), carry, ()
        return self.explore(state, q, key), carry, ()

    def explore(self, state, q: Float[Array, "B A"], key: Array) -> Int[Array, " B"]:
        """Epsilon-greedy actions, ties broken at random."""
        return exploration.epsilon_greedy_fair(key, q, self.epsilon_now(state))

    def expectation(self, state, q: Float[Array, " A"]) -> Float[Array, ""]:
        """The expected value of the action that `explore` chooses. Ties change nothing: tied actions are worth the
        same."""
        epsilon = self.epsilon_now(state)
        return epsilon * jnp.mean(q) + (1.0 - epsilon) * jnp.max(q)

    def epsilon_now(self, state) -> Any:
        """The probability of a random action."""
        return state.schedule.at(self.epsilon, self.epsilon_end)

    def inspect(self, state, obs) -> dict[str, Array]:
        return {"q_values": state.q(obs)}

    def policy(self, state) -> LinearPolicy:
        return LinearPolicy(state.q)


def _own_features(encoder: Callable[..., Any], space: Space) -> Encoder:
    try:
        shape = jax.eval_shape(encoder, jax.ShapeDtypeStruct(space.shape, space.dtype)).shape
    except Exception as error:
        raise InvalidSetting(f"the encoder cannot take an observation of shape {space.shape}: {error}") from None
    if len(shape) != 1:
        raise InvalidSetting(f"the encoder gives features of shape {shape}; they must be a vector.")
    return Encoder(size=shape[0], function=Own.of(encoder))


def row(table: LinearFunction, obs: Array) -> Int[Array, ""]:
    """Where in a table the values of a state are."""
    indices = table.features(obs).indices
    assert indices is not None
    return indices[0]


def check_episode_length(longest: int, spec: Spec | None) -> None:
    """Raise `InvalidSetting` unless episodes of an environment fit into a memory of so many steps."""
    require(1 <= longest < 2**31, "max_episode_length", longest, "at least 1")
    if spec is None or spec.max_episode_steps is None:
        return
    needed = spec.max_episode_steps
    expected = f"at least {needed}, because that is how long an episode of this environment can be"
    require(needed <= longest, "max_episode_length", longest, expected)


def too_long(raised: Bool[Array, "..."], name: str, longest: int) -> Alarm:
    """The alarm of the method `name`, which can remember episodes of `longest` steps."""
    sentence = (
        f"an episode has gone on for more than max_episode_length (--max-episode-length) = {longest:,} steps, and "
        f"{name} learns from whole ones. Allow longer episodes, or give the environment a time limit."
    )
    return Alarm(jnp.any(raised), sentence)


def only(action: Int[Array, ""], amount: Float[Array, ""] | float, actions: int) -> Float[Array, " A"]:
    """`amount` at `action`, 0 at the others."""
    return jnp.where(jnp.arange(actions) == action, amount, 0.0)
