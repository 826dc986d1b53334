"""Atari games by Gymnasium's names: what is seen of them, what is learned from, and how runs in them are kept."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle import A2C, DQN, PPO, Agent, settings, wrap
from treadle.cli import main
from treadle.dataset import Dataset
from treadle.environments import atari
from treadle.environments.atari import game_of
from treadle.environments.gymnasium import GymnasiumEnvironments, HostStep
from treadle.environments.wrappers import Task, Wrappers
from treadle.errors import InvalidSetting, TreadleError, UnknownName
from treadle.loops import execution, host
from treadle.loops.choose import (
    drawn_environment,
    evaluation_environment,
    make_offline_trainer,
    make_trainer,
    resolve,
)
from treadle.loops.execution import free_memory
from treadle.loops.play import player_of

pytestmark = pytest.mark.least_optimised

PONG, BREAKOUT = "PongNoFrameskip-v4", "BreakoutNoFrameskip-v4"
SMALL = Wrappers(frame_size=36)
LEARNER = DQN(
    num_envs=2, features="dqn2013", capacity=300, learning_starts=40, batch_size=8, n_step=2, prioritized=True
)
FIRE = 1


def games(name: str, count: int = 2, wrappers: Wrappers = SMALL, **options: Any) -> Any:
    return GymnasiumEnvironments(name, count, wrappers=wrappers, **options)


def play(environments: Any, steps: int, seed: int = 0) -> tuple[np.ndarray, list[HostStep]]:
    """The first observation, and what random actions lead to."""
    rng = np.random.default_rng(seed)
    first = environments.reset(seed)
    actions = rng.integers(0, environments.action_space.n, (steps, environments.num_envs))
    found = [environments.step(a.astype(np.int32)) for a in actions]
    environments.close()
    return first, found


@pytest.mark.parametrize(
    ("name", "rom", "sticky", "skip"),
    [
        ("PongNoFrameskip-v4", "pong", 0.0, 4),
        ("ALE/Pong-v5", "pong", 0.25, 4),
        ("MsPacmanNoFrameskip-v0", "ms_pacman", 0.25, 4),
        ("ALE/SpaceInvaders-v5", "space_invaders", 0.25, 4),
    ],
)
def test_an_id_says_which_game_it_is_and_how_it_is_played(name, rom, sticky, skip):
    game = game_of(name)
    assert game is not None
    assert (game.rom, game.sticky_actions, game.frame_skip, game.most_frames) == (rom, sticky, skip, 108_000)


def test_a_game_is_the_same_by_the_name_of_its_module():
    assert game_of("ale_py:ALE/Pong-v5") == game_of("ALE/Pong-v5")
    assert games("ale_py:PongNoFrameskip-v4", 1).frame_stack == 4


def test_a_time_limit_may_be_longer_than_frames_are_counted():
    endless = games(PONG, 1, dataclasses.replace(SMALL, time_limit=2**31 - 1))
    assert endless.max_episode_steps == 2**31 - 1
    assert len(play(endless, 3)[1]) == 3


def test_other_environments_are_no_games():
    assert game_of("CartPole-v1") is None
    assert game_of("ALE/Pong-v5-ram") is None


def test_what_is_seen_is_as_it_was_set():
    one = games(PONG, 1)
    assert (one.observation_space.shape, one.observation_space.dtype) == ((4, 36, 36), np.uint8)
    assert (one.max_episode_steps, one.frame_stack, one.action_space.n) == (27_000, 4, 6)
    other = games(PONG, 1, Wrappers(frame_size=40, frame_stack=2, grey=False, frame_skip=2, time_limit=50))
    assert other.observation_space.shape == (2, 40, 40, 3)
    assert (other.max_episode_steps, other.frame_stack, other.steps_per_second) == (50, 2, 30.0)
    first, steps = play(other, 60)
    assert first.shape == (1, 2, 40, 40, 3)
    ends = [t for t, step in enumerate(steps) if step.truncated[0]]
    assert len(ends) == 1 and 30 <= ends[0] < 50, "the no-ops of the beginning count"


@pytest.mark.parametrize("name", [PONG, BREAKOUT])
def test_stacks_go_on_from_row_to_row_and_begin_anew_after_rows_that_are_not_valid(name):
    """What the replay memory of frames relies on."""
    environments = games(name, 3, dataclasses.replace(SMALL, time_limit=60))
    obs, steps = play(environments, 250)
    begun, ended = 0, np.zeros(3, bool)
    assert not obs[:, :3].any() and obs[:, 3].any()
    for step in steps:
        assert step.valid is not None and step.obs is step.next_obs
        np.testing.assert_array_equal(step.valid, ~ended)
        for i in range(3):
            if step.valid[i]:
                np.testing.assert_array_equal(step.next_obs[i, :3], obs[i, 1:])
            else:
                assert not step.next_obs[i, :3].any() and step.next_obs[i, 3].any()
                begun += 1
        obs, ended = step.next_obs, step.terminated | step.truncated
    assert begun >= 9


def test_a_lost_life_is_terminal_for_learning_and_the_game_goes_on():
    environments = games(BREAKOUT, 2)
    _, steps = play(environments, 400)
    lost = [(t, i) for t, s in enumerate(steps) for i in range(2) if s.lost_life is not None and s.lost_life[i]]
    over = {(t, i) for t, s in enumerate(steps) for i in range(2) if s.terminated[i]}
    assert over and len(lost) > 3 * len(over)
    for t, i in lost:
        assert steps[t].terminal[i]
        if (t, i) not in over and t + 1 < len(steps):
            following = steps[t + 1]
            assert following.valid is not None and following.valid[i]
    kept = games(BREAKOUT, 2, dataclasses.replace(SMALL, lost_life_terminates=False))
    _, steps = play(kept, 400)
    for step in steps:
        np.testing.assert_array_equal(step.terminal, step.terminated)


def test_a_seed_and_its_actions_fix_a_game_and_sticky_actions_change_it():
    def last(sticky: float | None, seed: int) -> np.ndarray:
        wrappers = dataclasses.replace(SMALL, sticky_actions=sticky)
        return play(games(PONG, 2, wrappers), 60, seed)[1][-1].obs

    np.testing.assert_array_equal(last(None, 3), last(0.0, 3))
    np.testing.assert_array_equal(last(0.9, 3), last(0.9, 3))
    assert (last(0.9, 3) != last(None, 3)).any()
    assert (last(None, 4) != last(None, 3)).any()


def test_the_screen_that_is_drawn_is_of_the_same_game():
    environments = games(BREAKOUT, 2, Wrappers(), render_mode="rgb_array")
    environments.reset(5)
    rng = np.random.default_rng(0)
    for _ in range(150):
        step = environments.step(rng.integers(0, 4, 2).astype(np.int32))
    for screen, seen in zip(environments.render(), step.obs, strict=True):
        assert screen.shape == (210, 160, 3) and screen.dtype == np.uint8
        grey = screen @ np.array([0.299, 0.587, 0.114])
        # Means of blocks that both sizes share: rows are 42 times 5 and 2, columns 4 times 40 and 21.
        small = grey.reshape(42, 5, 4, 40).mean((1, 3))
        np.testing.assert_allclose(small, seen[-1].reshape(42, 2, 4, 21).mean((1, 3)), atol=2.5)
    assert not games(BREAKOUT, 1).render()
    environments.close()


def test_learning_sees_signs_and_returns_are_the_games_own():
    algorithm = dataclasses.replace(LEARNER, learning_starts=10_000, n_step=1, prioritized=False)
    pacman = Task("MsPacmanNoFrameskip-v4", dataclasses.replace(SMALL, time_limit=120))
    trainer = make_trainer(algorithm, pacman, 500)
    record = trainer.advance(140)
    assert record.episodes.returns.max() >= 20.0 and not record.episodes.returns.max() % 10
    ring = jax.tree.map(lambda x: x[0], trainer.state).algorithm.memory
    rows = algorithm.memory_for(4).items(ring, np.arange(200))
    assert set(np.unique(rows.reward)) == {0.0, 1.0}
    trainer.close()
    wrappers = games(PONG).wrappers
    np.testing.assert_array_equal(wrappers.learning_reward(np.array([10.0, -3.0, 0.0]), np.zeros(3)), [1.0, -1.0, 0.0])
    assert not games(PONG, 1, dataclasses.replace(SMALL, clip_rewards=False)).wrappers.changes_rewards


def test_overlapped_with_learning_a_step_begins_before_the_update_and_a_run_can_be_repeated():
    algorithm = dataclasses.replace(LEARNER, epsilon_start=0.5, epsilon_end=0.5, learning_starts=20, learning_rate=0.1)
    overlapped, again, in_turn = (
        make_trainer(algorithm, Task(PONG, SMALL), 1_000, overlap=overlap) for overlap in (True, True, False)
    )

    def advanced(trainer: Any, updates: int) -> list[np.ndarray]:
        trainer.advance(updates)
        return [np.array(x) for x in jax.tree.leaves(trainer.state.algorithm)]

    def same(a: Any, b: Any) -> bool:
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    first = advanced(overlapped, 9)
    assert same(first, advanced(in_turn, 9)), "before anything is learned it makes no difference"
    assert same(first, advanced(again, 9))
    later = advanced(overlapped, 30)
    assert same(later, advanced(again, 30)) and not same(later, advanced(in_turn, 30))
    for trainer in (overlapped, again, in_turn):
        trainer.close()


def test_a_method_that_learns_only_of_its_own_policy_does_not_overlap():
    def overlaps(algorithm: Any) -> bool:
        trainer: Any = make_trainer(algorithm, Task(PONG, SMALL), 1_000)
        found = trainer._learners[0]._overlaps
        trainer.close()
        return found

    small = {"num_envs": 2, "features": "dqn2013"}
    assert [overlaps(a) for a in (LEARNER, A2C(**small), PPO(**small))] == [True, False, False]


def test_stored_transitions_teach_with_the_rewards_and_ends_of_the_game(tmp_path):
    algorithm = dataclasses.replace(LEARNER, learning_starts=10)
    agent = Agent(algorithm, wrap(BREAKOUT, frame_size=36))
    with pytest.raises(InvalidSetting, match=r"loss of a life is terminal.*--no-lost-life-terminates"):
        agent.learn_from(played(BREAKOUT, reward=7.0), 40)
    whole_games = wrap(BREAKOUT, frame_size=36, lost_life_terminates=False)
    trainer: Any = make_offline_trainer(algorithm, whole_games, played(BREAKOUT, reward=7.0), 40)
    np.testing.assert_array_equal(trainer._rows.transitions.reward, np.ones(30))


def test_an_agent_learns_from_stored_transitions_and_then_in_the_game():
    agent = Agent(dataclasses.replace(LEARNER, learning_starts=10), wrap(PONG, frame_size=36))
    before = jax.tree.leaves(agent.learn_from(played(PONG), 60).policy)
    after = jax.tree.leaves(agent.learn(60).policy)
    assert agent.step == 120
    assert [x.shape for x in before] == [x.shape for x in after]
    assert not all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
    agent.learn_from(played(PONG), 60)


def played(name: str, reward: float = 0.0) -> Dataset:
    """Thirty steps of a game, each with that reward."""
    first, found = play(games(name, 1), 30)
    seen = np.stack([first[0], *(step.obs[0] for step in found)])
    actions = np.zeros(30, np.int32)
    terminated = np.zeros(30, np.bool_)
    return Dataset(obs=seen[:-1], action=actions, reward=np.full(30, reward), next_obs=seen[1:], terminated=terminated)


def test_saving_copies_no_memory_and_restoring_holds_it_once():
    algorithm = dataclasses.replace(LEARNER, capacity=2_000)
    trainer = make_trainer(algorithm, Task(PONG, SMALL), 1_000)
    trainer.advance(30)
    largest = max(jax.tree.leaves(trainer._learners[0]._buffers), key=lambda x: x.nbytes)  # type: ignore
    assert largest.nbytes > host.LARGE
    views = [x for x in jax.tree.leaves(trainer.state) if isinstance(x, np.ndarray)]
    assert any(np.shares_memory(x, np.asarray(largest)) for x in views)
    saved = jax.tree.map(lambda x: x if not isinstance(x, np.ndarray) else x.copy(), trainer.state)
    trainer.advance(5)
    fresh = make_trainer(algorithm, Task(PONG, SMALL), 1_000)
    shapes = fresh.shapes  # type: ignore[union-attr]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), saved)
    # Computed: an array that JAX was only handed may lie in memory that is not its own.
    given = jax.tree.map(lambda x: jnp.add(x, 0) if isinstance(x, np.ndarray) else x, saved)
    pointers = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(given) if x.nbytes > host.LARGE}
    fresh.restore(given)
    assert pointers <= {x.unsafe_buffer_pointer() for x in jax.tree.leaves(fresh._learners[0]._buffers)}  # type: ignore
    trainer.close()
    fresh.close()


def test_a_run_is_trained_goes_on_and_is_evaluated_and_drawn_by_the_command_line(tmp_path, capsys, monkeypatch):
    folder = str(tmp_path / "run")
    flags = "--num-envs 2 --features dqn2013 --frame-size 36 --capacity 400 --learning-starts 40 --batch-size 8"
    command = f"train dqn {PONG} {flags} --total-timesteps 300 --time-limit 100 --out {folder}".split()
    assert main(command) == 0
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (info["wrappers"]["frame_size"], info["wrappers"]["time_limit"]) == (36, 100)
    assert main(["resume", folder, "--total-timesteps", "400"]) == 0
    assert "new episodes begin, all else continues" in capsys.readouterr().out
    picture = tmp_path / "game.gif"
    monkeypatch.setattr(host, "free_memory", lambda: 1_000)  # needed by learners only
    assert main(["evaluate", folder, "--episodes", "1", "--render", str(picture)]) == 0
    assert str(picture) in capsys.readouterr().out
    from PIL import Image

    with Image.open(picture) as film:
        assert film.size == (160, 210) and getattr(film, "n_frames", 0) > 100
    returns = json.loads((tmp_path / "run" / "evaluation.json").read_text())["returns"]
    assert all(-21 <= r == int(r) <= 21 for r in np.ravel(returns))


def test_an_agent_is_saved_and_plays_in_the_window(tmp_path):
    agent = Agent(LEARNER, wrap(PONG, frame_size=36)).learn(100)
    agent.save(tmp_path / "agent.safetensors")
    loaded = Agent.load(tmp_path / "agent.safetensors")
    obs = games(PONG, 1).reset(0)[0]
    assert agent.predict(obs) == loaded.predict(obs)
    player = player_of(drawn_environment(Task(PONG, SMALL)))
    trainer = make_trainer(LEARNER, Task(PONG, SMALL), 100)
    player.follow(trainer.algorithm, jax.tree.map(lambda x: x[0], trainer.state).algorithm, trainer.spec)
    player.reset(1)
    first = player.see()
    for _ in range(5):
        player.step()
    seen = player.see()
    assert seen.step == 5 and not np.array_equal(seen.picture, first.picture)  # pyright: ignore
    assert seen.reward is not None
    assert player.steps_per_second == 15.0
    player.close()
    trainer.close()


def test_evaluation_keeps_how_a_game_is_played_and_leaves_out_what_is_for_learning():
    task = Task("ALE/Pong-v5", Wrappers(frame_size=40, sticky_actions=0.0, time_limit=10, reward_scale=2.0))
    world: Any = evaluation_environment(task, 1)
    assert (world.observation_space.shape, world.max_episode_steps) == ((4, 40, 40), 27_000)
    assert world.wrappers.sticky_actions == 0.0 and world.wrappers.reward_scale == 1.0


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: resolve("ALE/Pnog-v5"), r"no environment 'ALE/Pnog-v5'.*Did you mean 'ALE/Pong-v5'\?"),
        (lambda: GymnasiumEnvironments("ALE/Pong"), "'ALE/Pong' lacks a version. There is: ALE/Pong-v5"),
        (lambda: GymnasiumEnvironments("Pong-v4"), "'Pong-v4' skips from 2 to 4 frames at random.*PongNoFrameskip-v4"),
        (lambda: wrap(PONG, frame_stack=0), r"frame_stack \(--frame-stack\) was 0; .* between 1 and 16"),
        (lambda: wrap(PONG, sticky_actions=1.0), "sticky_actions .* was 1.0; .* less than 1"),
        (lambda: wrap(PONG, noop_max=-1), "noop_max .* was -1"),
        (lambda: make_trainer(DQN(), wrap("CartPole-v1", frame_skip=2), 100), "frame_skip .* is for Atari games"),
        (
            lambda: make_trainer(DQN(), wrap("CartPole-v1", frame_skip=2), 100, loop="host"),
            r"frame_skip \(--frame-skip\) was 2; it is for Atari games, and CartPole-v1 is none",
        ),
        (
            lambda: make_trainer(DQN(features="nature"), wrap(PONG, frame_size=20), 100),
            r"nature.* at least 36 x 36 pixels, and this environment's are 20 x 20",
        ),
        (lambda: games(PONG, 1, difficulty=1), "difficulty cannot be passed on to the Atari game"),
        (
            lambda: make_trainer(DQN(), wrap(PONG, discretise_actions=3), 100),
            "this environment's 6 actions are discrete already",
        ),
    ],
)
def test_mistakes_are_told_in_sentences(act, sentence):
    with pytest.raises(TreadleError, match=sentence):
        act()


def test_without_ale_py_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(atari, "register_games", lambda: False)
    with pytest.raises(UnknownName, match=r"'ALE/Qong-v5' is an Atari game.*pip install 'treadle\[atari\]'"):
        resolve("ALE/Qong-v5")
    with pytest.raises(UnknownName, match=r"pip install 'treadle\[atari\]'"):
        settings.presets("dqn", "ALE/Qong-v5")
    assert game_of("NoSuchThing-v0") is None


def test_too_little_memory_is_said_before_anything_begins(monkeypatch):
    algorithm = dataclasses.replace(LEARNER, capacity=1_000_000, prioritized=False)
    monkeypatch.setattr(host, "free_memory", lambda: 2**30)
    with pytest.raises(
        InvalidSetting, match=r"dqn would need 1\.2 GiB.*\(--capacity\) is 1,000,000; 1\.0 GiB are free"
    ):
        make_trainer(algorithm, Task(PONG, SMALL), 1_000)
    monkeypatch.setattr(host, "free_memory", lambda: 2 * 2**30)
    with pytest.raises(InvalidSetting, match=r"dqn would need 4\.9 GiB.*Take fewer seeds at a time"):
        make_trainer(algorithm, Task(PONG, SMALL), 1_000, num_seeds=2)  # and the copy by which they are saved
    make_trainer(algorithm, Task(PONG, SMALL), 1_000, num_seeds=2, to_learn=False).close()


def test_of_a_containers_memory_cached_files_are_free(monkeypatch, tmp_path):
    monkeypatch.setattr(execution, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(execution, "_machine_memory", lambda: None)
    assert free_memory() is None
    for name, text in (("max", "1000"), ("current", "900"), ("stat", "anon 300\ninactive_file 550\nactive_file 50\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_memory() == 650
