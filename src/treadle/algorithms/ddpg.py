"""Deep deterministic policy gradient (Lillicrap et al. 2016, "Continuous control with deep reinforcement learning")."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from treadle import exploration, hoist, optimise
from treadle.algorithms.base import Algorithm, Survey, register, require
from treadle.algorithms.policy_gradient import (
    Acting,
    check_actions,
    check_networks_and_rates,
    check_observations,
    normalised,
    output_of,
)
from treadle.errors import InvalidSetting
from treadle.memory import UniformMemory
from treadle.networks import (
    MLP,
    ActionScaling,
    ActionValueNetwork,
    Activation,
    DeterministicPolicy,
    Features,
    Initialisation,
    Raveled,
    ravel,
)
from treadle.normalise import Moments
from treadle.returns import td_error
from treadle.schedules import Schedule
from treadle.sharding import split_rows
from treadle.types import Action, Carry, Counter, Mean, Metrics, Obs, Spec, Transition


class Networks(NamedTuple):
    """A policy, and the values of observations and actions."""

    policy: Raveled
    value: Raveled


class Learned(NamedTuple):
    """What a gradient step changes."""

    networks: Networks
    targets: Networks
    opt_states: tuple[optax.OptState, optax.OptState]
    """Of the policy's optimiser and of the values'."""
    gradient_steps: Counter
    """How many have been taken."""


class DDPGState(NamedTuple):
    """Everything that changes while DDPG learns."""

    learned: Learned
    memory: Any
    actions: ActionScaling
    observations: Moments | None
    """By which observations are normalised; `None` where they are not."""
    schedule: Schedule


@register("ddpg")
class DDPG(Algorithm):
    """A deterministic policy that climbs the values of its own actions, learned from replayed experience.

    The values descend `(y - Q(s, a))^2` with `y = r + gamma Q'(s', mu'(s'))`, without the second term where the episode
    terminated; then the policy descends `-Q(s, mu(s))`; then the targets `Q'` and `mu'` follow (algorithm 1 of the
    paper). Actions are explored by adding noise to the policy's.

    The networks see actions in units of half the action space's width, in which -1 and 1 are the bounds.
    """

    survey = Survey("model-free", "values and policy", "step", "off-policy")
    actions = ("continuous",)

    learning_rate: float = 1e-3
    """Step size of the policy's optimiser."""
    learning_rate_end: float | None = None
    """Step size at the last timestep, approached linearly, and the values' in proportion; constant when not given."""
    critic_learning_rate: float | None = None
    """Step size for the values; the policy's when not given."""
    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    batch_size: int = 128
    """Transitions in one gradient step."""
    capacity: int = 200_000
    """Transitions that the replay memory holds."""
    learning_starts: int = 1_000
    """Environment steps before the first gradient step; until then actions are uniformly random."""
    train_frequency: int = 1
    """Steps of each environment between two rounds of gradient steps."""
    gradient_steps: int = 1
    """Gradient steps in a round, each of the values and then of the policy."""
    tau: float = 0.005
    """How far a target network moves to its network in one update: 1 copies it, less averages (soft target)."""
    target_update_period: int = 1
    """Gradient steps between two updates of the target networks."""
    actor_target_update_period: int | None = None
    """Gradient steps between two updates of the policy's target network; as often as the values' when not given."""
    noise: Literal["gaussian", "ornstein-uhlenbeck"] = "gaussian"
    """Noise of each step by itself, or noise that goes on from step to step and starts from 0 in each episode."""
    noise_std: float = 0.1
    """Deviation of the noise in units of half the action space's width. Of Ornstein-Uhlenbeck noise it is the deviation
    per root of time (sigma)."""
    noise_decay: float = 1.0
    """Factor of the deviation for each environment step once learning starts, which with one environment and a
    `train_frequency` of 1 is each round of gradient steps; 1 keeps it."""
    noise_std_end: float = 0.0
    """The deviation falls no lower than this."""
    ou_theta: float = 0.15
    """Rate at which Ornstein-Uhlenbeck noise is drawn to 0."""
    ou_dt: float = 0.01
    """Time that a step takes Ornstein-Uhlenbeck noise; the paper's steps take 1."""
    optimiser: optimise.Optimiser = "adam"
    """Rule of the gradient steps."""
    max_grad_norm: float | None = None
    """Clip the global norm of each network's gradient to this; `None` does not."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Units of each hidden layer of the policy."""
    critic_hidden_sizes: tuple[int, ...] | None = None
    """Those of the values; like the policy's when not given."""
    activation: Activation = "relu"
    """Between the layers."""
    initialisation: Initialisation = "orthogonal"
    """Orthogonal weights, the policy's last ones a hundredth of that so that its first actions are near the middle, and
    zero biases; or all scaled by 1/sqrt(inputs) (PyTorch's default)."""
    normalise_observations: bool = False
    """Subtract the running mean from observations and divide by their deviation; both are saved with the agent."""
    policy_network: Callable[..., Any] | None = None
    """Your own policy instead of the built-in one, from one observation to `n` numbers in [-1, 1]: any callable JAX
    tree. Its weights are where every seed starts."""
    value_network: Callable[..., Any] | None = None
    """Your own values instead of the built-in ones, from one observation and an action of `n` such numbers to a
    number."""

    @property
    def num_steps(self) -> int:
        return self.train_frequency

    @property
    def memory(self) -> UniformMemory:
        return UniformMemory(capacity=self.capacity, batch_size=self.batch_size)

    @property
    def gradient_rule(self) -> optax.GradientTransformation:
        return optimise.make(self.optimiser, self.max_grad_norm)

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        check_networks_and_rates(self)
        counts = ("batch_size", "capacity", "train_frequency", "gradient_steps", "target_update_period")
        for name in (*counts, "actor_target_update_period"):
            value = getattr(self, name)
            require(value is None or 1 <= value < 2**31, name, value, "between 1 and 2^31 - 1")
        within = f"at most the memory's capacity, which is {self.capacity} (--capacity)"
        require(self.batch_size <= self.capacity, "batch_size", self.batch_size, within)
        require(self.learning_starts >= 0, "learning_starts", self.learning_starts, "0 or more")
        for name in ("tau", "noise_decay", "ou_dt"):
            require(0 < getattr(self, name) <= 1, name, getattr(self, name), "greater than 0 and at most 1")
        for name in ("noise_std", "ou_theta"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more, and finite")
        lowest = self.noise_std_end
        require(0 <= lowest <= self.noise_std, "noise_std_end", lowest, f"between 0 and noise_std, {self.noise_std}")
        if spec is not None:
            check_actions(spec.action_space, self.name)
            check_observations(spec.observation_space, self.name, self.normalise_observations)
            self._check_own_networks(spec)

    def _check_own_networks(self, spec: Spec) -> None:
        obs, unit = spec.example.obs, jnp.zeros(math.prod(spec.action_space.shape))
        own = (
            ("policy_network", self.policy_network, (obs,), unit.shape, "a number for each of the action's"),
            ("value_network", self.value_network, (obs, unit), (), "the value of the action"),
        )
        for name, network, arguments, wanted, meaning in own:
            if network is None:
                continue
            given = getattr(output_of(network, name, *arguments), "shape", None)
            if given != wanted:
                raise InvalidSetting(
                    f"{name} gives an output of shape {given} for one example; it must be {wanted}, {meaning}."
                )

    def prepared(self) -> DDPG:
        own = {"policy_network": self.policy_network, "value_network": self.value_network}
        return dataclasses.replace(
            self, **{name: ravel(network) for name, network in own.items() if network is not None}
        )

    # What the state begins with

    def init(self, key: Array, spec: Spec) -> DDPGState:
        policy_key, value_key = jax.random.split(key)
        networks = Networks(
            policy=ravel(self.build_policy(policy_key, spec) if self.policy_network is None else self.policy_network),
            value=ravel(self.build_value(value_key, spec) if self.value_network is None else self.value_network),
        )
        learned = Learned(
            networks=networks,
            targets=jax.tree.map(jnp.copy, networks),
            opt_states=(
                optimise.start(self.gradient_rule, networks.policy),
                optimise.start(self.gradient_rule, networks.value),
            ),
            gradient_steps=Counter.zero(),
        )
        return DDPGState(
            learned=learned,
            memory=self.memory.init(spec.example),
            actions=ActionScaling(spec.action_space),
            observations=Moments.start(spec.observation_space.shape) if self.normalise_observations else None,
            schedule=Schedule.start(spec),
        )

    def build_policy(self, key: Array, spec: Spec) -> DeterministicPolicy:
        features = Features(spec.observation_space)
        sizes = (features.size, *self.hidden_sizes, math.prod(spec.action_space.shape))
        return DeterministicPolicy(features, MLP(key, sizes, self.activation, self.initialisation, 0.01))

    def build_value(self, key: Array, spec: Spec) -> ActionValueNetwork:
        features = Features(spec.observation_space)
        hidden = self.hidden_sizes if self.critic_hidden_sizes is None else self.critic_hidden_sizes
        sizes = (features.size + math.prod(spec.action_space.shape), *hidden, 1)
        return ActionValueNetwork(features, MLP(key, sizes, self.activation, self.initialisation))

    # Acting

    def init_carry(self, spec: Spec) -> Carry:
        """Ornstein-Uhlenbeck noise `[B, n]` of deviation 1 per root of time; nothing for other noise."""
        if self.noise == "gaussian":
            return ()
        return jnp.zeros((spec.num_envs, math.prod(spec.action_space.shape)))

    def act(
        self, state: DDPGState | Acting, carry: Carry, obs: Obs, key: Array, *, explore: bool = True
    ) -> tuple[Action, Carry, Any]:
        acting = state if isinstance(state, Acting) else self.policy(state)
        unit = jax.vmap(acting.policy)(normalised(acting.observations, obs))
        if not explore:
            return acting.actions(unit), carry, ()
        assert isinstance(state, DDPGState)
        noise_key, uniform_key = jax.random.split(key)
        if self.noise == "gaussian":
            noise = jax.random.normal(noise_key, unit.shape)
        else:
            noise = carry = exploration.ornstein_uhlenbeck(noise_key, carry, self.ou_theta, 1.0, self.ou_dt)
        unit += self.noise_std_at(state) * noise
        if self.learning_starts > 0:
            uniform = jax.random.uniform(uniform_key, unit.shape, minval=-1.0, maxval=1.0)
            unit = jnp.where(state.schedule.step.value < self.learning_starts, uniform, unit)
        return acting.actions(unit), carry, ()

    def noise_std_at(self, state: DDPGState) -> Float[Array, ""]:
        """The deviation of the noise at the next step."""
        learning_for = jnp.maximum(state.schedule.step.value - self.learning_starts, 0)
        return jnp.maximum(self.noise_std * self.noise_decay**learning_for, self.noise_std_end)

    def inspect(self, state: DDPGState, obs: Obs) -> dict[str, Array]:
        networks, seen = state.learned.networks, normalised(state.observations, obs)
        action = networks.policy(seen)
        return {"value": networks.value(seen, action), "mean": state.actions(action)}

    def policy(self, state: DDPGState) -> Acting:
        return Acting(state.learned.networks.policy, state.actions, state.observations)

    # Learning

    def update(self, state: DDPGState, rollout: Transition, key: Array) -> tuple[DDPGState, Metrics]:
        """Store the rollout; once `learning_starts` is passed, take `gradient_steps` on replayed batches."""
        schedule, observations = state.schedule.after(rollout), state.observations
        if observations is not None:
            valid = None if rollout.valid is None else rollout.valid.ravel()
            observations = observations.after(rollout.obs.reshape(-1, *observations.mean.shape), valid)
        memory = self.memory.add(state.memory, rollout._replace(extras=()))
        rate = state.schedule.at(self.learning_rate, self.learning_rate_end)

        def gradient_step(learned: Learned, key: Array) -> tuple[Learned, tuple[Array, Array]]:
            batch = split_rows(self.memory.sample(memory, key).items)
            batch = batch._replace(
                obs=normalised(observations, batch.obs),
                next_obs=normalised(observations, batch.next_obs),
                action=state.actions.inverse(batch.action),
            )
            return self.gradient_step(learned, batch, rate)

        def learn(learned: Learned, key: Array) -> tuple[Learned, tuple[Array, Array]]:
            return hoist.scan(gradient_step, learned, jax.random.split(key, self.gradient_steps))

        def wait(learned: Learned, key: Array) -> tuple[Learned, tuple[Array, Array]]:
            return learned, (jnp.zeros(self.gradient_steps), jnp.zeros(self.gradient_steps))

        learning = schedule.step.value > self.learning_starts
        learned, (value_losses, policy_losses) = hoist.cond(learning, learn, wait, state.learned, key)
        weight = learning.astype(jnp.float32)
        metrics: Metrics = {
            "loss": Mean(jnp.mean(value_losses) + jnp.mean(policy_losses), weight),
            "value_loss": Mean(jnp.mean(value_losses), weight),
            "policy_loss": Mean(jnp.mean(policy_losses), weight),
            "noise_std": self.noise_std_at(state),
        }
        return DDPGState(learned, memory, state.actions, observations, schedule), metrics

    def gradient_step(self, learned: Learned, batch: Transition, rate: Any) -> tuple[Learned, tuple[Array, Array]]:
        """One step of the values, one of the policy by the new values, and the targets behind them; with the two
        losses. In the `batch` `[N, ...]` actions are in units; `rate` is the policy's learning rate."""
        (policy, value), targets = learned.networks, learned.targets
        policy_opt, value_opt = learned.opt_states
        value_loss, gradient = jax.value_and_grad(self.value_loss)(value, targets, batch)
        critic = self.critic_learning_rate
        critic_rate = rate if critic is None else critic * rate / self.learning_rate
        value, value_opt = optimise.descend(self.gradient_rule, value, value_opt, gradient, critic_rate)
        policy_loss, gradient = jax.value_and_grad(self.policy_loss)(policy, value, batch.obs)
        policy, policy_opt = optimise.descend(self.gradient_rule, policy, policy_opt, gradient, rate)

        steps = learned.gradient_steps.add(1)
        period = self.target_update_period
        targets = Networks(
            self.moved(targets.policy, policy, self.actor_target_update_period or period, steps),
            self.moved(targets.value, value, period, steps),
        )
        learned = Learned(Networks(policy, value), targets, (policy_opt, value_opt), steps)
        return learned, (value_loss, policy_loss)

    def value_loss(self, value: Raveled, targets: Networks, batch: Transition) -> Float[Array, ""]:
        """The mean of `(y - Q(s, a))^2`."""
        return jnp.mean(jax.vmap(self.td_error, in_axes=(None, None, 0))(value, targets, batch) ** 2)

    def td_error(self, value: Any, targets: Networks, t: Transition) -> Float[Array, ""]:
        """r + gamma (1 - terminated) Q'(s', mu'(s')) - Q(s, a); a time limit does not stop the bootstrap."""
        q_next = targets.value(t.next_obs, targets.policy(t.next_obs))
        return td_error(value(t.obs, t.action), t.reward, self.gamma * (1.0 - t.terminated), q_next)

    def policy_loss(self, policy: Raveled, value: Any, obs: Float[Array, "N ..."]) -> Float[Array, ""]:
        """The mean of `-Q(s, mu(s))`, whose gradient is the deterministic policy gradient (Silver et al. 2014)."""
        return -jnp.mean(jax.vmap(lambda obs: value(obs, policy(obs)))(obs))

    def moved(self, target: Raveled, network: Raveled, period: int, steps: Counter) -> Raveled:
        """A target network after so many gradient steps: every `period` of them it follows its network."""

        def follow(target: Raveled) -> Raveled:
            return jax.tree.map(lambda slow, fast: self.tau * fast + (1.0 - self.tau) * slow, target, network)

        if period == 1:
            return follow(target)
        return jax.lax.cond(steps.value % period == 0, follow, lambda target: target, target)
