"""Changes to an environment by settings: the same in JAX and in Gymnasium."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import math
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import treadle
from probes import TruncationAgainstTermination
from slide import CHANGES, Diary, Slide, noted, slide
from treadle import Agent, CartPole, exact, registry, settings, wrap
from treadle.cli import main
from treadle.environments import wrappers as module
from treadle.environments.atari import AtariOptions
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.environments.wrappers import Wrappers
from treadle.errors import InvalidSetting, UnsupportedSpace
from treadle.loops.choose import is_made, resolve
from treadle.loops.host import HostSeeds
from treadle.loops.rollout import make_spec
from treadle.loops.seeds import FusedSeeds
from treadle.registry import as_float32
from treadle.spaces import Box, Discrete, Grid, from_description

pytestmark = pytest.mark.least_optimised

# The settings


def test_every_change_is_explained():
    """The string below a field is its help on the command line."""
    pairs = []
    for cls in (Wrappers, AtariOptions):
        body = ast.parse(inspect.getsource(cls)).body[0].body  # pyright: ignore[reportAttributeAccessIssue]
        pairs += itertools.pairwise(body)
    explained = {a.target.id for a, b in pairs if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr)}  # pyright: ignore
    assert explained == {f.name for f in dataclasses.fields(Wrappers)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"discretise_actions": 1},
            r"discretise_actions \(--discretise-actions\) was 1; it must be a whole number, at le",
        ),
        ({"discretise_actions": 11.0}, "was 11.0; it must be a whole number"),
        ({"discretise_actions": "11"}, "was '11'; it must be a whole number"),
        ({"reward_scale": 0}, r"reward_scale \(--reward-scale\) was 0; it must be another number than 0"),
        ({"reward_scale": math.inf}, "reward_scale .* was inf; it must be a finite number"),
        ({"reward_offset": math.nan}, "reward_offset .* was nan; it must be a finite number"),
        ({"terminal_reward": "-20"}, "terminal_reward .* was '-20'; it must be a finite number"),
        (
            {"time_limit": 0},
            r"time_limit \(--time-limit\) was 0; it must be a whole number, at least 1, or one of own, none",
        ),
        ({"time_limit": None}, "time_limit .* was None; it must be .* one of own, none"),
        (
            {"reward_scal": 2.0},
            r"no change 'reward_scal' to an environment. Did you mean 'reward_scale'\? There is: clip_rewards, disc",
        ),
    ],
    ids=str,
)
def test_a_change_that_makes_no_sense_is_told_in_a_sentence(changes, said):
    with pytest.raises(InvalidSetting, match=said):
        wrap("Pendulum-v1", **changes)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Pendulum-v1 --discretise-actions 1", "discretise_actions (--discretise-actions) was 1; it must be"),
        (
            "Pendulum-v1 --discretise-actions 1 --loop host",
            "discretise_actions (--discretise-actions) was 1; it must be",
        ),
        ("Pendulum-v1 --discretise-actions 200000", "makes 200000^1 actions in 1 dimensions; 100,000 are the most"),
        ("CartPole-v1 --discretise-actions 3", "this environment's 2 actions are discrete already. Leave it out."),
        ("Acrobot-v1 --discretise-actions 3 --loop host", "this environment's 3 actions are discrete already."),
        ("CartPole-v1 --reward-scale 0", "reward_scale (--reward-scale) was 0.0"),
        ("CartPole-v1 --terminal-reward nan", "terminal_reward (--terminal-reward) was nan"),
        ("CartPole-v1 --time-limit 0", "time_limit (--time-limit) was 0; it must be"),
        ("CartPole-v1 --time-limit forever", "time-limit"),
    ],
)
def test_so_it_is_on_the_command_line(tmp_path, capsys, line, said):
    folder = tmp_path / "run"
    assert main(["train", "dqn", *line.split(), "--preset", "none", "--out", str(folder)]) == 2
    assert said in " ".join("".join(capsys.readouterr()).split())
    assert not folder.exists()


@pytest.mark.parametrize(
    "space",
    [Box(-math.inf, 1.0, (2,)), Box((0.0, 0.0), (1.0, math.inf), (2,)), Box(0.0, 255.0, (2,), np.uint8)],
    ids=["open below", "open above in one", "whole numbers"],
)
def test_what_has_no_bounds_is_not_discretised(space):
    with pytest.raises(UnsupportedSpace, match=r"was 3; it needs actions that are real numbers with a bound on either"):
        module.grid(space, 3)


def test_changes_add_up():
    first = wrap("Pendulum-v1", discretise_actions=11, reward_scale=1)
    both = wrap(first, reward_scale=np.float64(0.1), time_limit="none")
    assert settings.describe(both.wrappers) == settings.describe(
        Wrappers(discretise_actions=11, reward_scale=0.1, time_limit="none")
    )
    assert type(first.wrappers.reward_scale) is type(both.wrappers.reward_scale) is float
    world = wrap(wrap(CartPole(), reward_scale=0.1), time_limit=3)
    assert isinstance(world.environment, CartPole), "one wrapper, not one around another"
    assert (world.max_episode_steps, world.wrappers.reward_scale) == (3, 0.1)


def test_without_changes_a_world_is_itself():
    world = CartPole()
    assert wrap(world) is world
    assert type(resolve(wrap("CartPole-v1"))) is CartPole
    assert wrap(wrap(world, reward_scale=0.1), reward_scale=1.0) is world


# Actions


def test_the_grid_counts_from_the_lower_bound_and_the_last_number_changes_fastest():
    torque = module.grid(Box(-2.0, 2.0, (1,)), 11)
    assert torque.n == 11
    expected = np.array([-2, -1.6, -1.2, -0.8, -0.4, 0, 0.4, 0.8, 1.2, 1.6, 2], np.float32)
    np.testing.assert_allclose(torque.take(np.arange(11))[:, 0], expected, atol=1e-7)
    assert torque.take(np.array([0, 5, 10]))[:, 0].tolist() == [-2, 0, 2]

    plane = module.grid(Box((-1.0, 0.0), (1.0, 0.5), (2,)), 3)
    points = [[x, y] for x in (-1.0, 0.0, 1.0) for y in (0.0, 0.25, 0.5)]
    assert plane.n == 9 and plane.take(np.arange(9)).tolist() == points
    assert plane.take(np.int32(5)).tolist() == [0.0, 0.5]

    matrix = module.grid(Box(0.0, 1.0, (2, 2)), 2)
    assert matrix.n == 16 and matrix.take(np.array([[1, 8]])).tolist() == [[[[0, 0], [0, 1]], [[1, 0], [0, 0]]]]
    assert np.unique(matrix.take(np.arange(16)).reshape(16, 4), axis=0).shape == (16, 4)


def test_a_grid_is_the_same_to_the_last_bit_in_numpy_and_in_jax():
    space = module.grid(Box((-2.0, 0.1), (2.0, 0.7), (2,)), 11)
    numbers = np.arange(space.n, dtype=np.int32).reshape(11, 11)
    here = space.take(numbers)
    there = jax.jit(jax.vmap(jax.vmap(space.take)))(jnp.asarray(numbers))
    assert here.dtype == there.dtype == np.float32
    np.testing.assert_array_equal(here, there)


def test_a_grid_is_a_discrete_space_that_can_be_written_and_read():
    space = module.grid(Box((-1.0, 0.0), (1.0, 0.5), (2,), np.float32), 3)
    again = from_description(json.loads(json.dumps(space.describe())))
    assert isinstance(again, Grid) and isinstance(again, Discrete) and again == space
    assert space != Discrete(9) and hash(space) == hash(again)


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.value)
def test_a_vector_environment_that_is_made_already_takes_discretised_actions(mode):
    vector = SyncVectorEnv([slide, slide], autoreset_mode=mode)
    environments = GymnasiumEnvironments(vector, wrappers=Wrappers(discretise_actions=3))
    assert environments.action_space == module.grid(Box((-1.0, 0.0), (1.0, 0.5), (2,), np.float32), 3)
    environments.reset(0)
    step = environments.step(np.array([0, 8]))
    assert step.reward.tolist() == [-1.0, 1.0]
    np.testing.assert_array_equal(step.next_obs, [[-0.375, 0.0], [0.375, 0.1875]])
    environments.close()


# Rewards and ends


def test_learning_sees_the_formula():
    """(r + 8) / 8 as in the tutorials, and -20 where it terminates."""
    changes = Wrappers(reward_scale=0.125, reward_offset=8.0, terminal_reward=-20.0)
    reward, terminated = np.array([-16, -8, 0, -8], np.float32), np.array([False, False, False, True])
    for arrays in (np.asarray, jnp.asarray):
        learned = changes.learning_reward(arrays(reward), arrays(terminated))
        assert learned.dtype == np.float32 and learned.tolist() == [-1, 0, 1, -20]
    learned = Wrappers(reward_scale=np.float64(0.5)).learning_reward(reward, terminated)  # pyright: ignore
    assert learned.dtype == np.float32


@pytest.mark.parametrize("terminates", [False, True])
def test_a_terminal_reward_is_for_what_terminates_and_returns_stay_the_environments(terminates):
    """Reward 1 a step, three steps an episode, which either terminates or is truncated."""
    world = wrap(
        TruncationAgainstTermination(terminates=terminates), reward_scale=0.5, reward_offset=3.0, terminal_reward=-20
    )
    trainer = FusedSeeds(Diary(), as_float32(world), 1_000)
    record = trainer.advance(30)
    rows = noted(trainer)
    last = rows.terminated | rows.truncated
    assert last.sum() == 20 and rows.terminated.any() == terminates
    np.testing.assert_array_equal(rows.reward, np.where(rows.terminated, 2.0 - 20.0, 2.0))
    ended = record.episodes.lengths > 0
    assert set(record.episodes.returns[ended].tolist()) == {3.0}


def test_jax_and_gymnasium_teach_the_same():
    """All changes at once, over both kinds of end: the same rows, the same episodes."""
    task = wrap(slide, **CHANGES)
    on_host = HostSeeds(Diary(), lambda: resolve(task)(2), 1_000)  # pyright: ignore[reportCallIssue]
    fused = FusedSeeds(Diary(), as_float32(wrap(Slide(), **CHANGES)), 1_000)
    assert isinstance(fused.spec.action_space, Grid) and fused.spec.action_space == on_host.spec.action_space
    assert fused.spec.max_episode_steps == on_host.spec.max_episode_steps == 7
    told, expected = on_host.advance(100), fused.advance(100)
    np.testing.assert_array_equal(told.episodes.lengths, expected.episodes.lengths)
    np.testing.assert_array_equal(told.episodes.returns, expected.episodes.returns)

    ours, theirs = noted(on_host), noted(fused)
    for name in ("obs", "action", "next_obs", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
    np.testing.assert_allclose(ours.reward, theirs.reward, rtol=1e-6)
    assert theirs.terminated.any() and theirs.truncated.any()
    assert expected.episodes.lengths.max() == 7 and np.abs(expected.episodes.returns).max() <= 7
    own = fused.spec.action_space.take(theirs.action)[..., 0]
    np.testing.assert_allclose(theirs.reward, (own + 8) * 0.25 - 20 * theirs.terminated, rtol=1e-6)


def test_a_changed_number_compiles_nothing_anew_and_a_stack_of_worlds_is_a_sweep():
    compiled = []

    @jax.jit
    def learned(world, key):
        compiled.append(world)
        return treadle.train(Diary(), world, key, 20)[0].algorithm.rows.reward

    worlds = [as_float32(wrap(TruncationAgainstTermination(), reward_scale=scale)) for scale in (0.5, 2.0)]
    rewards = [learned(world, jax.random.key(0)) for world in worlds]
    assert len(compiled) == 1
    stack = jax.tree.map(lambda *x: jnp.stack(x), *worlds)
    swept = jax.vmap(learned, (0, None))(stack, jax.random.key(0))
    np.testing.assert_array_equal(swept, rewards)
    assert (swept[:, :20] == np.array([0.5, 2.0])[:, None, None]).all()


def test_a_table_has_the_rewards_that_learning_sees():
    """Ten times the reward is ten times the value; a treasure that costs 1 is better not found."""
    line = registry.environments.make("TreasureLine")
    own = exact.value_iteration(line.transitions(), 0.9)
    spec = make_spec(Diary(), wrap(line, reward_scale=10.0), 1)
    assert spec.transitions is not None
    np.testing.assert_allclose(exact.value_iteration(spec.transitions(), 0.9), 10 * own, rtol=1e-5)
    punished = exact.value_iteration(wrap(line, terminal_reward=-2.0).transitions(), 0.9)
    np.testing.assert_allclose(punished[4], [0, -1], rtol=1e-5)
    assert (punished[5] == 0).all(), "nothing is done there"
    assert wrap(line, time_limit=5).transitions().reward.tolist() == line.transitions().reward.tolist()


def test_what_else_a_world_offers_is_there_too():
    line = registry.environments.make("TreasureLine")
    state, _ = line.reset(jax.random.key(0))
    assert wrap(line, time_limit=5).scene(state) == line.scene(state)
    assert not hasattr(wrap(Slide(), time_limit=5), "transitions")
    assert wrap(CartPole(), reward_scale=0.1).gravity == 9.8
    with pytest.raises(AttributeError, match="gravitas"):
        _ = wrap(CartPole(), reward_scale=0.1).gravitas


# The time limit


def longest(environments: GymnasiumEnvironments, action: Any = 0, steps: int = 12) -> list[int]:
    """The numbers of the steps in which the first environment was truncated."""
    environments.reset(0)
    found = []
    for number in range(steps):
        if environments.step(np.full(environments.num_envs, action)).truncated[0]:
            found.append(number + 1)
    environments.close()
    return found


@pytest.mark.parametrize(("limit", "ends"), [("own", [4, 8, 12]), (3, [3, 6, 9, 12]), (7, [7]), ("none", [])])
def test_the_time_limit_can_be_another(limit, ends):
    """Also where Gymnasium's wrapper lies under others, or twice."""

    def nested():
        return gymnasium.wrappers.TimeLimit(gymnasium.wrappers.RecordEpisodeStatistics(slide()), 4)

    for make in (slide, nested):
        for mode in ("same_step", "disabled"):
            wrappers = Wrappers(discretise_actions=3, time_limit=limit)
            environments = GymnasiumEnvironments(make, 2, mode, wrappers=wrappers)
            if limit != "own":  # which only an environment with a spec tells
                assert environments.max_episode_steps == (None if limit == "none" else limit)
            assert longest(environments, action=3) == ends  # where it stands


@pytest.mark.parametrize("name", ["Pendulum-v1", "MountainCar-v0"])
def test_the_time_limit_of_a_named_environment_is_the_same_in_both_loops(name):
    for limit, expected in ((9, 9), ("none", None), ("own", 200)):
        task = wrap(name, time_limit=limit)
        on_host: Any = resolve(task, "host")
        environments = on_host(1)
        assert environments.max_episode_steps == expected
        if name in registry.environments:
            assert resolve(task).max_episode_steps == expected  # pyright: ignore[reportAttributeAccessIssue]
        environments.close()


def test_the_limit_of_an_environment_that_is_made_already_stays():
    for made in (slide(), SyncVectorEnv([slide])):
        with pytest.raises(InvalidSetting, match=r"time_limit \(--time-limit\) was 9, and S.+ is made already"):
            Agent(Diary(num_envs=1), wrap(made, discretise_actions=3, time_limit=9)).learn(10)
    assert is_made(wrap(slide(), reward_scale=0.1)) and not is_made(wrap("Pendulum-v1", reward_scale=0.1))
