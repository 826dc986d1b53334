"""Control with tables and linear features: each update worked by hand, and what it converges to."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import PROBES
from treadle import exact, metrics, records, registry
from treadle.agent import Agent
from treadle.algorithms.dyna_q import DynaQ, Model
from treadle.algorithms.expected_sarsa import ExpectedSarsa
from treadle.algorithms.linear import LinearControl
from treadle.algorithms.monte_carlo import MonteCarlo
from treadle.algorithms.q_learning import QLearning
from treadle.algorithms.sarsa import Sarsa
from treadle.algorithms.sarsa_lambda import SarsaLambda
from treadle.cli import main
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.errors import InvalidSetting, TreadleError, UnsupportedSpace
from treadle.features import LinearFunction
from treadle.loops.choose import make_trainer
from treadle.loops.host import HostSeeds
from treadle.loops.seeds import FusedSeeds
from treadle.registry import as_float32, as_tree
from treadle.spaces import Box, Discrete
from treadle.types import Alarm, Mean, Step, Transition, space_spec

pytestmark = pytest.mark.least_optimised

METHODS = [
    QLearning(),
    Sarsa(),
    ExpectedSarsa(),
    SarsaLambda(trace="accumulating"),
    SarsaLambda(),
    MonteCarlo(),
    MonteCarlo(visits="every"),
    DynaQ(),
]


def named(algorithm: LinearControl) -> str:
    return " ".join([algorithm.name, getattr(algorithm, "trace", ""), getattr(algorithm, "visits", "")]).strip()


every_method = pytest.mark.parametrize("algorithm", METHODS, ids=named)


# Updates, by hand


def rows(*steps: tuple, valid: list[bool] | None = None) -> Transition:
    """A rollout `[1, B]`: of each environment (observation, action, reward, next observation), and how it ended."""
    ends = [step[4] if len(step) > 4 else "" for step in steps]
    obs, action, reward, next_obs = (jnp.array([[step[i] for step in steps]]) for i in range(4))
    terminated, truncated = (jnp.array([[end == name for end in ends]]) for name in ("terminated", "truncated"))
    counts = None if valid is None else jnp.array([valid])
    return Transition(obs, action, reward.astype(jnp.float32), next_obs, terminated, truncated, counts)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _init(algorithm: Any, states: int, actions: int, num_envs: int) -> Any:
    return algorithm.init(jax.random.key(0), space_spec(Discrete(states), Discrete(actions), num_envs, 1_000))


def begin(algorithm: LinearControl, q: list[list[float]], num_envs: int = 1) -> Any:
    """The state with these values."""
    state = _init(as_float32(algorithm), len(q), len(q[0]), num_envs)
    return state._replace(q=LinearFunction(weights=jnp.array(q, jnp.float32), features=state.q.features))


@jax.jit
def update(algorithm: Any, state: Any, rollout: Transition) -> Any:
    return algorithm.update(state, rollout, jax.random.key(0))


def learn(algorithm: LinearControl, state: Any, *rollouts: Transition) -> tuple[Any, dict[str, Any]]:
    """The state after these rollouts, and what the last one reported."""
    reported = {}
    for rollout in rollouts:
        state, reported = update(as_float32(algorithm), state, rollout)
    return state, reported


Q = [[1.0, 2.0], [4.0, 8.0], [6.0, 6.0]]
"""Values before the updates below: 0 to 1 or 2, with reward 3 and gamma 0.5."""


@pytest.mark.parametrize(
    ("method", "to", "end", "target"),
    [
        (QLearning, 1, "", 3 + 0.5 * 8),
        (QLearning, 1, "truncated", 3 + 0.5 * 8),
        (QLearning, 1, "terminated", 3),
        (ExpectedSarsa, 1, "", 3 + 0.5 * (0.75 * 8 + 0.25 * 4)),
        (ExpectedSarsa, 1, "truncated", 3 + 0.5 * (0.75 * 8 + 0.25 * 4)),
        (ExpectedSarsa, 1, "terminated", 3),
        (ExpectedSarsa, 2, "", 3 + 0.5 * 6),
    ],
)
def test_one_step_by_hand(method, to, end, target):
    """Epsilon 0.5 means that the better action is taken with probability 0.75."""
    algorithm = method(gamma=0.5, epsilon=0.5, learning_rate=0.1)
    state, reported = learn(algorithm, begin(algorithm, Q), rows((0, 0, 3, to, end)))
    np.testing.assert_allclose(state.q.weights, [[1 + 0.1 * (target - 1), 2], *Q[1:]], rtol=1e-6)
    np.testing.assert_allclose(reported["td_error"], (target - 1, 1), rtol=1e-6)


def test_schedules_run_over_the_steps():
    """From 0.5 to 0 in 1,000 steps: after 500 of them 0.25."""
    algorithm = QLearning(learning_rate=0.5, learning_rate_end=0.0, gamma=0.0)
    state = begin(algorithm, Q)
    state = state._replace(schedule=state.schedule._replace(step=state.schedule.step.add(500)))
    state, _ = learn(algorithm, state, rows((0, 0, 3, 1)))
    np.testing.assert_allclose(state.q.weights[0], [1 + 0.25 * 2, 2])
    assert state.schedule.step.value == 501


@every_method
def test_rows_are_learned_from_in_turn_and_masked_ones_not_at_all(algorithm):
    """The second row begins with what the first one learned; the third is none. Terminal, so all targets are alike."""
    algorithm = dataclasses.replace(algorithm, num_envs=3, learning_rate=0.5, **planning(algorithm, 0))
    three = rows((0, 0, 3, 1, "terminated"), (0, 0, 9, 1, "terminated"), (0, 1, 50, 1, "terminated"))
    state = begin(algorithm, [[1.0, 2.0], [0.0, 0.0]], 3)
    state, reported = learn(algorithm, state, three._replace(valid=jnp.array([[True, True, False]])))
    np.testing.assert_allclose(state.q.weights, [[2 + 0.5 * 7, 2], [0, 0]])
    (error,) = (m for m in reported.values() if isinstance(m, Mean))
    np.testing.assert_allclose(error, (2 + 7, 2))


def planning(algorithm: LinearControl, steps: int) -> dict[str, int]:
    return {"planning_steps": steps} if isinstance(algorithm, DynaQ) else {}


# Sarsa's next action


@pytest.mark.parametrize("algorithm", [Sarsa(), SarsaLambda()], ids=named)
def test_the_action_of_the_target_is_the_one_then_taken(algorithm):
    """All actions at random: of many environments, each uses and takes its own."""
    algorithm = dataclasses.replace(algorithm, num_envs=200, epsilon=1.0, gamma=0.5, learning_rate=1e-9)
    ends = ["", "truncated", "terminated", ""]
    four = rows(*[(0, 0, 3, 1, ends[i % 4]) for i in range(200)])
    state, reported = learn(algorithm, begin(algorithm, Q, 200), four)
    chosen, goes_on = np.asarray(state.pending.action), np.arange(200) % 4 % 3 == 0
    assert set(chosen) == {0, 1}

    following = np.array([4.0, 8.0])[chosen] * (np.arange(200) % 4 != 2)
    np.testing.assert_allclose(reported["td_error"].total, np.abs(3 + 0.5 * following - 1).sum(), rtol=1e-5)

    def act(obs, explore=True):
        obs, key = jnp.full(200, obs), jax.random.key(1)
        return np.asarray(as_float32(algorithm).act(state, (), obs, key, explore=explore)[0])

    np.testing.assert_array_equal(act(1)[goes_on], chosen[goes_on])
    assert (act(1)[~goes_on] != chosen[~goes_on]).any(), "none is carried over an episode's end"
    assert (act(0)[goes_on] != chosen[goes_on]).any(), "nor taken where it was not chosen"
    np.testing.assert_array_equal(act(1, explore=False), np.ones(200), "greedy is greedy")


def test_the_next_action_is_chosen_with_the_values_before_the_update():
    """Staying in a state: the update makes the other action the better one, and 0 is taken all the same."""
    algorithm = Sarsa(epsilon=0.0, learning_rate=1.0, gamma=1.0)
    state, _ = learn(algorithm, begin(algorithm, [[2.0, 1.0]]), rows((0, 0, -5, 0)))
    np.testing.assert_allclose(state.q.weights, [[-5 + 2, 1]])
    assert as_float32(algorithm).act(state, (), jnp.zeros(1, jnp.int32), jax.random.key(0))[0] == 0


@as_tree
class WatchedSarsa(Sarsa):
    """Sarsa that reports how often an action was the pending one, of all steps in which an episode went on."""

    def update(self, state, rollout, key):
        now = Transition(*(x[0] for x in rollout[:6]))
        counts = jnp.ones_like(now.terminated) if rollout.valid is None else rollout.valid[0]
        is_due = state.pending.is_due(now.obs) & counts
        kept = is_due & (state.pending.action == now.action)
        state, reported = super().update(state, rollout, key)
        return state, reported | {"kept": Mean(jnp.sum(kept, dtype=float), jnp.sum(is_due, dtype=float))}


@pytest.mark.parametrize("mode", ["fused", "same_step", "next_step", "disabled"])
def test_pending_actions_are_taken_in_every_loop(mode):
    """Of 120 rows all but those that begin an episode (and those in which an environment only resets)."""
    algorithm: Any = as_float32(WatchedSarsa(num_envs=3, epsilon=1.0))
    if mode == "fused":
        world: Any = dataclasses.replace(registry.environments.make("Maze"), max_episode_steps=5)
        trainer: Any = FusedSeeds(algorithm, as_float32(world), 1_000)
    else:
        lake = functools.partial(gymnasium.make, "FrozenLake-v1", max_episode_steps=5)
        trainer = HostSeeds(algorithm, lambda: GymnasiumEnvironments(lake, 3, mode), 1_000)
    record = trainer.advance(40)
    kept, due = record.metrics["kept"].total.sum(), record.metrics["kept"].weight.sum()
    ends = (record.episodes.lengths > 0).sum()
    assert ends > 20
    assert kept == due
    if mode == "next_step":
        assert 40 < due < 117 - ends
    else:
        assert due == 120 - 3 - ends + (record.episodes.lengths[:, -1] > 0).sum()
    trainer.close()


# Traces


PATH = [
    rows((0, 1, 1, 1)),  # delta = 1 + 0.5 * 2 - 1 = 1
    rows((1, 1, 0, 0)),  # delta = 0.5 * 1.1 - 2 = -1.45
    rows((0, 0, 1, 1)),  # delta = 1 + 0.5 * 1.855 - 0 = 1.9275
    rows((1, 1, 2, 0, "terminated")),  # delta = 2 - 1.9321 = 0.0679
]
"""Through states 0 and 1 twice, by way of another action in 0 the second time; gamma lambda = 0.4."""


@pytest.mark.parametrize(
    ("trace", "after", "expected"),
    [
        ("accumulating", 3, [[0.19275, 1.042 + 0.19275 * 0.16], [0, 1.855 + 0.19275 * 0.4]]),
        ("replacing", 3, [[0.19275, 1.042], [0, 1.855 + 0.19275 * 0.4]]),
        ("accumulating", 4, [[0.19275 + 0.00679 * 0.4, 1.07284 + 0.00679 * 0.064], [0, 1.9321 + 0.00679 * 1.16]]),
        ("replacing", 4, [[0.19275 + 0.00679 * 0.4, 1.042], [0, 1.9321 + 0.00679]]),
    ],
)
def test_traces_by_hand(trace, after, expected):
    algorithm = SarsaLambda(gamma=0.5, trace_decay=0.8, learning_rate=0.1, epsilon=0.0, trace=trace)
    state, _ = learn(algorithm, begin(algorithm, [[0.0, 1.0], [0.0, 2.0]]), *PATH[:after])
    np.testing.assert_allclose(state.q.weights, expected, rtol=1e-5)


@pytest.mark.parametrize("trace", ["accumulating", "replacing"])
@pytest.mark.parametrize("end", ["terminated", "truncated", "elsewhere"])
def test_an_episodes_trace_ends_with_it(trace, end):
    """Also where a resumed run begins elsewhere than where it had stopped, without an end in between."""
    algorithm = SarsaLambda(gamma=0.5, trace_decay=0.8, learning_rate=0.1, epsilon=0.0, trace=trace)
    last = rows((1, 1, 0, 2, "" if end == "elsewhere" else end))
    state, _ = learn(algorithm, begin(algorithm, [[0.0, 1.0], [0.0, 2.0], [0.0, 0.0]]), PATH[0], last)
    before = np.asarray(state.q.weights)
    state, reported = learn(algorithm, state, rows((0, 0, 1, 0, "terminated")))
    changed = np.zeros((3, 2))
    changed[0, 0] = 0.1
    np.testing.assert_allclose(state.q.weights - before, changed, atol=1e-6)
    np.testing.assert_allclose(reported["td_error"].total, 1.0)


def test_without_decay_left_it_is_sarsa():
    one, other = Sarsa(epsilon=0.0), SarsaLambda(trace_decay=0.0, epsilon=0.0)
    start = [[0.0, 1.0], [0.0, 2.0]]
    a, b = (learn(algorithm, begin(algorithm, start), *PATH)[0] for algorithm in (one, other))
    np.testing.assert_allclose(a.q.weights, b.q.weights, rtol=1e-6)


def test_each_environment_has_a_trace_of_its_own():
    """Two walk the path by hand one after the other: the first has ended before the second begins."""
    algorithm = SarsaLambda(gamma=0.5, trace_decay=0.8, learning_rate=0.1, epsilon=0.0, num_envs=2)
    start = [[0.0, 1.0], [0.0, 2.0]]
    idle = (0, 0, 0, 1)

    def beside(path, which):
        for rollout in path:
            one = jax.tree.map(lambda x: x[0, 0], rollout[:4])
            end = "terminated" if rollout.terminated[0, 0] else ""
            mine = (*one, end)
            pair = [mine, idle] if which == 0 else [idle, mine]
            yield rows(*pair, valid=[which == 0, which == 1])

    state, _ = learn(algorithm, begin(algorithm, start, 2), *beside(PATH, 0))
    alone, _ = learn(dataclasses.replace(algorithm, num_envs=1), begin(algorithm, start), *PATH)
    np.testing.assert_allclose(state.q.weights, alone.q.weights, rtol=1e-6)
    both, _ = learn(algorithm, state, *beside(PATH, 1))
    alone, _ = learn(dataclasses.replace(algorithm, num_envs=1), alone, *PATH)
    np.testing.assert_allclose(both.q.weights, alone.q.weights, rtol=1e-6)
    assert not np.allclose(both.q.weights, state.q.weights)


def test_traces_over_tiles():
    """Two tilings: a visit sets both active tiles to 1 for the action, and to 0 for the other."""
    algorithm = SarsaLambda(
        features="tile-coding", tilings=2, tiles=2, gamma=1.0, trace_decay=0.5, epsilon=0.0, learning_rate=0.1
    )
    spec = space_spec(Box(0.0, 1.0, (1,)), Discrete(2), 1, 100)
    algorithm.check(spec)
    state: Any = as_float32(algorithm).init(jax.random.key(0), spec)
    there, near = np.float32(0.3), np.float32(0.1)  # they share a tile of the first tiling, and none of the second
    first, second = (np.asarray(state.q.features(jnp.array([x])).indices) for x in (there, near))
    assert first[0] == second[0] and first[1] != second[1]

    def go(obs, action, reward, next_obs):
        step = rows((0, action, reward, 0))
        return step._replace(obs=jnp.array([[[obs]]]), next_obs=jnp.array([[[next_obs]]]))

    state, _ = learn(algorithm, state, go(there, 0, 1, near))
    expected = np.zeros((6, 2))
    expected[first, 0] = 0.1
    np.testing.assert_allclose(state.q.weights, expected)
    state, reported = learn(algorithm, state, go(near, 1, 2, near))
    delta = float(reported["td_error"].total)
    expected[first[1], 0] += 0.1 * delta * 0.5
    expected[second, 1] += 0.1 * delta
    np.testing.assert_allclose(state.q.weights, expected, rtol=1e-6)


# Monte Carlo


EPISODE = [rows((0, 0, 1, 1)), rows((1, 1, 0, 0)), rows((0, 0, 2, 2, "terminated"))]
"""With gamma 0.5 its returns are 1.5, 1 and 2; the first and the last are those of state 0 and action 0."""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"visits": "every"}, (0.2 + 0.1 * (1.5 - 0.2), 0.1)),  # backwards: the later return first
        ({"visits": "first"}, (0.15, 0.1)),
        ({"visits": "every", "average": True}, (1.75, 1.0)),
        ({"visits": "first", "average": True}, (1.5, 1.0)),
    ],
)
def test_returns_by_hand(settings, expected):
    algorithm = MonteCarlo(gamma=0.5, learning_rate=0.1, max_episode_length=3, **settings)
    state, reported = learn(algorithm, begin(algorithm, np.zeros((3, 2)).tolist()), *EPISODE[:2])
    assert not state.q.weights.any() and reported["error"].weight == 0, "nothing before the end"
    state, reported = learn(algorithm, state, EPISODE[2])
    np.testing.assert_allclose(state.q.weights, [[expected[0], 0], [0, expected[1]], [0, 0]], rtol=1e-6)
    assert reported["error"].weight == (3 if settings["visits"] == "every" else 2)
    assert not reported["episode_too_long"].raised

    again, _ = learn(algorithm, state, *EPISODE[:2], rows((0, 0, 6, 2, "terminated")))  # returns 2.5, 3 and 6
    seen = {"first": [2.5], "every": [6.0, 2.5]}[settings["visits"]]
    value = expected[0]
    for number, future in enumerate(seen, start=1 + len(seen)):
        value += (1 / number if settings.get("average") else 0.1) * (future - value)
    np.testing.assert_allclose(again.q.weights[0, 0], value, rtol=1e-6)


def test_a_time_limit_completes_the_return_by_an_estimate():
    """State 2 is worth 0.75 * 8 + 0.25 * 4 = 7 to who takes the better action with probability 0.75."""
    algorithm = MonteCarlo(gamma=0.5, learning_rate=1.0, epsilon=0.5, max_episode_length=3)
    start = [[0.0, 0.0], [0.0, 0.0], [4.0, 8.0]]
    state, _ = learn(algorithm, begin(algorithm, start), *EPISODE[:2], rows((0, 0, 2, 2, "truncated")))
    last = 2 + 0.5 * 7
    np.testing.assert_allclose(state.q.weights, [[1 + 0.25 * last, 0], [0, 0.5 * last], [4, 8]])


def test_episodes_of_several_environments_are_kept_apart():
    """The second environment is one step behind, waits while it resets, and ends by its time limit."""
    algorithm = MonteCarlo(gamma=0.5, learning_rate=1.0, epsilon=0.0, num_envs=2, max_episode_length=4)
    state, _ = learn(
        algorithm,
        begin(algorithm, np.zeros((4, 2)).tolist(), 2),
        rows((0, 0, 1, 1), (9, 9, 99, 9), valid=[True, False]),
        rows((1, 1, 4, 2, "terminated"), (2, 0, 8, 3)),
        rows((0, 0, 1, 1), (3, 1, 4, 1, "truncated")),
    )
    np.testing.assert_allclose(state.q.weights, [[3, 0], [0, 4], [8 + 0.5 * 6, 0], [0, 4 + 0.5 * 4]])
    np.testing.assert_array_equal(state.episodes.lengths, [1, 0])


def test_an_episode_that_was_broken_off_is_forgotten():
    """A resumed run in host environments begins new episodes; what the old ones had been through is not theirs, also
    where they begin with the observation at which the old ones stopped."""
    algorithm = MonteCarlo(gamma=1.0, learning_rate=1.0, max_episode_length=3)
    state, _ = learn(algorithm, begin(algorithm, np.zeros((3, 2)).tolist()), rows((0, 0, 1, 1)))
    state, _ = learn(algorithm, algorithm.begin_episodes(state), rows((1, 1, 5, 2)), rows((2, 0, 2, 1, "terminated")))
    np.testing.assert_allclose(state.q.weights, [[0, 0], [0, 7], [2, 0]])

    for method in (Sarsa(epsilon=1.0, num_envs=50), SarsaLambda(epsilon=1.0, num_envs=50)):
        state, _ = learn(method, begin(method, Q, 50), rows(*[(0, 0, 3, 1)] * 50))
        assert state.pending.is_due(jnp.ones(50, jnp.int32)).all()
        assert not method.begin_episodes(state).pending.is_due(jnp.ones(50, jnp.int32)).any()


# Alarms


LONG = r"an episode has gone on for more than max_episode_length (--max-episode-length) = 6 steps, and monte-carlo"


def test_an_episode_that_cannot_be_remembered_stops_the_run():
    short = MonteCarlo(max_episode_length=6, epsilon=1.0)
    with pytest.raises(TreadleError, match=re.escape(LONG) + r".* The run was stopped at step .* \(seed 0\)"):
        Agent(short, "TreasureLine").learn(500)
    lake = Agent(short, lambda: gymnasium.make("FrozenLake-v1").unwrapped, loop="host")
    with pytest.raises(TreadleError, match=re.escape(LONG)):
        lake.learn(500)
    with pytest.raises(
        InvalidSetting, match=r"max_episode_length .* was 6; it must be at least 100, because that is how"
    ):
        Agent(short, "FrozenLake-v1").learn(500)


def test_an_alarm_names_the_first_seed_that_raised_it_and_is_not_a_metric():
    world: Any = as_float32(registry.environments.make("TreasureLine"))
    trainer = FusedSeeds(as_float32(MonteCarlo(max_episode_length=6, epsilon=1.0)), world, 1_000, 0, 2)
    record = trainer.advance(5)
    assert "episode_too_long" not in records.summary(record)
    assert all("episode_too_long" not in line for line in records.lines(record, 0, 1, 0.0))
    record = trainer.advance(100)
    raised = record.metrics["episode_too_long"].raised
    update, seed = min((int(row.argmax()), i) for i, row in enumerate(raised) if row.any())
    with pytest.raises(TreadleError, match=f"at step {5 + update + 1} \\(seed {seed}\\)"):
        records.check(record, 5, 1)
    quiet = Alarm(np.zeros((2, 3), bool), "nothing happened.")
    records.check_alarms({"quiet": quiet, "loss": np.zeros((2, 3))}, 0, 3)


def test_a_run_on_disk_is_stopped_by_an_alarm_too(tmp_path, capsys):
    def train(folder: str, *flags: str) -> int:
        command = ["train", "monte-carlo", "TreasureLine", "--preset", "none", "--out", str(tmp_path / folder)]
        return main([*command, "--epsilon", "1.0", "--seeds", "2", "--total-timesteps", "400", *flags])

    assert train("short", "--max-episode-length", "6") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert LONG in said and "The last good checkpoint is at step 0." in said
    assert train("long") == 0
    written = set().union(*metrics.read(tmp_path / "long"))
    assert "error" in written and "episode_too_long" not in written


# Dyna-Q


def test_the_model_remembers_what_came_last_and_what_was_seen():
    algorithm = DynaQ(planning_steps=0, gamma=0.5)
    steps = [(3, 1, 1, 2), (2, 0, 2, 3), (3, 0, 0, 1, "truncated"), (3, 1, 7, 0, "terminated"), (2, 0, 2, 3)]
    state, _ = learn(algorithm, begin(algorithm, np.zeros((4, 3)).tolist()), *map(rows, steps))
    model = state.model
    assert model.num_states == 2
    np.testing.assert_array_equal(model.obs[:2], [3, 2])
    np.testing.assert_array_equal(model.actions, [[-1, -1, -1], [-1, -1, -1], [0, -1, -1], [1, 0, -1]])
    assert [float(x[3, 1]) for x in model.outcome] == [7, 0, True], "the last outcome"
    assert [float(x[3, 0]) for x in model.outcome] == [0, 1, False], "a time limit is no terminal state"
    assert [float(x[2, 0]) for x in model.outcome] == [2, 3, False]

    draw = jax.jit(jax.vmap(lambda uniform: Model.draw(model, uniform, state.q)))
    obs, action, outcome = draw(jax.random.uniform(jax.random.key(0), (4_000, 2)))
    seen, counts = np.unique(np.stack([obs, action], 1), axis=0, return_counts=True)
    np.testing.assert_array_equal(seen, [[2, 0], [3, 0], [3, 1]])
    np.testing.assert_allclose(counts / 4_000, [0.5, 0.25, 0.25], atol=0.03)
    np.testing.assert_array_equal(outcome.reward, np.select([obs == 2, action == 1], [2.0, 7.0], 0.0))


def test_every_state_and_action_can_be_remembered():
    algorithm = DynaQ(planning_steps=0)
    steps = [rows((s, a, 10 * s + a, s)) for _ in range(2) for a in range(2) for s in range(3)]
    state, _ = learn(algorithm, begin(algorithm, np.zeros((3, 2)).tolist()), *steps)
    assert state.model.num_states == 3
    np.testing.assert_array_equal(state.model.obs, [0, 1, 2])
    np.testing.assert_array_equal(state.model.actions, [[0, 1]] * 3)
    np.testing.assert_array_equal(state.model.outcome.reward, [[0, 1], [10, 11], [20, 21]])


def test_planning_carries_a_reward_back_at_once():
    """Down a line to a reward: by the end of the first episode the start is worth its discounted reward."""
    line = [rows((0, 1, 0, 1)), rows((1, 1, 0, 2)), rows((2, 1, 1, 3, "terminated"))]
    start = np.zeros((4, 2)).tolist()
    planned, plain = (DynaQ(planning_steps=n, gamma=0.5, learning_rate=1.0) for n in (100, 0))
    state, reported = learn(planned, begin(planned, start), *line)
    np.testing.assert_allclose(state.q.weights, [[0, 0.25], [0, 0.5], [0, 1], [0, 0]])
    assert reported["td_error"].weight == 1, "of the step in the world"
    state, _ = learn(plain, begin(plain, start), *line)
    np.testing.assert_allclose(state.q.weights, [[0, 0], [0, 0], [0, 1], [0, 0]])


# What is refused


@pytest.mark.parametrize(
    ("algorithm", "sentence"),
    [
        (DynaQ(features="tile-coding", low=(0.0,), high=(1.0,)), "dyna-q remembers what follows each state"),
        (MonteCarlo(features="raw"), "asked for first visits.* use --visits every"),
        (MonteCarlo(features="raw", visits="every", average=True), r"asked for averages.* \(--no-average\)"),
        (SarsaLambda(features="raw"), "asked for replacing traces.* --trace accumulating"),
        (SarsaLambda(), "keeps a table of states, and this environment's observations are continuous"),
    ],
    ids=lambda x: named(x) if isinstance(x, LinearControl) else "",
)
def test_features_that_a_method_cannot_use_are_refused(algorithm, sentence):
    with pytest.raises(UnsupportedSpace, match=sentence):
        algorithm.check(space_spec(Box(0.0, 1.0, (1,)), Discrete(2)))


def test_settings_out_of_range_are_refused():
    for algorithm in (SarsaLambda(trace_decay=1.5), DynaQ(planning_steps=-1), MonteCarlo(max_episode_length=0)):
        with pytest.raises(InvalidSetting, match="it must be"):
            algorithm.check()
    with pytest.raises(UnsupportedSpace, match="would need 60,000,000 numbers"):
        SarsaLambda(num_envs=2).check(space_spec(Discrete(10_000_000), Discrete(2), 2))


# What is learned


SEEDS, STEPS = 4, 100_000
MAZE: Any = registry.environments.make("Maze")
CELLS = [cell for cell in range(16) if cell not in (6, 9, 10)]
"""All but the terminal ones."""


def learned(algorithm: Any, **changes: Any) -> np.ndarray:
    """The values `[S, 16, 4]` that four seeds have after 100,000 steps in the maze.

    Both ends of each schedule are given, so that all settings of a method share what is compiled.
    """
    given = {"gamma": 0.9, "learning_rate": 0.1, "learning_rate_end": 0.1, "epsilon": 1.0, "epsilon_end": 1.0}
    algorithm = dataclasses.replace(algorithm, **given | changes)
    trainer = FusedSeeds(as_float32(algorithm), as_float32(MAZE), STEPS, 1, SEEDS)
    for chunk in range(5):
        records.check(trainer.advance(STEPS // 5), chunk * STEPS // 5, 1)
    return np.asarray(trainer.state.algorithm.q.weights)


@pytest.mark.parametrize("algorithm", [QLearning(), DynaQ()], ids=named)
def test_off_policy_methods_learn_the_optimal_values_from_random_actions(algorithm):
    """Nothing in the maze is random, so a constant step size converges."""
    optimal = np.asarray(exact.value_iteration(MAZE.transitions(), 0.9))
    for q in learned(algorithm):
        np.testing.assert_allclose(q[CELLS], optimal[CELLS], atol=1e-3)


@pytest.mark.parametrize("epsilon", [1.0, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("algorithm", [m for m in METHODS if m.survey.policy == "on-policy"], ids=named)
def test_on_policy_methods_learn_the_values_of_the_policy_that_acts(algorithm, epsilon):
    """Of random actions, or of the epsilon-greedy policy that the values make.

    Averaged over four seeds, the errors' root mean square over states and actions was at most 0.033 (expected Sarsa:
    0.013) in 16 such groups of seeds. Values go from -1 to 1.
    """
    errors = []
    for q in learned(algorithm, learning_rate_end=0.0, epsilon=epsilon, epsilon_end=epsilon):
        policy = epsilon / 4 + (1 - epsilon) * exact.greedy_policy(q)
        errors.append(np.asarray(q - exact.policy_evaluation(MAZE.transitions(), policy, 0.9).q)[CELLS])
    allowed = 0.02 if isinstance(algorithm, ExpectedSarsa) else 0.05
    assert np.sqrt((np.mean(errors, axis=0) ** 2).mean()) < allowed


@every_method
def test_each_finds_the_treasure(algorithm):
    """Six steps away, past the traps; the last brings 1. All 24 seeds that were tried found it, with each method."""
    for q in learned(algorithm, learning_rate=0.02, learning_rate_end=0.02, epsilon_end=0.1):
        v = exact.policy_evaluation(MAZE.transitions(), exact.greedy_policy(q), 0.9).v
        np.testing.assert_allclose(v[0], 0.9**5, rtol=1e-5)


@as_tree
class Rounds:
    """Three cells in turn and a reward of 1 a step; the third step terminates, or the time limit cuts there."""

    terminates: float = 0.0
    max_episode_steps: int | None = 3

    observation_space = Discrete(3)
    action_space = Discrete(2)

    def reset(self, key):
        return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)

    def step(self, state, action, key):
        state = (state + 1) % 3
        return state, Step(state, jnp.ones(()), (state == 0) & (self.terminates > 0))


@pytest.mark.parametrize("algorithm", [Sarsa(), SarsaLambda(), MonteCarlo(), DynaQ()], ids=named)
def test_a_time_limit_is_no_terminal_state(algorithm):
    """Truncated, the rewards go on for ever; terminated, there are three, two and one of them."""
    algorithm = dataclasses.replace(algorithm, gamma=0.7, epsilon=1.0, num_envs=2)
    for terminates, values in ((0.0, [1 / 0.3] * 3), (1.0, [2.19, 1.7, 1.0])):
        trainer = FusedSeeds(as_float32(algorithm), as_float32(Rounds(terminates=terminates)), 6_000)
        trainer.advance(3_000)
        q = trainer.state.algorithm.q.weights[0]
        np.testing.assert_allclose(q, np.tile(np.array(values)[:, None], 2), atol=1e-3)


@pytest.mark.parametrize("algorithm", [SarsaLambda(trace="accumulating"), MonteCarlo(visits="every")], ids=named)
def test_features_of_ones_own_find_the_way(algorithm):
    """A corridor whose cells are observed one-hot: with them as features the weights are a table."""
    probe = next(probe for probe in PROBES if probe.name == "short-corridor")
    algorithm = dataclasses.replace(
        algorithm, encoder=lambda obs: 2 * obs, gamma=0.9, learning_rate=0.02, epsilon=1.0, epsilon_end=0.0
    )
    agent = Agent(algorithm, probe.environment).learn(10_000)
    obs, values = probe.values(0.9)
    np.testing.assert_array_equal(agent.predict(obs), values.argmax(1))
    assert agent.evaluate(10).returns.mean() == 1


# In Gymnasium's worlds


TAXI = max(name for name in gymnasium.registry if name.startswith("Taxi-v"))
STILL_LAKE = functools.partial(gymnasium.make, "FrozenLake-v1", is_slippery=False)


def on_host(algorithm: LinearControl, environment: Any, steps: int) -> Any:
    trainer = make_trainer(algorithm, environment, steps, loop="host")
    before = np.asarray(trainer.state.algorithm.q.weights)
    record = trainer.advance(steps // algorithm.num_envs)
    records.check(record, 0, algorithm.num_envs)
    after = np.asarray(trainer.state.algorithm.q.weights)
    assert np.isfinite(after).all()
    trainer.close()
    return record, before, after


@every_method
def test_each_learns_in_the_host_loop(algorithm):
    record, before, after = on_host(
        dataclasses.replace(algorithm, epsilon=1.0, initial_value=1.0), "FrozenLake-v1", 300
    )
    assert (record.episodes.lengths > 0).sum() > 10
    assert (after != before).sum() > 20
    assert (after[0, [5, 7, 11, 12, 15]] == 1).all(), "nothing is learned of terminal states"


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [TAXI, "CliffWalking-v1", STILL_LAKE], ids=["Taxi", "CliffWalking", "FrozenLake"]
)
@every_method
def test_each_learns_in_gymnasiums_worlds(algorithm, environment):
    _, before, after = on_host(dataclasses.replace(algorithm, num_envs=2, epsilon=1.0), environment, 1_000)
    assert environment is STILL_LAKE or (after != before).sum() > 20


@pytest.mark.slow
def test_q_learning_crosses_the_lake():
    for seed in range(4):
        agent = Agent(QLearning(gamma=0.95, epsilon=1.0, epsilon_end=0.1), STILL_LAKE, seed=seed).learn(20_000)
        assert agent.evaluate(10).returns.min() == 1


@pytest.mark.slow
def test_q_learning_drives_the_taxi():
    """The best policy has a mean return of about 8, one that acts at random one of about -770."""
    for seed in range(2):
        algorithm = QLearning(gamma=0.95, learning_rate=0.5, epsilon=0.5, epsilon_end=0.05)
        assert Agent(algorithm, TAXI, seed=seed, loop="host").learn(150_000).evaluate(50).returns.mean() > 5
