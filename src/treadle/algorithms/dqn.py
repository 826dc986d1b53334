"""Deep Q-networks (Mnih et al. 2015, "Human-level control through deep reinforcement learning") and their family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from treadle import exploration, frames, hoist, optimise, schedules
from treadle.algorithms.base import Algorithm, Survey, register, require
from treadle.convolution import FeatureName, check_features, features_for, hidden_sizes_after
from treadle.errors import InvalidSetting, UnsupportedSpace
from treadle.frames import FrameMemory, PrioritizedFrameMemory
from treadle.memory import Memory, UniformMemory
from treadle.networks import (
    LARGEST_ONE_HOT,
    MLP,
    Activation,
    DuelingQNetwork,
    Initialisation,
    QNetwork,
    Raveled,
    ravel,
)
from treadle.prioritized import PrioritizedMemory
from treadle.returns import double_q_learning_error, n_step, q_learning_error
from treadle.sharding import split_rows
from treadle.spaces import Discrete
from treadle.types import Counter, Mean, Metrics, Spec, Transition

NOWHERE = 2**31 - 1
"""Of a memory's rows one that there is not, whose priority is nobody's."""


class DQNState(NamedTuple):
    """Everything that changes while DQN learns."""

    network: Raveled
    target_network: Raveled
    opt_state: optax.OptState
    memory: Any
    recent: Transition | None
    """The last `n_step - 1` rows, which wait for those that complete their returns; none where `n_step` is 1, or where
    the memory sums rewards itself."""
    waiting: Counter | None
    """How many of them there are; none where there is nothing that waits."""
    running_max_q: Float[Array, ""]
    """A running mean of `max_a Q(s, a)` where actions were chosen, by which over-estimation shows."""
    step: Counter
    """Environment steps so far, over all environments."""
    total_timesteps: Int[Array, ""]
    """The number of steps for which schedules given as fractions were laid out, once."""


class DQNPolicy(NamedTuple):
    """What acting greedily needs."""

    network: Raveled


@register("dqn")
class DQN(Algorithm):
    """Q-learning with a network, replayed experience and a slowly moving target.

    `y = r + gamma max_a' Q_target(s', a')`, without the second term where the episode terminated; the network
    descends the loss of `y - Q(s, a)` on batches drawn from memory. Every part is as in algorithm 1 of the paper; the
    options cover the settings of the tutorials and of RL Zoo.
    """

    survey = Survey("model-free", "values", "step", "off-policy")
    actions = ("discrete",)

    learning_rate: float = 1e-3
    """Step size of the optimiser."""
    learning_rate_end: float | None = None
    """Step size at the last timestep, approached linearly; a constant learning rate when not given."""
    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    batch_size: int = 64
    """Transitions in one gradient step."""
    capacity: int = 100_000
    """Transitions that the replay memory holds."""
    learning_starts: int = 1_000
    """Environment steps before the first gradient step."""
    train_frequency: int = 1
    """Steps of each environment between two rounds of gradient steps; epsilon is renewed as often."""
    gradient_steps: int = 1
    """Gradient steps in a round."""
    target_update_period: int = 500
    """Environment steps between two updates of the target network."""
    tau: float = 1.0
    """How far the target network moves to the network in one update: 1 copies it, less averages (soft target)."""
    double: bool = False
    """Choose the next action by the network and judge it by the target network (van Hasselt et al. 2016)."""
    dueling: bool = False
    """Give the network a head for the state's value and one for the advantages (Wang et al. 2016)."""
    n_step: int = 1
    """Rewards that are summed before the bootstrap (Sutton 1988; Hessel et al. 2018)."""
    prioritized: bool = False
    """Replay transitions the more often the larger their TD error was (Schaul et al. 2016)."""
    priority_alpha: float = 0.6
    """How far priorities count, from 0 (not at all) to 1 (proportionally)."""
    priority_beta: float = 0.4
    """How far importance weights correct for it at the first step, from 0 to 1."""
    priority_beta_end: float = 1.0
    """The same once `priority_beta_fraction` of the training has passed, approached linearly."""
    priority_beta_fraction: float = 1.0
    """Part of the total timesteps over which beta rises, in [0, 1]."""
    priority_offset: float = 1e-2
    """Added to each error, so that none is never replayed again."""
    priority_clip: float | None = 1.0
    """Errors count for no more than this; `None` does not clip them."""
    priority_weights: Literal["batch", "memory"] = "batch"
    """Whether weights are divided by the largest of the batch or of the whole memory."""
    loss: Literal["huber", "squared"] = "huber"
    """Huber with threshold 1, or the squared TD error."""
    epsilon_start: float = 1.0
    """Probability of a random action at the first step."""
    epsilon_end: float = 0.05
    """Probability of a random action in the end."""
    epsilon_schedule: Literal["linear", "exponential"] = "linear"
    """`linear` arrives after `epsilon_fraction` of the training; `exponential` decays with scale `epsilon_scale`."""
    epsilon_fraction: float = 0.1
    """Part of the total timesteps over which a linear epsilon falls, in [0, 1]."""
    epsilon_scale: float = 1_000.0
    """Steps in which an exponential epsilon falls to 37% of the way."""
    evaluation_epsilon: float = 0.0
    """Probability of a random action when evaluated; greedy unless set."""
    optimiser: optimise.Optimiser = "adam"
    """Rule of the gradient step."""
    max_grad_norm: float | None = 10.0
    """Clip the gradient's global norm to this; `None` does not."""
    max_grad_value: float | None = None
    """Clip each element of the gradient to this; `None` does not."""
    features: FeatureName = "auto"
    """What observations become first: `nature` and `dqn2013` are the convolutional networks of Mnih et al. (2015 and
    2013) for images, `flat` is one vector, and `auto` takes `nature` for images of bytes that it fits, else `flat`."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Units of each hidden layer; convolutional networks have their own."""
    activation: Activation = "relu"
    """Between the layers; convolutional networks have relu."""
    initialisation: Initialisation = "orthogonal"
    """Orthogonal weights and zero biases, or both scaled by 1/sqrt(inputs) (PyTorch's default)."""
    network: Callable[..., Any] | None = None
    """Your own network instead of the built-in one, from one observation to the values of all actions: any callable
    JAX tree. Its weights are where every seed starts."""

    @property
    def num_steps(self) -> int:
        return self.train_frequency

    @property
    def memory(self) -> Any:
        """The replay memory of all observations but stacks of frames."""
        return self.memory_for(0)

    def memory_for(self, frame_stack: int) -> Any:
        """The replay memory of observations that are stacks of so many frames (0: that are not), as `Spec.frame_stack`
        has it. Of stacks it keeps each frame once, and sums the rewards of n steps when it is drawn from."""
        settings: dict[str, Any] = {"capacity": self.capacity, "batch_size": self.batch_size}
        if frame_stack:
            settings |= {"num_envs": self.num_envs, "frame_stack": frame_stack}
            settings |= {"n_step": self.n_step, "gamma": self.gamma}
        if not self.prioritized:
            return (FrameMemory if frame_stack else UniformMemory)(**settings)
        return (PrioritizedFrameMemory if frame_stack else PrioritizedMemory)(
            **settings,
            alpha=self.priority_alpha,
            beta=self.priority_beta,
            priority_offset=self.priority_offset,
            error_clip=self.priority_clip,
            weights_over=self.priority_weights,
        )

    @property
    def gradient_rule(self) -> optax.GradientTransformation:
        return optimise.make(self.optimiser, self.max_grad_norm, self.max_grad_value)

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "greater than 0")
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "between 0 and 1")
        for name in ("batch_size", "capacity", "train_frequency", "gradient_steps", "target_update_period", "n_step"):
            require(1 <= getattr(self, name) < 2**31, name, getattr(self, name), "between 1 and 2^31 - 1")
        within = f"at most the memory's capacity, which is {self.capacity} (--capacity)"
        require(self.batch_size <= self.capacity, "batch_size", self.batch_size, within)
        require(self.learning_starts >= 0, "learning_starts", self.learning_starts, "0 or more")
        require(0 < self.tau <= 1, "tau", self.tau, "greater than 0 and at most 1")
        fractions = ("epsilon_start", "epsilon_end", "epsilon_fraction", "evaluation_epsilon")
        fractions += ("priority_alpha", "priority_beta", "priority_beta_end", "priority_beta_fraction")
        for name in fractions:
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        require(self.epsilon_scale > 0, "epsilon_scale", self.epsilon_scale, "greater than 0")
        require(self.priority_offset > 0, "priority_offset", self.priority_offset, "greater than 0")
        for name in ("max_grad_norm", "max_grad_value", "priority_clip"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "greater than 0, or None")
        end = self.learning_rate_end
        require(end is None or end >= 0, "learning_rate_end", end, "0 or more, or None")
        positive = all(size >= 1 for size in self.hidden_sizes)
        require(positive, "hidden_sizes", self.hidden_sizes, "a list of positive numbers")
        if self.dueling and self.network is not None:
            raise InvalidSetting(
                "dueling (--dueling) shapes the built-in network, and this DQN was given a network of its own. Leave "
                "dueling out, and let that network have the two heads (treadle.networks.DuelingQNetwork)."
            )
        if spec is not None:
            self._check_spaces(spec)

    def _check_spaces(self, spec: Spec) -> None:
        assert isinstance(spec.action_space, Discrete)
        states = spec.observation_space.n if isinstance(spec.observation_space, Discrete) else 0
        if self.network is None and states > LARGEST_ONE_HOT:
            raise UnsupportedSpace(
                f"DQN would turn each of {states:,} observations into a vector of as many numbers; it does so up to "
                f"{LARGEST_ONE_HOT:,}. Let the environment give a few numbers instead (a Box), or bring a network that "
                "takes the index (network=...)."
            )
        if self.network is None:
            return check_features(self.features, spec.observation_space)
        wanted, network = (spec.action_space.n,), ravel(self.network)
        try:
            given = jax.eval_shape(network, spec.example.obs).shape
        except (TypeError, ValueError) as error:
            shape = spec.example.obs.shape
            raise InvalidSetting(f"the network cannot take an observation of shape {shape}: {error}") from None
        if given != wanted:
            raise InvalidSetting(
                f"the network gives an output of shape {given} for one observation; it must be {wanted}, the values "
                "of all actions."
            )

    def prepared(self) -> DQN:
        return self if self.network is None else dataclasses.replace(self, network=ravel(self.network))

    def init(self, key: Array, spec: Spec) -> DQNState:
        network = ravel(self.build_network(key, spec) if self.network is None else self.network)
        waits = self.n_step > 1 and not spec.frame_stack
        example = spec.example._replace(extras=jnp.zeros(())) if waits else spec.example
        waiting = spec.example._replace(valid=jnp.zeros((), jnp.bool_), extras=())
        size = self.n_step - 1, spec.num_envs
        return DQNState(
            network=network,
            target_network=jax.tree.map(jnp.copy, network),
            opt_state=optimise.start(self.gradient_rule, network),
            memory=self.memory_for(spec.frame_stack).init(example),
            # What is not used would cost the compiled loop time: empty arrays, and a counter that stays zero.
            recent=jax.tree.map(lambda x: jnp.zeros((*size, *x.shape), x.dtype), waiting) if waits else None,
            waiting=Counter.zero() if waits else None,
            running_max_q=jnp.zeros(()),
            step=Counter.zero(),
            total_timesteps=jnp.asarray(spec.total_timesteps, jnp.int32),
        )

    def build_network(self, key: Array, spec: Spec) -> QNetwork | DuelingQNetwork:
        features = features_for(key, self.features, spec.observation_space, self.initialisation)
        assert isinstance(spec.action_space, Discrete)
        outputs = spec.action_space.n + (1 if self.dueling else 0)
        sizes = (features.size, *hidden_sizes_after(features, self.hidden_sizes), outputs)
        mlp = MLP(key, sizes, self.activation, self.initialisation)
        return DuelingQNetwork(features, mlp) if self.dueling else QNetwork(features, mlp)

    def act(self, state: DQNState | DQNPolicy, carry, obs, key, *, explore: bool = True):
        epsilon = self.epsilon(state) if explore else self.evaluation_epsilon
        q = jax.vmap(state.network)(obs)
        return exploration.epsilon_greedy(key, q, epsilon), carry, jnp.max(q, axis=-1)

    def update(self, state: DQNState, rollout: Transition, key: Array) -> tuple[DQNState, Metrics]:
        """Store the rollout; once `learning_starts` is passed, take `gradient_steps` on replayed batches; move the
        target network when its period has passed."""
        step = state.step.add(rollout.reward.size if rollout.valid is None else jnp.sum(rollout.valid))
        rows, recent, waiting = self.with_n_steps(state, rollout)
        replay = self.memory_at(state)
        memory = replay.add(state.memory, rows)
        learning_rate = self.learning_rate_at(state)

        def gradient_step(learner, key):
            network, opt_state = learner
            batch = split_rows(replay.sample(memory, key))
            gradient = jax.value_and_grad(self.batch_loss, has_aux=True)
            (loss, td_errors), gradients = gradient(network, state.target_network, batch)
            learner = optimise.descend(self.gradient_rule, network, opt_state, gradients, learning_rate)
            return learner, (loss, batch.indices, td_errors)

        def learn(learner, key):
            return hoist.scan(gradient_step, learner, jax.random.split(key, self.gradient_steps))

        def wait(learner, key):
            batches = (self.gradient_steps, self.batch_size)
            return learner, (jnp.zeros(batches[0]), jnp.full(batches, NOWHERE, jnp.int32), jnp.zeros(batches))

        learning = step.value > self.learning_starts
        learner, found = hoist.cond(learning, learn, wait, (state.network, state.opt_state), key)
        (network, opt_state), (losses, indices, td_errors) = learner, found
        target_network = jax.lax.cond(
            step.passes(self.target_update_period, since=state.step),
            lambda target: optax.incremental_update(network, target, self.tau),
            lambda target: target,
            state.target_network,
        )
        max_q = jnp.mean(rollout.extras)
        running = 0.99 * state.running_max_q + 0.01 * max_q
        new = DQNState(
            network=network,
            target_network=target_network,
            opt_state=opt_state,
            memory=replay.update_priorities(memory, indices.ravel(), td_errors.ravel()),
            recent=recent,
            waiting=waiting,
            running_max_q=running,
            step=step,
            total_timesteps=state.total_timesteps,
        )
        loss = Mean(jnp.mean(losses), learning.astype(jnp.float32))
        return new, {"loss": loss, "max_q": max_q, "running_max_q": running, "epsilon": self.epsilon(state)}

    def with_n_steps(
        self, state: DQNState, rollout: Transition
    ) -> tuple[Transition, Transition | None, Counter | None]:
        """The rows `[T, B]` whose n-step returns a rollout completes, the discount of their bootstrap among the extras,
        the last `n_step - 1` rows, which wait for the next, and how many of these there are."""
        rollout, recent, waiting = rollout._replace(extras=()), state.recent, state.waiting
        if recent is None or waiting is None:
            return rollout, None, None
        if rollout.valid is None:
            # From a counter, so that what memory counts stays alike in all seeds.
            waits = jnp.arange(self.n_step - 1) >= self.n_step - 1 - waiting.value
            recent = recent._replace(valid=jnp.broadcast_to(waits[:, None], recent.reward.shape))
            rollout = rollout._replace(valid=jnp.ones(rollout.reward.shape, jnp.bool_))
        rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), recent, rollout)
        steps = rollout.reward.shape[0]
        windows = jax.tree.map(lambda x: x[jnp.arange(steps)[:, None] + jnp.arange(self.n_step)], rows)
        whole, discount = jax.vmap(jax.vmap(n_step, in_axes=(1, None)), in_axes=(0, None))(windows, self.gamma)
        waiting = Counter(jnp.minimum(waiting.value + steps, self.n_step - 1))
        return whole._replace(extras=discount), jax.tree.map(lambda x: x[steps:], rows), waiting

    def batch_loss(self, network, target_network, batch):
        """The weighted mean loss of a sampled batch, and its TD errors."""
        td_errors = jax.vmap(self.td_error, in_axes=(None, None, 0))(network, target_network, batch.items)
        loss = {"huber": optax.losses.huber_loss, "squared": optax.losses.squared_error}[self.loss]
        return jnp.mean(batch.weights * loss(td_errors)), td_errors

    def td_error(self, network, target_network, t: Transition) -> Float[Array, ""]:
        """r + gamma (1 - terminated) max_a' Q'(s', a') - Q(s, a); a time limit does not stop the bootstrap. For n-step
        returns the discount is among the extras."""
        discount = self.gamma * (1.0 - t.terminated) if self.n_step == 1 else t.extras
        q, q_next = network(t.obs), target_network(t.next_obs)
        if self.double:
            return double_q_learning_error(q, t.action, t.reward, discount, q_next, network(t.next_obs))
        return q_learning_error(q, t.action, t.reward, discount, q_next)

    def memory_at(self, state: Any) -> Memory:
        """The memory with the beta of now."""
        memory = self.memory_for(frames.frame_stack(state.memory))
        if not self.prioritized:
            return memory
        steps = self.priority_beta_fraction * state.total_timesteps
        beta = schedules.linear(self.priority_beta, self.priority_beta_end, steps, state.step.value)
        return dataclasses.replace(memory, beta=beta)

    def epsilon(self, state: Any) -> Float[Array, ""]:
        step = state.step.value
        if self.epsilon_schedule == "exponential":
            return schedules.exponential(self.epsilon_start, self.epsilon_end, self.epsilon_scale, step)
        steps = self.epsilon_fraction * state.total_timesteps
        return schedules.linear(self.epsilon_start, self.epsilon_end, steps, step)

    def learning_rate_at(self, state: DQNState) -> Float[Array, ""] | float:
        if self.learning_rate_end is None:
            return self.learning_rate
        return schedules.linear(self.learning_rate, self.learning_rate_end, state.total_timesteps, state.step.value)

    def begin_episodes(self, state: DQNState) -> DQNState:
        frame_stack = frames.frame_stack(state.memory)
        if frame_stack:
            return state._replace(memory=self.memory_for(frame_stack).begin_episodes(state.memory))
        if state.recent is None:
            return state
        none = jnp.zeros(state.recent.reward.shape, jnp.bool_)
        return state._replace(recent=state.recent._replace(valid=none), waiting=Counter.zero())

    def inspect(self, state: DQNState, obs: Any) -> dict[str, Array]:
        return {"q_values": state.network(obs)}

    def policy(self, state: DQNState) -> DQNPolicy:
        return DQNPolicy(state.network)
