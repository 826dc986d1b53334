"""Workers in threads: they learn what one loop learns, count every step once, and outlive what goes wrong."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from probes import CONTINUOUS_PROBES, PROBES, shared
from tiny import ROLLOUT, SPEC, LinearValue, TablePolicy
from treadle import Agent, CartPole, Crew, TreadleError
from treadle.algorithms.a2c import A2C
from treadle.algorithms.a3c import A3C
from treadle.algorithms.dqn import DQN
from treadle.algorithms.ppo import PPO
from treadle.cli import main
from treadle.errors import InvalidSetting
from treadle.loops.choose import make_trainer
from treadle.loops.crew import CrewSeeds
from treadle.loops.rollout import collect, make_spec, start
from treadle.registry import as_float32

pytestmark = pytest.mark.least_optimised

SMALL: dict[str, Any] = {"hidden_sizes": (16,), "gamma": 0.8}
A3C_SMALL = A3C(**SMALL, num_envs=4, learning_rate=1e-2, learning_rate_end=0.0, optimiser="adam")
PPO_SMALL = PPO(**SMALL, num_envs=8, rollout_length=16, learning_rate=1e-2, learning_rate_end=0.0)
TWO = Crew("threads", workers=2)


class Ticking(gymnasium.Env):
    """Episodes of seven steps with a reward of 1 each. What happens at its steps is up to the test."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)
    made: list[Ticking]
    at_step: Any = None
    at_made: Any = None

    def __init__(self):
        self.steps, self.is_closed = 0, False
        type(self).made.append(self)
        if Ticking.at_made is not None:
            Ticking.at_made()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        self.steps += 1
        if Ticking.at_step is not None:
            Ticking.at_step(self)
        return np.zeros(1, np.float32), 1.0, self.t == 7, False, {}

    def close(self):
        self.is_closed = True


@pytest.fixture
def ticking():
    Ticking.made, Ticking.at_step, Ticking.at_made = [], None, None
    return Ticking


def trained(algorithm: Any, world: Any, updates: int, crew: Crew = TWO, seed: int = 0) -> CrewSeeds:
    per_update = algorithm.num_steps * algorithm.num_envs
    trainer = make_trainer(algorithm, world, updates * per_update, seed, crew=crew)
    assert isinstance(trainer, CrewSeeds)
    trainer.advance(updates)
    trainer.close()
    return trainer


def learned(trainer: CrewSeeds, obs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Greedy actions and values of observations `[N, ...]`."""
    state = jax.tree.map(lambda x: x[0], trainer.state).algorithm
    learner = getattr(state, "learner", state)
    obs = jnp.asarray(obs, jnp.float32)
    action, _, _ = trainer.algorithm.act(state, (), obs, jax.random.key(0), explore=False)
    return np.asarray(action), np.asarray(jax.vmap(learner.networks.value)(obs))


@pytest.mark.parametrize("algorithm", [A3C_SMALL, PPO_SMALL], ids=["a3c", "ppo"])
@pytest.mark.parametrize("probe", PROBES[-2:], ids=lambda probe: probe.name)
def test_it_learns_the_best_actions_and_their_values(probe, algorithm):
    updates = 2_000 if algorithm.name == "a3c" else 300
    trainer = trained(algorithm, shared(probe), updates)
    obs, values = probe.values(algorithm.gamma)
    actions, found = learned(trainer, obs)
    np.testing.assert_allclose(found, values.max(-1), atol=0.2)
    matters = np.ptp(values, axis=-1) > 1e-6
    np.testing.assert_array_equal(actions[matters], values.argmax(-1)[matters])


def test_a3c_learns_continuous_actions():
    probe = CONTINUOUS_PROBES[1]
    actions, _ = learned(trained(A3C_SMALL, probe.environment, 2_000), probe.obs[:2])
    np.testing.assert_allclose(actions, probe.best[:2], atol=0.35)


def test_gradients_applied_at_once_are_the_update_of_a2c():
    own = {"policy_network": TablePolicy(jnp.array([0.3, -0.2])), "value_network": LinearValue(jnp.array([2.0]))}
    settings = {"num_envs": 1, "rollout_length": 4, "gamma": 0.5, "learning_rate": 0.1, "entropy_coefficient": 0.01}
    same: dict[str, Any] = {**own, **settings}
    a3c, a2c = A3C(**same).prepared(), A2C(**same).prepared()
    state = a2c.init(jax.random.key(0), SPEC)
    after, _ = a2c.update(state, ROLLOUT, jax.random.key(1))
    push, _ = a3c.gradients(a3c.shared(state), ROLLOUT, jax.random.key(1))
    pushed = a3c.apply(state, push)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(pushed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    # A push that comes later moves what the parameters are by then.
    later = a3c.apply(pushed, push)
    assert int(later.schedule.step.value) == 8
    assert not np.allclose(later.networks.policy.vector, pushed.networks.policy.vector)
    nothing = a3c.apply(pushed, push._replace(steps=jnp.zeros((), jnp.int32)))
    for a, b in zip(jax.tree.leaves(nothing), jax.tree.leaves(pushed), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("penalty", ["clip", pytest.param("kl", marks=pytest.mark.slow)])
def test_rollouts_of_an_older_policy_are_weighed_by_the_policy_that_acted(penalty):
    """Ratios are those against what was remembered; of the present policy's own rollouts nothing changes."""
    changes = {"remember_policy": True, "num_minibatches": 1, "epochs": 1, "penalty": penalty}
    algorithm = as_float32(dataclasses.replace(PPO_SMALL, **changes))
    plain = dataclasses.replace(algorithm, remember_policy=False)
    spec, world = make_spec(algorithm, CartPole(), 1_000), as_float32(CartPole())
    old = algorithm.init(jax.random.key(0), spec)
    actor = start(world, (), spec.num_envs, jax.random.key(1))
    _, rollout, _ = collect(algorithm, world, spec, old, actor, jax.random.key(2))
    key = jax.random.key(3)
    after, _ = algorithm.update(old, rollout, key)
    without, _ = plain.update(old, rollout._replace(extras=rollout.extras.drawn), key)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert abs(float(algorithm.update(old, rollout, key)[1]["kl"].total)) < 1e-6
    stale = algorithm.update(after, rollout, key)[1]["kl"]
    assert float(stale.total) > 1e-5
    assert abs(float(plain.update(after, rollout._replace(extras=()), key)[1]["kl"].total)) < 1e-6


def test_waiting_for_every_worker_makes_a_run_that_can_be_repeated():
    crew = Crew("threads", workers=2, patience=None)
    a, b, other = (trained(PPO_SMALL, CartPole(), 4, crew, seed) for seed in (0, 0, 1))
    for x, y in zip(jax.tree.leaves(a.policies()), jax.tree.leaves(b.policies()), strict=True):
        np.testing.assert_array_equal(x, y)
    first, second = (np.asarray(trainer.policies().policy.vector) for trainer in (a, other))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("crew", [Crew("threads", workers=1), Crew("threads", workers=3)], ids=["one", "three"])
def test_host_environments_are_stepped_as_often_as_is_counted(ticking, crew):
    algorithm = A3C(hidden_sizes=(4,), rollout_length=5, num_envs=2)
    trainer = make_trainer(algorithm, ticking, 1_000, crew=crew)
    assert isinstance(trainer, CrewSeeds)
    records = [trainer.advance(6) for _ in range(2)]
    trainer.close()
    spaces_only, *own = ticking.made
    assert len(own) == 2 * crew.count() and all(env.is_closed for env in ticking.made)
    taken = sum(env.steps for env in own)
    assert spaces_only.steps == 0 and 120 <= taken <= 120 + 10 * crew.count(), "each may have been at one more"
    assert int(trainer.state.algorithm.schedule.step.value[0]) == 120
    assert int(trainer.state.updates.value[0]) == 12
    lengths = np.concatenate([record.episodes.lengths.ravel() for record in records])
    returns = np.concatenate([record.episodes.returns.ravel() for record in records])
    ends = sum(env.steps // 7 for env in own)
    assert (
        ends - 2 * crew.count() * 2 <= (lengths > 0).sum() <= ends
        and set(lengths[lengths > 0]) == {7}
        and set(returns[lengths > 0]) == {7.0}
    )
    assert records[0].episodes.lengths.shape == (1, 6, 5, 2)


class _Slow:
    """Makes the first environment that learns hang at one of its steps."""

    def __init__(self, ticking, at: int):
        self.wake, self.inside, self.most_inside = threading.Event(), 0, 0
        self.ticking, self.at = ticking, at

    def __call__(self, env):
        self.inside += env is self.ticking.made[1]
        self.most_inside = max(self.most_inside, self.inside)
        if env is self.ticking.made[1] and env.steps == self.at:
            self.wake.wait(30)
        self.inside -= env is self.ticking.made[1]


def hanging(ticking: Any, algorithm: Any, at: int, updates: int, timeout: float = 2.0) -> tuple[CrewSeeds, Any, list]:
    """A trainer that made a few updates, before a worker of it hangs in a later one."""
    slow, said = _Slow(ticking, at), []
    ticking.at_step = slow
    trainer = make_trainer(algorithm, ticking, 10_000, crew=Crew("threads", workers=2, worker_timeout=30.0))
    assert isinstance(trainer, CrewSeeds)
    trainer.advance(updates)  # compiled by now, which takes its time
    for engine in trainer._engines:
        engine._timeout, engine._log = timeout, said.append  # type: ignore[attr-defined]
    return trainer, slow, said


def test_a_worker_that_hangs_is_replaced_and_what_it_says_later_does_not_count(ticking):
    trainer, slow, said = hanging(ticking, A3C(hidden_sizes=(4,), rollout_length=5), at=32, updates=4)
    record = trainer.advance(20)
    while not said:
        record = trainer.advance(20)
    assert record.episodes.lengths.shape == (1, 20, 5, 1)
    assert len(said) == 1 and re.search(r"worker \d took longer than 2 s for a rollout: another stands in", said[0])
    before = int(trainer.state.algorithm.schedule.step.value[0])
    slow.wake.set()
    deadline = time.monotonic() + 60
    while not ticking.made[1].is_closed:  # by the worker itself, as soon as it woke
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert int(trainer.state.algorithm.schedule.step.value[0]) == before
    trainer.close()


def test_whoever_hangs_after_the_updates_that_were_asked_for_is_not_waited_for_nor_doubled(ticking):
    """PPO needs two rollouts, and the other worker brings both."""
    algorithm = dataclasses.replace(PPO_SMALL, rollout_length=4, num_envs=2, num_minibatches=1)
    trainer, slow, said = hanging(ticking, algorithm, at=14, updates=2, timeout=30.0)
    trainer._desks[0].patience = 1.0
    began = time.monotonic()
    for _ in range(5):
        trainer.advance(1)
    assert time.monotonic() - began < 10.0 and not said
    steps = ticking.made[1].steps
    assert steps == 14 and slow.most_inside == 1, "nobody else steps what a worker hangs in"
    slow.wake.set()
    trainer.advance(10)
    assert slow.most_inside == 1
    trainer.close()
    assert all(env.is_closed for env in ticking.made)


def test_making_environments_has_a_limit_too_and_the_others_go_on(ticking):
    trainer, slow, said = hanging(ticking, A3C(hidden_sizes=(4,), rollout_length=5), at=32, updates=4, timeout=1.0)
    stuck = threading.Event()
    ticking.at_made = lambda: stuck.wait(30)

    def advance():
        while True:
            trainer.advance(20)

    with pytest.raises(TreadleError, match=r"worker \d took longer than 1 seconds for making its .*, 4 times"):
        advance()
    assert len(said) >= 3
    ticking.at_made = None
    slow.wake.set()
    stuck.set()
    trainer.close()


def test_an_agent_holds_workers_only_while_it_learns(ticking):
    before = threading.active_count()
    agent = Agent(A3C(hidden_sizes=(4,), rollout_length=5), ticking, crew=TWO).learn(50)
    assert all(env.is_closed for env in ticking.made)
    assert threading.active_count() <= before
    assert agent.learn(50).step == 100


def test_what_an_environment_raises_ends_the_run_with_it(ticking):
    def break_down(env):
        if env.steps == 20:
            raise RuntimeError("the wheel came off")

    ticking.at_step = break_down
    agent = Agent(A3C(hidden_sizes=(4,)), ticking, crew=TWO)
    with pytest.raises(RuntimeError, match="the wheel came off"):
        agent.learn(1_000)


def test_a_run_is_trained_stopped_and_gone_on_with_by_the_command_line(tmp_path, capsys):
    folder = str(tmp_path / "run")
    flags = ["--hidden-sizes", "8", "--workers", "2", "--seeds", "2", "--preset", "none", "--out", folder]
    assert main(["train", "a3c", "CartPole-v1", *flags, "--total-timesteps", "400"]) == 0
    assert main(["resume", folder, "--total-timesteps", "700", "--workers", "1"]) == 0
    assert "Workers begin new episodes, all else continues." in capsys.readouterr().out
    assert main(["evaluate", folder, "--episodes", "2"]) == 0
    assert main(["plot", folder]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert all(f'"{name}"' in lines for name in ("staleness", "workers", "queue", "steps_per_second"))


ODD: Any = "thread"
MISTAKES: list[Any] = [
    (DQN(), TWO, "dqn learns from the steps of one stream.*a2c, a3c, actor-critic, ppo"),
    (
        PPO_SMALL,
        Crew("threads", workers=3),
        r"workers \(--workers\) was 3 and num_envs \(--num-envs\) is 8.*--num-envs 9",
    ),
    (PPO_SMALL, Crew(workers=2, max_staleness=1), "--remember-policy corrects"),
    (PPO_SMALL, Crew(workers=0), r"workers \(--workers\) was 0; it must be at least 1"),
    (PPO_SMALL, Crew(workers=2, patience=0.5), "patience.*at least 1, or None"),
    (PPO_SMALL, Crew(engine="none", workers=2), "--engine none has no workers"),
    (PPO_SMALL, Crew(workers=2, address="localhost:1"), "--address.*is for --engine ray"),
    (PPO_SMALL, Crew(ODD), "engine.*one of auto, none, threads, ray"),
    (PPO_SMALL, Crew(workers=2, worker_timeout=0), "worker_timeout.*greater than 0"),
    (dataclasses.replace(PPO_SMALL, normalise_rewards=True), TWO, "follows each environment.*--patience None"),
    (A3C(normalise_observations=True), TWO, "normalise_observations.*take a2c"),
]


@pytest.mark.parametrize(
    ("algorithm", "crew", "sentence"), MISTAKES, ids=lambda x: x[:20] if isinstance(x, str) else ""
)
def test_mistakes_are_told_in_a_sentence(algorithm, crew, sentence):
    with pytest.raises(InvalidSetting, match=sentence):
        Agent(algorithm, "CartPole-v1", crew=crew).learn(100)


def test_an_environment_that_is_made_already_cannot_be_shared(ticking):
    with pytest.raises(TreadleError, match=r"2 workers were asked for.*made already"):
        Agent(A3C(), ticking(), crew=TWO).learn(100)


def test_what_is_for_one_loop_is_refused(tmp_path, capsys):
    flags = ["--workers", "2", "--preset", "none", "--out", str(tmp_path / "run")]
    assert main(["train", "a2c", "CartPole-v1", *flags, "--save-data", str(tmp_path / "x.safetensors")]) == 2
    assert "--save-data is for one loop without workers" in capsys.readouterr().err
    assert main(["train", "a2c", "CartPole-v1", *flags, "--watch"]) == 2
    assert "--watch shows one learner that acts by itself" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    small = ["--hidden-sizes", "4", "--preset", "none", "--total-timesteps", "80", "--out", str(tmp_path / "one")]
    assert main(["train", "a2c", "CartPole-v1", *small]) == 0
    assert main(["resume", str(tmp_path / "one"), "--total-timesteps", "160", "--workers", "2"]) == 2
    assert "one loop without workers" in capsys.readouterr().err
