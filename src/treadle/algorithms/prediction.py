"""What methods have in common that learn the values of a given policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from treadle.algorithms.base import require
from treadle.algorithms.linear import Linear
from treadle.errors import InvalidSetting, UnsupportedSpace
from treadle.features import LinearFunction, Own
from treadle.registry import as_tree
from treadle.returns import td_error
from treadle.spaces import Discrete
from treadle.types import Spec, Transition


@as_tree
class FixedPolicy:
    """A policy that gives each action the same probability in every state."""

    probabilities: tuple[float, ...]

    def __call__(self, obs: Any) -> Float[Array, " A"]:
        return jnp.asarray(self.probabilities, jnp.float32)


class PredictionPolicy(NamedTuple):
    """What acting as the target policy needs, and the values that were learned."""

    v: LinearFunction
    target: Callable[[Any], Float[Array, " A"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction(Linear):
    """A method that learns `v(s)`, the values of a given policy, and acts by it. Its state has `v`, `target` and
    `schedule`."""

    actions = ()

    target_policy: tuple[float, ...] | None = None
    """Probability of each action under the policy whose values are learned, the same in every state; all alike when
    not given."""
    policy_function: Callable[..., Any] | None = None
    """The same as a function of your own: from one observation to the probabilities of all actions."""
    initial_weights: tuple[float, ...] | None = None
    """What the weights start with, one number for each feature, instead of `initial_value` in all."""

    def check(self, spec: Spec | None = None) -> None:
        if spec is not None and not isinstance(spec.action_space, Discrete):
            raise UnsupportedSpace(
                f"{self.name} predicts for a policy that gives each of some discrete actions a probability, and this "
                f"environment has {spec.action_space}. Make its actions discrete: --discretise-actions 11."
            )
        super().check(spec)
        both = self.target_policy is not None and self.policy_function is not None
        require(not both, "target_policy", self.target_policy, "None where a policy_function is given")
        self.check_probabilities("target_policy", spec)
        if spec is not None:
            self._check_policy_function(spec)
            given, size = self.initial_weights, self.feature_map(spec.observation_space).size
            require(given is None or len(given) == size, "initial_weights", given, f"{size} numbers, one a feature")

    def check_probabilities(self, setting: str, spec: Spec | None) -> None:
        """Raise `InvalidSetting` unless the setting is `None` or the probabilities of all actions."""
        given = getattr(self, setting)
        if given is None:
            return
        is_distribution = all(p >= 0 for p in given) and math.isclose(sum(given), 1.0, abs_tol=1e-5)
        require(is_distribution, setting, given, "probabilities, which sum to 1")
        if spec is not None:
            assert isinstance(spec.action_space, Discrete)
            actions = spec.action_space.n
            require(len(given) == actions, setting, given, f"{actions} probabilities, one for each action")

    def _check_policy_function(self, spec: Spec) -> None:
        if self.policy_function is None:
            return
        assert isinstance(spec.action_space, Discrete)
        shape, actions = spec.example.obs.shape, spec.action_space.n
        try:
            given = jax.eval_shape(self.policy_function, spec.example.obs).shape
        except Exception as error:
            raise InvalidSetting(f"the policy_function cannot take an observation of shape {shape}: {error}") from None
        if given != (actions,):
            raise InvalidSetting(
                f"the policy_function gives an output of shape {given} for one observation; it must be {(actions,)}, "
                "the probabilities of all actions."
            )

    def columns(self, spec: Spec) -> int:
        return 1

    def value_function(self, spec: Spec) -> LinearFunction:
        """`v` at its start."""
        v = self.function(spec, ())
        if self.initial_weights is None:
            return v
        return LinearFunction(weights=jnp.asarray(self.initial_weights, jnp.float32), features=v.features)

    def target(self, spec: Spec) -> Callable[[Any], Float[Array, " A"]]:
        """The policy whose values are learned: from one observation to the probabilities of all actions."""
        if self.policy_function is not None:
            return Own.of(self.policy_function)
        assert isinstance(spec.action_space, Discrete)
        actions = spec.action_space.n
        return FixedPolicy(probabilities=self.target_policy or (1 / actions,) * actions)

    def acting(self, state) -> Callable[[Any], Float[Array, " A"]]:
        """The policy that acts."""
        return state.target

    def act(self, state, carry, obs, key, *, explore: bool = True):
        """Actions drawn from the policy that acts; without exploring the target policy's most probable ones."""
        policy = self.acting(state) if explore else state.target
        probabilities = jax.vmap(policy)(obs)
        action = jax.random.categorical(key, jnp.log(probabilities)) if explore else jnp.argmax(probabilities, axis=-1)
        return action.astype(jnp.int32), carry, ()

    def td_error(self, v: LinearFunction, t: Transition) -> Float[Array, ""]:
        """r + gamma (1 - terminated) v(s') - v(s); a time limit does not stop the bootstrap."""
        return td_error(v(t.obs), t.reward, self.gamma * (1.0 - t.terminated), v(t.next_obs))

    def inspect(self, state, obs) -> dict[str, Array]:
        return {"value": state.v(obs), "probabilities": state.target(obs)}

    def policy(self, state) -> PredictionPolicy:
        return PredictionPolicy(state.v, state.target)
