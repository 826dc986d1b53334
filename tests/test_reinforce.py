"""REINFORCE: gradients worked by hand, what may teach, and that it learns."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import CONTINUOUS_PROBES, PROBES, shared
from tiny import SPEC, LinearValue, TablePolicy, column
from treadle import CartPole, Pendulum
from treadle.algorithms.policy_gradient import normalised
from treadle.algorithms.reinforce import CHUNK, Reinforce, normalised_returns
from treadle.environments.wrappers import wrap
from treadle.errors import InvalidSetting
from treadle.loops import fused
from treadle.loops.rollout import make_spec
from treadle.loops.seeding import seed_key
from treadle.loops.seeds import FusedSeeds
from treadle.registry import as_float32
from treadle.spaces import Box
from treadle.types import Mean, Transition, space_spec

pytestmark = pytest.mark.least_optimised

SETTINGS = {
    "gamma": 0.5,
    "optimiser": "sgd",
    "max_grad_norm": None,
    "learning_rate": 0.1,
    "max_episode_length": 8,
}
LOGITS, SLOPE = jnp.array([0.3, -0.2]), jnp.array([2.0])
PI = np.exp(LOGITS) / np.exp(LOGITS).sum()

EPISODE = Transition(
    obs=column([[1.0], [2.0], [3.0]]),
    action=column([0, 1, 1], jnp.int32),
    reward=column([1.0, 2.0, 4.0]),
    next_obs=column([[2.0], [3.0], [10.0]]),
    terminated=column([0, 0, 1], jnp.bool_),
    truncated=column([0, 0, 0], jnp.bool_),
)
CUT = EPISODE._replace(terminated=EPISODE.truncated, truncated=EPISODE.terminated)
UNFINISHED = EPISODE._replace(terminated=EPISODE.truncated)


def make(**changes) -> Reinforce:
    own = {"policy_network": TablePolicy(LOGITS), "value_network": LinearValue(SLOPE)}
    return as_float32(Reinforce(**{**SETTINGS, **own, **changes}).prepared())


@functools.partial(jax.jit, static_argnames="num_envs")
def begin(algorithm, num_envs=1):
    return algorithm.init(jax.random.key(0), dataclasses.replace(SPEC, num_envs=num_envs))


@jax.jit
def play(algorithm, state, rollout):
    """Learn from a rollout `[T, B]` step by step: the last state, and the metrics of every step."""

    def one_step(state, t):
        return algorithm.update(state, jax.tree.map(lambda x: x[None], t), jax.random.key(0))

    return jax.lax.scan(one_step, state, rollout)


def joined(*rollouts, axis=0):
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis), *rollouts)


def gradient_by_hand(weights, coefficient=0.0):
    """Of the logits: d log pi(a) = onehot(a) - pi, and d H / d logit_i = -pi_i (log pi_i + H)."""
    scores = np.eye(2)[[0, 1, 1]] - PI
    entropy = -(PI * np.log(PI)).sum()
    return -(scores * np.asarray(weights)[:, None]).mean(0) + coefficient * PI * (np.log(PI) + entropy)


# One episode


def test_one_step_is_the_gradient_worked_by_hand():
    """Backwards: 4, then 2 + 0.5 * 4 = 4, then 1 + 0.5 * 4 = 3."""
    algorithm = make(entropy_coefficient=0.1)
    state, metrics = play(algorithm, begin(algorithm), EPISODE)
    expected = LOGITS - 0.1 * gradient_by_hand([3.0, 4.0, 4.0], 0.1)
    np.testing.assert_allclose(state.learner.networks.policy.vector, expected, rtol=1e-5)
    assert state.learner.networks.value is None and "value_loss" not in metrics
    log_probs = np.log(PI)[[0, 1, 1]]
    entropy = -(PI * np.log(PI)).sum()
    np.testing.assert_allclose(metrics["entropy"].total[-1], entropy, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"].total[-1], -(log_probs * [3, 4, 4]).mean() - 0.1 * entropy, rtol=1e-5)
    np.testing.assert_array_equal(metrics["loss"].weight, [0, 0, 1])


@pytest.mark.parametrize(
    ("episode", "returns"),
    [(EPISODE, [3.0, 4.0, 4.0]), (CUT, [1 + 0.5 * 9, 2 + 0.5 * 14, 4 + 0.5 * 20])],
    ids=["terminated", "truncated"],
)
def test_with_a_baseline_a_time_limit_leaves_the_value_of_what_follows(episode, returns):
    """v(obs) = 2 obs: 2, 4 and 6, and 20 for the observation 10 at which the episode was cut."""
    algorithm = make(baseline=True, value_coefficient=0.25)
    state, metrics = play(algorithm, begin(algorithm), episode)
    advantages = np.array(returns) - [2.0, 4.0, 6.0]
    networks = state.learner.networks
    np.testing.assert_allclose(networks.policy.vector, LOGITS - 0.1 * gradient_by_hand(advantages), rtol=1e-5)
    by_slope = 0.25 * (-2 * advantages * [1.0, 2.0, 3.0]).mean()
    np.testing.assert_allclose(networks.value.vector, SLOPE - 0.1 * by_slope, rtol=1e-5)
    np.testing.assert_allclose(metrics["value_loss"].total[-1], (advantages**2).mean(), rtol=1e-5)


def test_without_a_baseline_a_time_limit_leaves_the_rewards_seen():
    algorithm = make()
    ends = [play(algorithm, begin(algorithm), episode)[0] for episode in (EPISODE, CUT)]
    np.testing.assert_array_equal(*(state.learner.networks.policy.vector for state in ends))


def test_normalised_returns_weigh_the_steps():
    weights = normalised_returns(EPISODE.reward[:, 0], 0.5)
    np.testing.assert_allclose(weights, (np.array([3, 4, 4]) - 11 / 3) / np.std([3, 4, 4]), rtol=1e-5)
    algorithm = make(normalise_returns=True)
    state, _ = play(algorithm, begin(algorithm), EPISODE)
    np.testing.assert_allclose(
        state.learner.networks.policy.vector, LOGITS - 0.1 * gradient_by_hand(weights), rtol=1e-5
    )
    cut = normalised_returns(CUT.reward[:, 0], 0.5, bootstrap=20.0)
    np.testing.assert_allclose(cut, (np.array([5.5, 9, 14]) - 9.5) / np.std([5.5, 9, 14]), rtol=1e-5)


def test_the_return_of_a_single_step_is_not_normalised():
    algorithm = make(normalise_returns=True)
    one = jax.tree.map(lambda x: x[2:], EPISODE)
    state, _ = play(algorithm, begin(algorithm), one)
    expected = LOGITS + 0.1 * 4 * (np.eye(2)[1] - PI)
    np.testing.assert_allclose(state.learner.networks.policy.vector, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def rlax() -> ModuleType:
    with warnings.catch_warnings():
        # TensorFlow Probability, which rlax imports, reads names that JAX is about to remove.
        warnings.filterwarnings("ignore", r"jax\.\S+ is deprecated", DeprecationWarning)
        import rlax
    return rlax


def random_episode(length, of, key=0):
    """An episode of `length` steps, among `of` rows of which the others do not count: some before, the rest after."""
    rng = np.random.default_rng(key)
    before = (of - length) // 2
    step = np.arange(of) - before
    return Transition(
        obs=jnp.asarray(rng.normal(size=(of, 1, 1)), jnp.float32),
        action=jnp.asarray(rng.integers(0, 2, (of, 1)), jnp.int32),
        reward=jnp.asarray(rng.normal(size=(of, 1)), jnp.float32),
        next_obs=jnp.asarray(rng.normal(size=(of, 1, 1)), jnp.float32),
        terminated=jnp.zeros((of, 1), jnp.bool_),
        truncated=jnp.asarray(step == length - 1)[:, None],
        valid=jnp.asarray((step >= 0) & (step < length))[:, None],
    )


@pytest.mark.filterwarnings("ignore:Rlax softmax")
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 44])
def test_in_chunks_the_gradient_is_that_of_the_whole_episode(length, normalise, rlax):
    """The memory's ring is shorter than what passes through it, so that most of these lie across its end."""
    longest = 2 * CHUNK + 44
    algorithm = as_float32(
        Reinforce(
            gamma=0.97,
            baseline=True,
            normalise_returns=normalise,
            entropy_coefficient=0.1,
            hidden_sizes=(5,),
            episodes_per_update=100,
            max_episode_length=longest,
        )
    )
    rollout = random_episode(length, longest + 50)
    before = begin(algorithm)
    state, metrics = play(algorithm, before, rollout)

    t = jax.tree.map(lambda x: np.asarray(x)[:, 0], rollout)
    t = jax.tree.map(lambda x: jnp.asarray(x[t.valid]), t)
    networks = before.learner.networks
    assert networks.value is not None
    returns, future = [], float(networks.value(t.next_obs[-1]))
    for reward in np.asarray(t.reward)[::-1]:
        future = reward + 0.97 * future
        returns.insert(0, future)
    returns = jnp.asarray(returns, jnp.float32)

    def loss(networks):
        v = jax.vmap(networks.value)(t.obs)
        advantage = jax.lax.stop_gradient(returns - v)
        if normalise and length > 1:
            advantage = (advantage - jnp.mean(advantage)) / jnp.std(advantage)
        logits = jax.vmap(networks.policy)(t.obs).logits
        weights = jnp.ones(length)
        policy_loss = rlax.policy_gradient_loss(logits, t.action, advantage, weights)
        return policy_loss + 0.1 * rlax.entropy_loss(logits, weights) + 0.5 * jnp.mean((returns - v) ** 2)

    expected, gradient = jax.jit(jax.value_and_grad(loss))(networks)
    for a, b in zip(jax.tree.leaves(state.gradients), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(np.sum(metrics["loss"].total), expected, rtol=1e-4, atol=1e-6)
    assert state.finished == np.sum(metrics["loss"].weight) == 1


# Which episodes teach


def test_an_unfinished_episode_teaches_nothing():
    algorithm = make(baseline=True)
    before = begin(algorithm)
    state, metrics = play(algorithm, before, UNFINISHED)
    for a, b in zip(jax.tree.leaves(before.learner.networks), jax.tree.leaves(state.learner.networks), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not any(np.any(x) for x in jax.tree.leaves(state.gradients))
    assert all(not np.any(m.weight) for m in metrics.values() if isinstance(m, Mean))
    state, _ = play(algorithm, state, EPISODE)
    assert not np.array_equal(state.learner.networks.policy.vector, LOGITS)


def test_the_gradients_of_several_episodes_make_one_step():
    algorithm = make(episodes_per_update=2)
    second = EPISODE._replace(reward=column([0.0, 0.0, -8.0]))
    state, _ = play(algorithm, begin(algorithm), EPISODE)
    np.testing.assert_array_equal(state.learner.networks.policy.vector, LOGITS)
    assert state.finished == 1
    state, _ = play(algorithm, state, second)
    mean = (gradient_by_hand([3.0, 4.0, 4.0]) + gradient_by_hand([-2.0, -4.0, -8.0])) / 2
    np.testing.assert_allclose(state.learner.networks.policy.vector, LOGITS - 0.1 * mean, rtol=1e-5)
    assert state.finished == 0 and not np.any(state.gradients.policy.vector)


def test_all_episodes_that_end_in_one_step_teach():
    """Of three environments the first and the last end, one by a terminal state and one by the time limit."""
    algorithm = make(baseline=True, episodes_per_update=2)
    other = CUT._replace(reward=column([5.0, -1.0, 0.5]))
    state, metrics = play(algorithm, begin(algorithm, 3), joined(EPISODE, UNFINISHED, other, axis=1))
    alone = [play(algorithm, begin(algorithm), episode)[0].gradients for episode in (EPISODE, other)]
    for name in ("policy", "value"):
        mean = sum(getattr(g, name).vector for g in alone) / 2
        start = getattr(begin(algorithm).learner.networks, name).vector
        np.testing.assert_allclose(getattr(state.learner.networks, name).vector, start - 0.1 * mean, rtol=1e-5)
    np.testing.assert_array_equal(metrics["loss"].weight, [0, 0, 2])
    np.testing.assert_array_equal(state.episodes.lengths, [0, 3, 0])


def test_rows_that_do_not_count_teach_nothing():
    """Before an episode, within it or claiming its end: whatever stands in them, the step is the same."""
    spare = jax.tree.map(lambda x: x[2:], EPISODE)._replace(obs=column([[50.0]]), reward=column([1e4]))
    first, rest = (jax.tree.map(lambda x, s=s: x[s], EPISODE) for s in (slice(0, 1), slice(1, 3)))
    padded = joined(spare, first, spare, rest)._replace(valid=column([0, 1, 0, 1, 1], jnp.bool_))
    algorithm = make(baseline=True, normalise_returns=True, entropy_coefficient=0.1)
    (plain, told), (masked, also_told) = (play(algorithm, begin(algorithm), r) for r in (EPISODE, padded))
    for a, b in zip(jax.tree.leaves(plain.learner), jax.tree.leaves(masked.learner), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    for name in ("loss", "value_loss", "entropy"):
        np.testing.assert_allclose(np.sum(told[name].total), np.sum(also_told[name].total), rtol=1e-5)
    assert masked.learner.schedule.step.value == 3


def test_episodes_that_begin_anew_drop_what_is_unfinished_only():
    algorithm = make(episodes_per_update=2)
    state, _ = play(algorithm, begin(algorithm), joined(EPISODE, UNFINISHED))
    state = algorithm.begin_episodes(state)
    np.testing.assert_array_equal(state.episodes.lengths, [0])
    state, _ = play(algorithm, state, EPISODE)
    np.testing.assert_allclose(
        state.learner.networks.policy.vector, LOGITS - 0.1 * gradient_by_hand([3.0, 4.0, 4.0]), rtol=1e-5
    )


def test_an_episode_for_which_there_is_no_room_is_said():
    algorithm = make(baseline=True)
    _, metrics = play(algorithm, begin(algorithm), joined(*[UNFINISHED] * 3))
    alarm = metrics["episode_too_long"]
    np.testing.assert_array_equal(alarm.raised, [False] * 8 + [True])
    assert "more than max_episode_length (--max-episode-length) = 8 steps, and reinforce learns" in alarm.sentence
    with pytest.raises(InvalidSetting, match=r"max_episode_length .* at least 500"):
        algorithm.check(make_spec(algorithm, CartPole(), 1_000))


@pytest.mark.parametrize("refused", [Reinforce(episodes_per_update=0), Reinforce(value_coefficient=-1.0)])
def test_a_setting_beyond_its_range_is_refused(refused):
    with pytest.raises(InvalidSetting, match=r"episodes_per_update|value_coefficient"):
        refused.check()


def test_the_step_size_follows_all_steps_not_those_of_the_episode():
    """It is that of before the step with which the episode ended."""
    algorithm = make(learning_rate_end=0.0)
    state = begin(algorithm)
    gradient = gradient_by_hand([3.0, 4.0, 4.0])
    for step in (3, 500, 1_000):
        schedule = state.learner.schedule
        schedule = schedule._replace(step=schedule.step._replace(value=jnp.asarray(step - 3, jnp.int32)))
        after, _ = play(algorithm, state._replace(learner=state.learner._replace(schedule=schedule)), EPISODE)
        moved = after.learner.networks.policy.vector - LOGITS
        np.testing.assert_allclose(moved, -0.1 * (1 - (step - 1) / 1_000) * gradient, rtol=1e-4, atol=1e-6)


def test_continuous_actions_are_kept_as_they_were_drawn_and_observations_as_they_were_seen():
    algorithm = as_float32(
        Reinforce(hidden_sizes=(4,), normalise_observations=True, normalise_rewards=True, max_episode_length=8)
    )
    spec = space_spec(Box(-5.0, 5.0, (2,)), Box(-1.0, 3.0, (3,)), num_envs=2, total_timesteps=100)
    state = jax.jit(lambda key: algorithm.init(key, spec))(jax.random.key(0))
    act = jax.jit(algorithm.act)
    rng, expected = np.random.default_rng(0), []
    for _ in range(4):
        obs = jnp.asarray(rng.normal(3, 2, (2, 2)), jnp.float32)
        action, _, drawn = act(state, (), obs, jax.random.key(int(rng.integers(1_000))))
        expected.append((normalised(state.learner.observations, obs), drawn))
        flags = jnp.zeros(2, jnp.bool_)
        t = Transition(obs, action, jnp.ones(2), obs, flags, flags, None, drawn)
        state, _ = play(algorithm, state, jax.tree.map(lambda x: x[None], t))
    row = jax.jit(type(state.episodes).row)
    for step, (obs, drawn) in enumerate(expected):
        for b in range(2):
            (kept_obs, kept_action, _), _ = row(state.episodes, b, step)
            np.testing.assert_allclose(kept_obs, obs[b], rtol=1e-5)
            np.testing.assert_array_equal(kept_action, drawn[b])
    assert state.learner.observations is not None and state.learner.observations.count == 8


# Learning

SMALL = {"hidden_sizes": (16,), "gamma": 0.8, "learning_rate": 1e-2, "max_episode_length": 64}
BASELINE = Reinforce(**SMALL, baseline=True, learning_rate_end=0.0, num_envs=4, episodes_per_update=8)
PLAIN = Reinforce(**SMALL, learning_rate_end=0.0, episodes_per_update=8)

_compiled = jax.jit(fused.train, static_argnums=3)


def train(algorithm, world, updates, seed=0):
    return _compiled(as_float32(algorithm), as_float32(world), seed_key(seed), updates)


@jax.jit
def _greedy(algorithm, state, obs):
    return algorithm.act(state, (), obs, jax.random.key(0), explore=False)[0]


def greedy(algorithm, state, obs):
    return np.asarray(_greedy(as_float32(algorithm), state, np.float32(obs)))


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_it_learns_the_best_actions_and_with_a_baseline_their_values(probe):
    state = train(BASELINE, shared(probe), 4_000)[0].algorithm
    obs, values = probe.values(BASELINE.gamma)
    found = jax.vmap(state.learner.networks.value)(jnp.asarray(obs, jnp.float32))
    np.testing.assert_allclose(found, values.max(-1), atol=0.15)
    matters = np.ptp(values, axis=-1) > 1e-6
    np.testing.assert_array_equal(greedy(BASELINE, state, obs)[matters], values.argmax(-1)[matters])


@pytest.mark.parametrize(
    ("name", "options"),
    [("observation-and-action-dependent-reward", {}), ("short-corridor", {"normalise_returns": True})],
)
def test_it_learns_the_best_actions_without_a_baseline(name, options):
    algorithm, probe = dataclasses.replace(PLAIN, **options), next(p for p in PROBES if p.name == name)
    state, _ = train(algorithm, probe.environment, 4_000)
    obs, values = probe.values(algorithm.gamma)
    np.testing.assert_array_equal(greedy(algorithm, state.algorithm, obs), values.argmax(-1))


@pytest.mark.parametrize("probe", CONTINUOUS_PROBES[1:], ids=lambda probe: probe.name)
def test_it_learns_the_best_of_continuous_actions(probe):
    """The policy slower than the values: one that runs ahead of them passes the bounds, where no action differs."""
    slower = {"learning_rate": 3e-3, "critic_learning_rate": 1e-2, "initial_log_std": -1.0}
    algorithm = dataclasses.replace(BASELINE, **slower, normalise_observations=True)
    state, _ = train(algorithm, probe.environment, 6_000)
    np.testing.assert_allclose(greedy(algorithm, state.algorithm, probe.obs[:2]), probe.best[:2], atol=0.3)


@pytest.mark.slow
def test_seeds_side_by_side_are_seeds_in_turn():
    algorithm = as_float32(dataclasses.replace(BASELINE, max_episode_length=200, normalise_returns=True))
    world = as_float32(wrap(Pendulum(), time_limit=7))
    trainers = [FusedSeeds(algorithm, world, 1_000, num_seeds=3, layout=layout) for layout in ("map", "vmap")]
    for trainer in trainers:
        trainer.advance(120)
    a, b = (jax.tree.leaves(t.state.algorithm) for t in trainers)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4)
