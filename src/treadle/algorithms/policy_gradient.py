"""What policy gradient methods have in common: a policy, the values beside it, acting and descending.

A policy maps one observation to a distribution. Of continuous actions it is a distribution over numbers in units of
half the space's width: 0 is the middle, -1 and 1 the bounds, at which what was drawn beyond is cut before the
environment sees it. Probabilities are those of what was drawn.
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
import optax
from jaxtyping import Array, Bool, Float

from treadle import optimise
from treadle.algorithms.base import Algorithm, require
from treadle.convolution import FeatureName, check_features, features_for, features_size, hidden_sizes_after, resolve
from treadle.distributions import Categorical, Distribution, Gaussian
from treadle.errors import InvalidSetting, UnsupportedSpace
from treadle.networks import (
    LARGEST_ONE_HOT,
    MLP,
    ActionScaling,
    Activation,
    CategoricalPolicy,
    Features,
    GaussianPolicy,
    Initialisation,
    Raveled,
    SharedValue,
    TanhGaussianPolicy,
    ValueNetwork,
    ravel,
)
from treadle.normalise import EPSILON, Moments, RewardScale
from treadle.returns import gae
from treadle.schedules import Schedule
from treadle.spaces import Box, Discrete, Space
from treadle.types import Action, Carry, Mean, Metrics, Obs, Spec, Transition, select

T = TypeVar("T")


class Networks(NamedTuple):
    """What is descended: a policy, and the values of observations where the method learns them."""

    policy: Raveled
    value: Raveled | None
    """A `SharedValue` where values are read off the policy's features."""

    def both(self, obs: Obs) -> tuple[Any, Any]:
        """The policy's distribution for one observation and its value, `None` where none is learned. Features that are
        shared are computed once, and so is their gradient."""
        if self.value is None:
            return self.policy(obs), None
        if not isinstance(value := self.value.module, SharedValue):
            return self.policy(obs), self.value(obs)
        policy: Any = self.policy.module
        features = policy.features(obs)
        return dataclasses.replace(policy, features=_as_they_are)(features), value(features)

    def value_of(self, obs: Obs) -> Any:
        """The value of one observation alone."""
        return self.both(obs)[1]


def _as_they_are(features: Array) -> Array:
    """Of a policy that is given its features instead of an observation."""
    return features


class Learner(NamedTuple):
    """What all these methods change while they learn."""

    networks: Networks
    opt_state: optax.OptState
    actions: ActionScaling
    observations: Moments | None
    """By which observations are normalised; `None` where they are not."""
    rewards: RewardScale | None
    schedule: Schedule


class Acting(NamedTuple):
    """What acting needs."""

    policy: Raveled
    actions: ActionScaling
    observations: Moments | None


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyGradient(Algorithm):
    """A method that descends a loss of a policy, with or without values beside it.

    Its state is a `Learner`, or has one as its field `learner`.
    """

    workers = "rollouts"

    learning_rate: float = 1e-3
    """Step size of the policy's optimiser."""
    learning_rate_end: float | None = None
    """Step size at the last timestep, approached linearly, and the values' in proportion; constant when not given."""
    critic_learning_rate: float | None = None
    """Step size for the values; the policy's when not given."""
    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    entropy_coefficient: float = 0.0
    """How much the policy's entropy counts in the loss, which keeps it from becoming certain too early."""
    optimiser: optimise.Optimiser = "adam"
    """Rule of the gradient step."""
    max_grad_norm: float | None = 0.5
    """Clip the global norm of the gradient, over policy and values together, to this; `None` does not."""
    features: FeatureName = "auto"
    """What observations become first: `nature` and `dqn2013` are the convolutional networks of Mnih et al. (2015 and
    2013) for images, `flat` is one vector, and `auto` takes `nature` for images of bytes that it fits, else `flat`."""
    share_features: bool = True
    """Read the values off the policy's convolutions, where it has some, instead of giving them their own."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Units of each hidden layer of the policy; convolutional networks have their own."""
    critic_hidden_sizes: tuple[int, ...] | None = None
    """Those of the values; like the policy's when not given."""
    activation: Activation = "tanh"
    """Between the layers; convolutional networks have relu."""
    initialisation: Initialisation = "orthogonal"
    """Orthogonal weights and zero biases, or both scaled by 1/sqrt(inputs) (PyTorch's default)."""
    std: Literal["parameter", "network"] = "parameter"
    """Deviation of continuous actions: a `parameter` for each number, or from the `network` by softplus, with means by
    tanh, which may need an `entropy_coefficient` (0.01, say) lest it vanish."""
    initial_log_std: float = 0.0
    """Logarithm of the first deviation where it is a parameter, in units of half the action space's width."""
    normalise_observations: bool = False
    """Subtract the running mean from observations and divide by their deviation; both are saved with the agent."""
    normalise_rewards: bool = False
    """Divide what learning sees of rewards by the running deviation of the discounted return."""
    policy_network: Callable[..., Any] | None = None
    """Your own policy instead of the built-in one, from one observation to a distribution (`treadle.distributions`):
    any callable JAX tree. Its weights are where every seed starts."""
    value_network: Callable[..., Any] | None = None
    """Your own values instead of the built-in ones, from one observation to a number."""

    @property
    def needs_same_environments(self) -> bool:
        return self.normalise_rewards  # by a running return of each

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        check_networks_and_rates(self)
        require(math.isfinite(self.initial_log_std), "initial_log_std", self.initial_log_std, "a finite number")
        require(self.entropy_coefficient >= 0, "entropy_coefficient", self.entropy_coefficient, "0 or more")
        if spec is not None:
            check_actions(spec.action_space, self.name)
            check_observations(spec.observation_space, self.name, self.normalise_observations)
            if self.policy_network is None:
                check_features(self.features, spec.observation_space)
            self._check_own_networks(spec)

    def _check_own_networks(self, spec: Spec) -> None:
        """Raise `InvalidSetting` for networks of the user's own that do not fit the spaces."""
        space = spec.action_space
        is_discrete = isinstance(space, Discrete)
        drawn = (space.n,) if is_discrete else (math.prod(space.shape),)
        if self.policy_network is not None:
            given = output_of(self.policy_network, "policy_network", spec.example.obs)
            kind = Categorical if is_discrete else Gaussian
            if not isinstance(given, kind) or any(getattr(x, "shape", None) != drawn for x in given):
                raise InvalidSetting(
                    f"policy_network gives {given} for one observation; it must be a treadle.distributions."
                    f"{kind.__name__} whose {' and '.join(kind._fields)} have the shape {drawn}, since the actions are "
                    f"{space}."
                )
        if self.value_network is not None:
            given = output_of(self.value_network, "value_network", spec.example.obs)
            if getattr(given, "shape", None) != ():
                raise InvalidSetting(f"value_network gives {given} for one observation; it must be one number.")

    def prepared(self) -> Self:
        own = {"policy_network": self.policy_network, "value_network": self.value_network}
        return dataclasses.replace(
            self, **{name: ravel(network) for name, network in own.items() if network is not None}
        )

    # What the state begins with

    def start(self, key: Array, spec: Spec, with_values: bool = True) -> Learner:
        """The learner before its first step."""
        policy_key, value_key = jax.random.split(key)
        policy = self.build_policy(policy_key, spec) if self.policy_network is None else self.policy_network
        value = None
        if with_values:
            value = ravel(self.build_value(value_key, spec) if self.value_network is None else self.value_network)
        networks = Networks(ravel(policy), value)
        return Learner(
            networks=networks,
            opt_state=optimise.start(self.gradient_rule, networks),
            actions=ActionScaling(spec.action_space),
            observations=Moments.start(spec.observation_space.shape) if self.normalise_observations else None,
            rewards=RewardScale.start(spec.num_envs) if self.normalise_rewards else None,
            schedule=Schedule.start(spec),
        )

    def build_policy(self, key: Array, spec: Spec) -> Any:
        features = features_for(key, self.features, spec.observation_space, self.initialisation)
        space = spec.action_space
        if isinstance(space, Discrete):
            return CategoricalPolicy(features, self.mlp(key, features, space.n, 0.01))
        size = math.prod(space.shape)
        if self.std == "network":
            return TanhGaussianPolicy(features, self.mlp(key, features, 2 * size, 0.01))
        log_std = jnp.full(size, self.initial_log_std)
        return GaussianPolicy(features, self.mlp(key, features, size, 0.01), log_std)

    def build_value(self, key: Array, spec: Spec) -> ValueNetwork | SharedValue:
        space = spec.observation_space
        if self.share_features and self.policy_network is None and resolve(self.features, space) != "flat":
            sizes = features_size(self.features, space), 1
            return SharedValue(MLP(key, sizes, self.activation, self.initialisation))
        features = features_for(key, self.features, space, self.initialisation)
        hidden = self.hidden_sizes if self.critic_hidden_sizes is None else self.critic_hidden_sizes
        sizes = features.size, *hidden_sizes_after(features, hidden), 1
        return ValueNetwork(features, MLP(key, sizes, self.activation, self.initialisation))

    def mlp(self, key: Array, features: Features, outputs: int, output_scale: float) -> MLP:
        sizes = (features.size, *hidden_sizes_after(features, self.hidden_sizes), outputs)
        return MLP(key, sizes, self.activation, self.initialisation, output_scale)

    # Acting

    def act(self, state: Any, carry: Carry, obs: Obs, key: Array, *, explore: bool = True) -> tuple[Action, Carry, Any]:
        """Actions drawn from the policy, or its most probable ones. Of continuous actions the extras are what was
        drawn, before it was scaled and cut."""
        acting = state if isinstance(state, Acting) else self.policy(state)
        distribution = jax.vmap(acting.policy)(normalised(acting.observations, obs))
        drawn = distribution.sample(key) if explore else distribution.mode()
        is_discrete = isinstance(acting.actions.space, Discrete)
        return acting.actions(drawn), carry, self.remembered(() if is_discrete else drawn, distribution)

    def remembered(self, drawn: Any, distribution: Distribution) -> Any:
        """What a step keeps for learning of how its action was drawn."""
        return drawn

    def policy(self, state: Any) -> Acting:
        learner = learner_of(state)
        return Acting(learner.networks.policy, learner.actions, learner.observations)

    def shared(self, state: Any) -> Any:
        return self.policy(state)

    def inspect(self, state: Any, obs: Obs) -> dict[str, Array]:
        learner = learner_of(state)
        seen = normalised(learner.observations, obs)
        distribution = learner.networks.policy(seen)
        found = {} if learner.networks.value is None else {"value": learner.networks.value_of(seen)}
        if isinstance(distribution, Categorical):
            return {**found, "probabilities": jnp.exp(distribution.log_probs)}
        return {**found, "mean": learner.actions(distribution.mean), "std": learner.actions.deviation(distribution.std)}

    # Learning: one gradient step a rollout, where a method does not say otherwise

    def update(self, state: Any, rollout: Transition, key: Array) -> tuple[Any, Metrics]:
        seen, rollout = self.observe(state, rollout)
        gradients, metrics = self.gradients(seen, rollout, key)
        learned = if_any(rollout.valid, self.apply(seen, gradients), seen)
        return self.counted(learned, rollout), {name: over(x, rollout.valid) for name, x in metrics.items()}

    def gradients(self, state: Learner, rollout: Transition, key: Array) -> tuple[Networks, Metrics]:
        """Of the loss of a rollout as `observe` returned it."""
        return jax.grad(self.loss, has_aux=True)(state.networks, rollout)

    def apply(self, state: Learner, gradients: Networks) -> Learner:
        return self.descend(state, gradients)

    def loss(self, networks: Networks, rollout: Transition) -> tuple[Array, Metrics]:
        """The loss of a rollout, and what is reported of it."""
        raise NotImplementedError

    @property
    def gradient_rule(self) -> optax.GradientTransformation:
        return optimise.make(self.optimiser, self.max_grad_norm)

    def observe(self, learner: Learner, rollout: Transition) -> tuple[Learner, Transition]:
        """The learner once it has seen a rollout `[T, B]`, and the rollout as it is learned from: observations and
        rewards normalised, and as actions what was drawn.

        Observations are normalised as they were when the policy acted; what is new about them counts from the next
        rollout on. Rewards are scaled by all that were seen, these among them.
        """
        rewards = learner.rewards
        if rewards is not None:
            rewards = rewards.after(rollout, self.gamma)
        moments, obs = learner.observations, rollout.obs
        if moments is not None:
            valid = None if rollout.valid is None else rollout.valid.ravel()
            moments = moments.after(obs.reshape(-1, *moments.mean.shape), valid)
        is_discrete = isinstance(learner.actions.space, Discrete)
        seen = rollout._replace(
            obs=normalised(learner.observations, obs),
            next_obs=normalised(learner.observations, rollout.next_obs),
            action=rollout.action if is_discrete else rollout.extras,
            reward=rollout.reward if rewards is None else rewards.scale(rollout.reward),
            extras=(),
        )
        return learner._replace(observations=moments, rewards=rewards), seen

    def counted(self, learner: Learner, rollout: Transition) -> Learner:
        """The learner with the steps of a rollout counted, which it has learned from."""
        return learner._replace(schedule=learner.schedule.after(rollout))

    def descend(self, learner: Learner, gradients: Networks) -> Learner:
        """One step against the gradients, at the learning rates where the rollout at hand began."""
        rate = learner.schedule.at(self.learning_rate, self.learning_rate_end)
        critic = self.critic_learning_rate
        critic_rate = rate if critic is None else critic * rate / self.learning_rate
        rates = Networks(rate, None if learner.networks.value is None else critic_rate)  # pyright: ignore[reportArgumentType]
        networks, opt_state = optimise.descend(
            self.gradient_rule, learner.networks, learner.opt_state, gradients, rates
        )
        return learner._replace(networks=networks, opt_state=opt_state)

    def begin_episodes(self, state: Any) -> Any:
        learner = learner_of(state)
        if learner.rewards is None:
            return state
        learner = learner._replace(rewards=learner.rewards.begin_episodes())
        return learner if isinstance(state, Learner) else state._replace(learner=learner)


def learner_of(state: Any) -> Learner:
    return state if isinstance(state, Learner) else state.learner


def normalised(moments: Moments | None, obs: Obs) -> Obs:
    """Observations as networks see them."""
    return obs if moments is None else moments.normalise(obs)


def advantages(
    networks: Networks, v: Float[Array, "T B"], rollout: Transition, gamma: Any, gae_lambda: Any
) -> Float[Array, "T B"]:
    """The generalised advantage of each step of a rollout whose observations have the values `v`. It carries no
    gradient."""
    fixed, v_next = jax.lax.stop_gradient((v, jax.vmap(jax.vmap(networks.value_of))(rollout.next_obs)))
    discount = gamma * (1.0 - rollout.terminated)
    over_envs = jax.vmap(gae, in_axes=(1, 1, 1, 1, 1, None), out_axes=1)
    return over_envs(rollout.reward, discount, fixed, v_next, rollout.ended, gae_lambda)


def if_any(valid: Bool[Array, "..."] | None, learned: T, before: T) -> T:
    """What was learned, unless there was no row that counts: an optimiser that is fed zeros moves all the same."""
    return learned if valid is None else select(jnp.any(valid), learned, before)


def over(mean: Array, valid: Bool[Array, "..."] | None) -> Array | Mean:
    """A mean over the rows that count as a metric, which there is none of where none does."""
    if valid is None:
        return mean
    count = jnp.sum(valid).astype(jnp.float32)
    return Mean(mean * count, count)


def mean_of(values: Float[Array, "..."], valid: Bool[Array, "..."] | None) -> Float[Array, ""]:
    """The mean over the rows that count; 0 where none does."""
    if valid is None:
        return jnp.mean(values)
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def standardised(values: Float[Array, " N"], valid: Bool[Array, " N"] | None = None) -> Float[Array, " N"]:
    """Less their mean, over their deviation; one value alone stays as it is, having none."""
    count = jnp.asarray(values.size if valid is None else jnp.sum(valid))
    centred = values - mean_of(values, valid)
    deviation = jnp.sqrt(mean_of(centred**2, valid))
    return jnp.where(count > 1, centred / (deviation + EPSILON), values)


def check_networks_and_rates(algorithm: Any) -> None:
    """Raise `InvalidSetting` for step sizes, a discount or layers that make no sense."""
    rate, end, gamma = algorithm.learning_rate, algorithm.learning_rate_end, algorithm.gamma
    require(0 < rate < math.inf, "learning_rate", rate, "greater than 0, and finite")
    require(end is None or 0 <= end < math.inf, "learning_rate_end", end, "0 or more, or None")
    require(0 <= gamma <= 1, "gamma", gamma, "between 0 and 1")
    for name in ("critic_learning_rate", "max_grad_norm"):
        value = getattr(algorithm, name)
        require(value is None or 0 < value < math.inf, name, value, "greater than 0, or None")
    for name in ("hidden_sizes", "critic_hidden_sizes"):
        sizes = getattr(algorithm, name)
        require(all(size >= 1 for size in sizes or ()), name, sizes, "a list of positive numbers")


def output_of(network: Callable[..., Any], setting: str, *arguments: Array) -> Any:
    """The shapes of what a network of the user's own gives for one example. Raises `InvalidSetting` where it is no
    network, or does not take the example."""
    try:
        network = ravel(network)
    except InvalidSetting as error:
        raise InvalidSetting(f"{setting} must be a callable JAX tree with parameters: {error}") from None
    try:
        return jax.eval_shape(network, *arguments)
    except (TypeError, ValueError) as error:
        taken = " and ".join(
            f"{what} of shape {x.shape}" for what, x in zip(("an observation", "an action"), arguments, strict=False)
        )
        raise InvalidSetting(f"{setting} cannot take {taken}: {error}") from None


def check_actions(space: Space, name: str) -> None:
    """Raise `UnsupportedSpace` for actions that no policy here draws."""
    if not isinstance(space, Box):
        return
    if not np.issubdtype(space.dtype, np.floating):
        raise UnsupportedSpace(
            f"{name} draws continuous actions as real numbers, and this environment has {space} of whole numbers. Make "
            "them one Discrete space with an action wrapper."
        )
    if not space.is_bounded:
        raise UnsupportedSpace(
            f"{name} scales what it draws to the bounds of the action space, and this environment's has none on some "
            f"side: {space}. Give it bounds, in the environment's action_space or with "
            "gymnasium.wrappers.TransformAction."
        )


def check_observations(space: Space, name: str, normalise: bool) -> None:
    """Raise `UnsupportedSpace` for observations that the built-in networks, or a normaliser, do not take."""
    if isinstance(space, Discrete) and space.n > LARGEST_ONE_HOT:
        raise UnsupportedSpace(
            f"{name} gives each discrete observation an input of its own, and this environment has {space.n:,}; "
            f"{LARGEST_ONE_HOT:,} are the most. Describe them by a few numbers with an observation wrapper."
        )
    if normalise and (isinstance(space, Discrete) or not np.issubdtype(space.dtype, np.floating)):
        raise UnsupportedSpace(
            f"normalise_observations (--normalise-observations) needs observations that are real numbers, and this "
            f"environment has {space}. Leave it out."
        )
