"""Experiments bear out what they claim, and `treadle reproduce` keeps what it found."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle import exact, experiment, figures, registry, settings, wrap
from treadle.algorithms.q_learning import QLearning
from treadle.environments.treasure_line import TreasureLine
from treadle.errors import InvalidSetting, TreadleError, UnknownName
from treadle.experiment import Claim, Experiment, Outcome, Trial, Verdict
from treadle.experiments import (
    actor_critic,
    arm,
    common,
    ddpg_targets,
    double_dqn,
    dueling_dqn,
    maze_dqn,
    ppo_penalty,
    prioritized_replay,
    quadrotor_room,
    reinforce_cartpole,
    reinforce_mountain_car,
    tutorial_cartpole,
    tutorial_mountain_car,
)
from treadle.features import LinearFunction
from treadle.loops import fused
from treadle.loops.looks import Moment, train_and_look
from treadle.loops.seeding import seed_key
from treadle.registry import as_float32

pytestmark = pytest.mark.least_optimised

NAMES = list(experiment.experiments())
QUICK = {"baird": 5, "dyna-q": 5, "traces": 1, "treasure-line": 30}
"""Experiments that take a few seconds with so many seeds; the others run with all of theirs in the slow tests."""


def lengths(figure, outcomes):
    figure.subplots().plot(outcomes["learner"].lengths.T)


TINY = Experiment(
    about="a tiny one",
    source="this test",
    trials=(
        Trial("learner", "q-learning", "TreasureLine", {"gamma": 0.9}, episodes=3, observe=common.q_table),
        Trial("once", "q-learning", "TreasureLine", {"gamma": 0.9}, episodes=2, seeds=1),
    ),
    draw=lengths,
    claims=(
        Claim("episodes take five steps or more", lambda o: Verdict(o["learner"].lengths.min() >= 5, "it did")),
        Claim("episodes take one step", lambda o: Verdict(bool(o["learner"].lengths.max() == 1), "they do not")),
    ),
    seeds=4,
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(experiment, "experiments", lambda: {"tiny": TINY})


def test_a_run_is_a_folder_with_figure_claims_and_data(tiny, tmp_path):
    told = []
    judged = experiment.reproduce("tiny", tmp_path / "out", seed=1, command="treadle reproduce tiny", tell=told.append)
    assert told == ["learner", "once"]
    assert [(j.holds, j.figures) for j in judged] == [(True, "it did"), (False, "they do not")]
    assert (tmp_path / "out/figures/tiny.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((tmp_path / "out/experiment.json").read_text())
    assert kept["seeds"] == 4 and kept["seed"] == 1 and kept["command"] == "treadle reproduce tiny"
    assert [c["holds"] for c in kept["claims"]] == [True, False]
    assert kept["trials"][0]["settings"] == {"gamma": 0.9}
    data = np.load(tmp_path / "out/data.npz")
    assert data["learner/lengths"].shape == (4, 3)
    assert data["once/lengths"].shape == (1, 2)
    assert data["learner/observed"].shape == (4, 3, 6, 2)
    np.testing.assert_array_equal(data["learner/returns"], 1.0)


def test_the_same_seeds_give_the_same_outcome(tiny):
    trial = TINY.trials[0]
    once, again, other = trial.run(0, 2), trial.run(0, 3), trial.run(1, 2)
    np.testing.assert_array_equal(once.observed, again.observed[:2])
    assert not np.array_equal(once.lengths, other.lengths)


def test_mistakes_are_told_in_sentences(tmp_path):
    with pytest.raises(UnknownName, match=r"no experiment 'cliff-wlking'\. Did you mean 'cliff-walking'\?"):
        experiment.reproduce("cliff-wlking", tmp_path)
    with pytest.raises(InvalidSetting, match="seeds"):
        experiment.reproduce("treasure-line", tmp_path, seeds=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(TreadleError, match="cannot be made"):
        experiment.reproduce("treasure-line", tmp_path / "file" / "out")


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_declared_whole(name):
    declared = experiment.find(name)
    labels = [trial.label for trial in declared.trials]
    assert len(set(labels)) == len(labels), "outcomes are known by their labels"
    assert declared.about and declared.source and declared.claims
    assert all((t.episodes is None) != (t.updates is None) for t in declared.trials)


@pytest.mark.parametrize("name", sorted(QUICK))
def test_a_quick_experiment_bears_out_its_claims(name, tmp_path):
    judged = experiment.reproduce(name, tmp_path, seeds=QUICK[name])
    assert all(j.holds for j in judged), judged


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_bears_out_its_claims(name, tmp_path):
    judged = experiment.reproduce(name, tmp_path)
    assert [j.holds for j in judged] == [claim.expected for claim in experiment.find(name).claims], judged


def test_a_path_is_optimal_only_if_no_tie_leads_astray():
    world = registry.environments.make("TreasureLine")
    right = np.zeros((6, 2))
    right[:5, 1] = 1
    undecided, wrong = right.copy(), right.copy()
    undecided[2] = 0
    wrong[0] = (1, 0)
    found = common.paths_are_optimal(world, np.stack([right, undecided, wrong]), 0.9)
    assert found.tolist() == [True, False, False]


def test_a_trial_with_wrappers_is_plain_training_in_the_wrapped_world():
    changes = {"reward_scale": 3.0, "time_limit": 7}
    trial = Trial(
        "wrapped", "q-learning", "TreasureLine", {"learning_rate": 0.5}, wrappers=changes, updates=300, every=100,
        observe=common.q_table,
    )  # fmt: skip
    outcome = trial.run(3, 2)

    world = as_float32(wrap(TreasureLine(), **changes))
    state, record = jax.jit(fused.train, static_argnums=3)(
        as_float32(QLearning(learning_rate=0.5)), world, seed_key(3, 1), 300
    )
    np.testing.assert_allclose(outcome.observed[1, -1], state.algorithm.q.weights, atol=1e-6)
    assert outcome.observed.shape[1] == 3
    lengths = np.asarray(record.episodes.lengths).reshape(3, 100)
    np.testing.assert_array_equal(outcome.ended[1], (lengths > 0).sum(1))
    np.testing.assert_array_equal(outcome.lengths[1], lengths.sum(1))
    assert lengths.max() <= 7 and outcome.observed.max() > 1.5, "the time limit and the rewards are the wrappers'"


def test_a_preset_makes_a_trial():
    preset = settings.preset("dqn", "CartPole-v1", "rl-zoo")
    trial = Trial.of_preset("zoo", preset, every=4)
    assert (trial.algorithm, trial.environment, trial.settings) == ("dqn", "CartPole-v1", preset.settings)
    assert trial.updates == 196, "50,000 steps in rounds of 256"
    algorithm, _, count, unit = trial.made()
    assert (algorithm.num_steps, count, unit) == (256, 49, "update")


def following(table, world, cells):
    """The moment at which Q-learning has this table, after having visited these cells."""
    start = fused.init(QLearning(), world, jax.random.key(0), 1)
    q = LinearFunction(weights=jnp.asarray(table, jnp.float32), features=start.algorithm.q.features)
    cells = jnp.asarray(cells, jnp.int32)[:, None]
    visited = start.actor._replace(env_state=cells, obs=cells)
    return Moment(QLearning(), world, start.algorithm._replace(q=q), {}, visited, jax.random.key(1))


RIGHT, LEFT = np.tile([0.0, 1.0], (6, 1)), np.tile([1.0, 0.0], (6, 1))


def test_true_values_are_what_the_greedy_policy_really_earns():
    """To the right the treasure, worth 1, is found after 5, 4, 3, 2 and 1 steps. To the left there is none, and a
    wrapper's -1 a step goes on for ever, the time limit notwithstanding: -1 / (1 - 0.9)."""
    measure = jax.jit(common.true_values, static_argnums=1)
    found = measure(following(RIGHT, TreasureLine(), range(5)), 0.9)
    np.testing.assert_allclose(found, 0.9 ** np.arange(4, -1, -1), rtol=1e-5)
    endless = wrap(TreasureLine(max_episode_steps=3), reward_offset=-1.0)
    np.testing.assert_allclose(measure(following(LEFT, endless, [2, 0]), 0.9), -10.0, rtol=1e-4)
    scaled = wrap(TreasureLine(), reward_scale=2.0)
    np.testing.assert_allclose(measure(following(RIGHT, scaled, [3]), 0.9), 2 * 0.9, rtol=1e-5)


def test_greedy_episodes_end_at_the_goal_or_at_the_time_limit():
    measure = jax.jit(common.greedy_lengths, static_argnums=1)
    world = TreasureLine(max_episode_steps=30)
    assert measure(following(RIGHT, world, [4]), 3).tolist() == [5, 5, 5]
    assert measure(following(LEFT, world, [4]), 2).tolist() == [30, 30]


def test_a_verdict_is_that_of_compare():
    low, high = np.arange(10.0), np.arange(10.0) + 20
    assert common.is_better(high, low) and not common.is_better(low, high)
    assert common.verdict(("new", "old"), high, low).startswith("new is better: probability that new is better 1.00")
    assert common.verdict(("new", "old"), low, high).startswith("old is better")
    assert common.verdict(("new", "old"), low, low + 0.1).startswith("no difference shown")
    assert common.verdict(("new", "old"), low[:1], high[:1]) == "one seed says nothing"


def outcome(seeds, looks, observed=(), lengths=()):
    """Made up; `lengths` are those of the episodes that end at the first looks."""
    rows = np.zeros((seeds, looks), int)
    rows[:, : len(lengths)] = lengths
    return Outcome(0.0 * rows, rows, (rows > 0).astype(int), observed)


def holding(module, outcomes):
    return [bool(claim.judge(outcomes).holds) for claim in module.EXPERIMENT.claims]


def test_over_estimation_is_judged_by_the_true_return_beside_it():
    def believing(natural, double, true=-1.0):
        looks = double_dqn.STEPS // double_dqn.EVERY
        spread = 0.01 * np.arange(5)[:, None]
        return {
            label: outcome(5, looks, {"believed": b + spread + np.zeros(looks), "true": np.full((5, looks), true)})
            for label, b in (("natural", natural), ("double", double))
        }

    assert holding(double_dqn, believing(0.5, -0.8)) == [True, True, True]
    assert holding(double_dqn, believing(-0.5, -0.8)) == [True, True, False], "above the truth, but not above 0"
    assert holding(double_dqn, believing(-1.5, -0.8)) == [False, True, False], "below the truth"
    assert holding(double_dqn, believing(-0.8, -0.5)) == [True, False, False]
    assert holding(double_dqn, believing(0.5, -0.8, true=0.1))[2] is False, "a true return above 0 cannot be"


def test_prioritized_replay_is_judged_by_the_steps_of_its_first_episodes():
    made, looks = prioritized_replay, prioritized_replay.STEPS // prioritized_replay.EVERY
    slow = outcome(6, looks, lengths=[4_000] * 20)
    quick = outcome(6, looks, lengths=[1_000] * 30)
    stuck = outcome(6, looks, lengths=[30_000, 5_000])
    assert made.episode_lengths(quick).sum(axis=1).tolist() == [20_000] * 6
    assert made.episode_lengths(stuck).sum(axis=1).tolist() == [made.STEPS] * 6
    assert holding(made, {"natural": slow, "prioritized": quick}) == [True]
    assert holding(made, {"natural": quick, "prioritized": slow}) == [False]
    verdict = made.EXPERIMENT.claims[0].judge({"natural": quick, "prioritized": stuck})
    assert not verdict.holds and "seeds not through in time: natural 0, prioritized 6" in verdict.figures


def test_dueling_is_judged_by_the_reward_after_the_memory_is_full():
    looks = dueling_dqn.STEPS // dueling_dqn.EVERY

    def collecting(before, after):
        reward = np.where(np.arange(looks) < 30, before, after).cumsum() + 0.1 * np.arange(8)[:, None]
        return outcome(8, looks, {"reward": reward, "cost": np.ones((8, looks))})

    poor, rich = collecting(-1.0, -5.0), collecting(-50.0, -1.0)
    assert holding(dueling_dqn, {"natural": poor, "dueling": rich}) == [True]
    assert holding(dueling_dqn, {"natural": rich, "dueling": poor}) == [False]


def test_the_maze_is_judged_when_300_episodes_have_ended():
    looks = maze_dqn.UPDATES // maze_dqn.EVERY
    best = np.asarray(exact.value_iteration(registry.environments.make("Maze").transitions(), 0.9))
    early, late = np.zeros((2, looks, 16, 4)), np.zeros((2, looks, 16, 4))
    early[:, 100:400], late[:, 400:] = best, best
    labels = list(maze_dqn.METHODS)
    by_label = dict(zip(labels, (early, early, late), strict=True))
    outcomes = {label: outcome(2, looks, q, lengths=[5] * looks) for label, q in by_label.items()}
    assert holding(maze_dqn, outcomes) == [True, True]
    swapped = {
        label: outcome(2, looks, late if q is early else early, lengths=[5] * looks) for label, q in by_label.items()
    }
    assert holding(maze_dqn, swapped) == [False, False]
    few = outcome(2, looks, late, lengths=[5] * 299)
    optimal, steps = maze_dqn.after_300_episodes(few)
    assert optimal.all() and np.isnan(steps).all(), "judged at the end"


def test_the_offsets_are_those_that_the_maze_shows():
    world = registry.environments.make("MazeOffset")
    seen = [
        world.step(jnp.asarray(cell), jnp.asarray(action), jax.random.key(0)) for cell in (0, 11) for action in (1, 2)
    ]
    for cell, step in seen:
        np.testing.assert_allclose(step.obs, maze_dqn.OFFSETS[int(cell)])


def test_tutorials_agents_are_judged_by_what_most_or_all_seeds_reach():
    ends = {tutorial_cartpole.FIRST: [500, 500, 300], tutorial_cartpole.SECOND: [500, 400, 300]}
    ends[tutorial_cartpole.OURS] = [500, 500, 500]
    outcomes = {label: outcome(3, 25, np.full((3, 25), 10.0)) for label in ends}
    for label, last in ends.items():
        outcomes[label].observed[:, -1] = last
    assert holding(tutorial_cartpole, outcomes) == [True, False, True]

    made, lost = tutorial_mountain_car, [200] * 100
    won = [*lost[:50], 150, *lost[51:]]
    slow = [*lost, *lost, 150, *lost[1:]]
    outcomes = {made.TUTORIAL: won, made.LOWER: lost, made.SHAPED: won, made.ZOO: slow}
    outcomes = {label: outcome(4, made.UPDATES, lengths=lengths) for label, lengths in outcomes.items()}
    assert holding(made, outcomes) == [True, False, True, True]
    assert "0 of 4 seeds won one of the first 100, 4 one of 300" in made.EXPERIMENT.claims[3].judge(outcomes).figures


def returning(returns, ended=None):
    """The outcome of episodes that return so much `[S, N]`, of 20 steps each, one between two looks unless told."""
    returns = np.asarray(returns, float)
    ended = np.ones(returns.shape, int) if ended is None else np.asarray(ended)
    return Outcome(returns, 20 * ended, ended, ())


def test_running_returns_are_those_of_episodes_that_ended():
    np.testing.assert_allclose(common.running(np.array([[10, 20, 0]]), 0.9), [[10.0, 11.0, 9.9]])
    found = common.episode_returns(returning([[0, 5, 0, 7, 9], [3, 0, 0, 0, 0]], [[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]), 2)
    np.testing.assert_array_equal(found, [[5, 7], [3, np.nan]])
    first = common.first_time(np.array([[False, True, True], [False, False, False], [True, False, True]]))
    assert first.tolist() == [2, np.inf, 1]
    assert common.share_told(first) == "2 of 3 seeds, by episode 2 (median)"
    assert common.share_told(first[1:2]) == "0 of 1 seeds"


def test_reinforce_is_judged_by_the_running_return():
    made = reinforce_cartpole
    learned, lost = np.full(made.EPISODES, 400.0), np.where(np.arange(made.EPISODES) < 400, 400.0, 10.0)
    assert holding(made, {made.LABEL: returning([learned, learned, lost])}) == [True, True, True]
    assert holding(made, {made.LABEL: returning([learned, lost, lost])}) == [True, False, True]
    assert holding(made, {made.LABEL: returning([learned, learned, 0 * lost])}) == [False, True, True]


def test_mountain_car_is_judged_at_the_tutorials_episodes():
    made = reinforce_mountain_car
    at = np.interp(np.arange(1, made.EPISODES + 1), [1, *made.TUTORIAL], [-40_000, *made.TUTORIAL.values()])
    at[0] = -40_000
    episodes = np.append(at[:1], (at[1:] - made.DECAY * at[:-1]) / (1 - made.DECAY))
    better, worse = episodes * 0.9, episodes * 1.1
    assert holding(made, {made.LABEL: returning([better, better, worse])}) == [True, True, True]
    assert holding(made, {made.LABEL: returning([better, worse, worse])}) == [True, False, True]
    assert holding(made, {made.LABEL: returning([worse, worse])}) == [False, False, True]
    stuck = np.arange(made.EPISODES) < 200
    found = {made.LABEL: returning([better, worse, worse], [stuck | True, stuck, stuck])}
    assert holding(made, found) == [True, False, False], "who never came so far is worse than any"


def test_the_penalty_is_judged_by_all_episodes():
    made, spread = actor_critic, np.arange(8)[:, None]
    high, low = (np.full((8, made.EPISODES), value) + spread for value in (300.0, 100.0))
    assert holding(made, {made.WITH: returning(high), made.WITHOUT: returning(low)}) == [True, False, False, True]
    assert holding(made, {made.WITH: returning(low), made.WITHOUT: returning(high)}) == [False, True, False, False]


def test_target_copies_are_judged_once_the_memory_is_full():
    made, episode, spread = ddpg_targets, np.arange(ddpg_targets.EPISODES), np.arange(8)[:, None]
    soon, late = (returning(np.where(episode < start, -1_000.0, -200.0) + spread) for start in (70, 90))
    early = returning(np.where(episode < made.FILLING, -100.0, -1_000.0) + spread)
    assert holding(made, {made.SOFT: soon, made.HARD: late}) == [True, True, True, False]
    assert holding(made, {made.SOFT: late, made.HARD: early}) == [True, False, True, True]
    assert holding(made, {made.SOFT: early, made.HARD: soon}) == [False, True, False, False]


def test_ppos_penalties_are_judged_for_each_kind_of_policy():
    made, spread = ppo_penalty, np.arange(8)[:, None]
    good, poor = (returning(np.full((8, made.EPISODES), value) + spread) for value in (-200.0, -900.0))

    def judged(*outcomes):
        labels = [made.label(penalty, policy) for policy in made.POLICIES for penalty in made.PENALTIES]
        return holding(made, dict(zip(labels, outcomes, strict=True)))

    assert judged(poor, poor, good, good) == [False, True, True, False, False]
    assert judged(good, poor, good, good) == [False, True, False, True, False]
    assert judged(good, good, good, poor) == [True, False, False, False, True]


def at_looks(shares):
    """The outcome of a trial at whose looks a share of episodes ended in success `[S, N]`."""
    shares = np.asarray(shares, float)
    return Outcome(shares, shares, shares, shares)


def test_the_arm_is_judged_by_the_last_look_of_every_seed():
    """The first trial's seeds reach 96% in the mean, although one does not; the tutorial's less than every one."""
    shares = {
        "ArmHard": [[[0.0, 1.0], [0.0, 0.92]] * 4, [[0.99, 0.5], [0.99, 0.6]] * 4, [[1.0, 0.9]] * 8],
        "ArmEasy": [[[0.0, 0.995]] * 8, [[1.0, 0.98]] * 8],
    }
    given = iter([*shares["ArmHard"], *shares["ArmEasy"]])
    outcomes = {trial.label: at_looks(next(given)) for trial in arm.EXPERIMENT.trials}
    assert holding(arm, outcomes) == [True, False, True, False, True]
    assert "96.0%, mean of the seeds: 100.0%, 92.0%," in arm.EXPERIMENT.claims[0].judge(outcomes).figures


NETWORKS = (
    actor_critic,
    arm,
    ddpg_targets,
    double_dqn,
    dueling_dqn,
    maze_dqn,
    ppo_penalty,
    prioritized_replay,
    quadrotor_room,
    reinforce_cartpole,
    reinforce_mountain_car,
    tutorial_cartpole,
    tutorial_mountain_car,
)


def traced(trial):
    """The shapes of a trial's looks."""
    algorithm, world, count, unit = trial.made()
    observe = trial.observe or (lambda moment: ())

    def one_seed(key):
        return train_and_look(as_float32(algorithm), as_float32(world), key, count, observe, unit, trial.every)

    return jax.eval_shape(one_seed, jax.random.key(0))


@pytest.mark.parametrize("module", NETWORKS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_what_a_trial_would_give_can_be_judged_and_drawn(module):
    """Trials are traced and not run, because compiling them takes seconds; their outcomes are made up."""
    rng, outcomes = np.random.default_rng(0), {}
    for trial in module.EXPERIMENT.trials:
        shapes = traced(trial)
        count = len(shapes.lengths)
        observed = jax.tree.map(lambda x: np.exp(rng.normal(size=(2, *x.shape))), shapes.observed)
        outcomes[trial.label] = outcome(2, count, observed, lengths=rng.integers(100, 200, count))
    assert all(claim.judge(outcomes).figures for claim in module.EXPERIMENT.claims)
    figure = figures.new_figure(*module.EXPERIMENT.size)
    module.EXPERIMENT.draw(figure, outcomes)
    figure.canvas.draw()
