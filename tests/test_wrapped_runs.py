"""Agents, runs and presets with changes to their environment: the same on the command line and in Python."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import treadle
from slide import CHANGES, Diary, Slide, SlideInGymnasium, first_seed, slide
from treadle import Agent, CartPole, checkpoint, registry, settings, wrap
from treadle.cli import main
from treadle.environments import wrappers as module
from treadle.environments.wrappers import Task, Wrapped, Wrappers
from treadle.errors import InvalidSetting, TreadleError
from treadle.loops.choose import evaluated_as, evaluation_environment, make_trainer, resolve
from treadle.run import Run
from treadle.settings import Preset
from treadle.spaces import Box

pytestmark = pytest.mark.least_optimised

FLAGS = "--preset none --learning-starts 50 --batch-size 8 --capacity 150 --hidden-sizes 8 --target-update-period 30"
TRAIN = ["train", "dqn", "Pendulum-v1", *FLAGS.split(), "--discretise-actions", "5", "--reward-scale", "0.125"]


@pytest.fixture(autouse=True)
def _diary(monkeypatch):
    """Registered for as long as a test lasts."""
    registry.algorithms.names()
    monkeypatch.setitem(registry.algorithms._entries, Diary.name, (Diary, {}))


# Agents


def test_evaluation_keeps_the_actions_and_nothing_else():
    world: Any = evaluation_environment(wrap(Slide(), **CHANGES), 2)
    assert world.action_space.n == 9 and world.max_episode_steps == 4 and not world.changes_rewards
    host: Any = evaluation_environment(wrap("Pendulum-v1", **CHANGES), 2)
    assert host.action_space.n == 3 and host.max_episode_steps == 200 and not host.wrappers.changes_rewards
    host.close()
    plain: Any = evaluation_environment(wrap(Slide(), reward_scale=0.1, time_limit=9), 2)
    assert type(plain) is Slide
    shaped: Any = evaluation_environment(wrap("CartPoleShaped-v1", reward_scale=0.1), 1)
    assert shaped.name == "CartPole-v1" and evaluated_as(wrap(CartPole(reward="shaped"), time_limit=9)) == "CartPole-v1"
    shaped.close()


@pytest.mark.parametrize("environment", [Slide(), slide], ids=["JAX", "Gymnasium"])
def test_an_agent_acts_in_the_environments_own_way(environment, tmp_path):
    """`predict` gives the continuous action that was chosen; returns are the environment's; a file keeps both."""
    agent = Agent(Diary(), wrap(environment, **CHANGES)).learn(200)
    space = module.grid(Box((-1.0, 0.0), (1.0, 0.5), (2,), np.float32), 3)
    obs = np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype(np.float32)
    actions = agent.predict(obs)
    assert actions.dtype == np.float32 and actions.shape == (5, 2)
    points = space.take(np.arange(9)).tolist()
    assert all(action in points for action in actions.tolist())
    np.testing.assert_array_equal(agent.predict(obs[0]), actions[0])
    assert SlideInGymnasium.action_space.contains(agent.predict(obs[0]))

    found = agent.evaluate(episodes=3)
    assert (np.abs(found.returns) <= found.lengths).all() and (found.lengths <= 4).all()
    path = agent.save(tmp_path / "agent.safetensors")
    loaded = Agent.load(path, environment)
    np.testing.assert_array_equal(loaded.predict(obs), actions)
    np.testing.assert_array_equal(loaded.evaluate(episodes=3).returns, found.returns)
    assert checkpoint.read_metadata(path)["wrappers"]["discretise_actions"] == 3


def test_an_agent_of_a_name_remembers_it_with_its_changes(tmp_path):
    agent = Agent(Diary(), wrap("Pendulum-v1", discretise_actions=5, reward_scale=0.125, time_limit=20)).learn(60)
    loaded = Agent.load(agent.save(tmp_path / "agent.safetensors"))
    assert loaded.environment.environment == "Pendulum-v1" and loaded.environment.wrappers.discretise_actions == 5
    found = loaded.evaluate(episodes=2)
    assert found.lengths.tolist() == [200, 200] and (found.returns < -200).all(), "unscaled, and to its own time limit"
    np.testing.assert_array_equal(found.returns, agent.evaluate(episodes=2).returns)
    torque = loaded.predict(np.array([1.0, 0.0, 0.0]))
    assert torque.shape == (1,) and torque[0] in (-2, -1, 0, 1, 2)


def test_an_agent_saved_before_there_were_changes_is_loaded(tmp_path):
    agent = Agent(Diary(), "CartPole-v1").learn(20)
    path = agent.save(tmp_path / "agent.safetensors")
    policy, about = checkpoint.load(path, agent._policy)
    del about["wrappers"]
    checkpoint.save(path, policy, about)
    assert Agent.load(path).environment == "CartPole-v1"


# Runs


@pytest.fixture(scope="module", params=["fused", "host"])
def run(request, tmp_path_factory) -> Path:
    """A run with discretised actions and scaled rewards, not to be changed by a test."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    assert main([*TRAIN, "--total-timesteps", "600", "--loop", request.param, "--out", str(folder)]) == 0
    return folder


def copy_of(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_run_says_what_was_changed_and_its_returns_are_the_environments(run):
    info = json.loads((run / "run.json").read_text())
    assert info["wrappers"] == settings.describe(Wrappers(discretise_actions=5, reward_scale=0.125))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    episodes = [line for line in lines if "episode_return" in line]
    assert [line["episode_length"] for line in episodes] == [200, 200, 200]
    assert all(line["episode_return"] < -500 for line in episodes), "a random policy's, unscaled"
    task = Run.open(run).task
    assert task.environment == "Pendulum-v1" and task.wrappers.discretise_actions == 5


def test_a_run_is_evaluated_and_goes_on_with_its_changes(run, tmp_path, capsys):
    folder = copy_of(run, tmp_path)
    assert main(["evaluate", str(folder), "--episodes", "2"]) == 0
    assert "greedy episodes a seed in Gymnasium's Pendulum-v1" in " ".join(capsys.readouterr().out.split())
    told = json.loads((folder / "evaluation.json").read_text())
    assert (np.asarray(told["returns"]) < -200).all()
    assert main(["resume", str(folder), "--total-timesteps", "650"]) == 0
    again = Run.open(folder)
    assert again.info["step"] == 650 and again.task.wrappers.reward_scale == 0.125
    trainer = again.trainer()
    again.restore(trainer)
    assert trainer.spec.action_space.n == 5  # pyright: ignore[reportAttributeAccessIssue]
    trainer.close()


def test_the_checkpoint_of_other_changes_is_of_another_run(run, tmp_path, capsys):
    folder = copy_of(run, tmp_path)
    info = json.loads((folder / "run.json").read_text())
    info["wrappers"]["reward_scale"] = 0.5
    (folder / "run.json").write_text(json.dumps(info))
    assert main(["evaluate", str(folder)]) == 2
    assert "a checkpoint of another run: its reward_scale is 0.125, and this run's is 0.5" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"reward_scale": 0.0}, {"reward": 2.0}, {"discretise_actions": "x"}, []], ids=str)
def test_changes_that_make_no_sense_are_damage(run, tmp_path, wrong):
    folder = copy_of(run, tmp_path)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "wrappers": wrong}))
    with pytest.raises(TreadleError, match=r"run.json is damaged: its wrappers make no sense"):
        Run.open(folder)


def test_a_run_from_before_there_were_changes_still_opens(tmp_path):
    folder = tmp_path / "old"
    assert main(["train", Diary.name, "CartPole-v1", "--total-timesteps", "100", "--out", str(folder)]) == 0
    opened = Run.open(folder)
    for path in opened.checkpoints():
        state, about = checkpoint.load(path, opened.trainer().state)
        del about["wrappers"]
        checkpoint.save(path, state, about)
    del opened.info["wrappers"]
    opened.save_info()
    assert "wrappers" not in json.loads((folder / "run.json").read_text())
    assert main(["evaluate", str(folder), "--episodes", "1"]) == 0
    assert main(["resume", str(folder), "--total-timesteps", "150"]) == 0


# Presets


PRESET = Preset(
    "dqn",
    "Pendulum-v1",
    "default",
    "for a test",
    600,
    settings={
        "learning_starts": 50,
        "batch_size": 8,
        "capacity": 150,
        "hidden_sizes": [8],
        "target_update_period": 30,
    },
    wrappers={"discretise_actions": 5, "reward_scale": 0.1, "reward_offset": 8, "time_limit": "own"},
)


FILE = """
[default]
about = "for a test"
total_timesteps = 600
learning_starts = 50
batch_size = 8
capacity = 150
hidden_sizes = [8]
target_update_period = 30

[default.environment]
discretise_actions = 5
reward_scale = 0.1
reward_offset = 8
time_limit = "own"

[plain]
about = "nothing"
"""


def test_a_preset_keeps_its_changes_in_a_table_of_their_own(tmp_path):
    path = tmp_path / "Pendulum-v1.toml"
    path.write_text(FILE)
    first, plain = settings._read("dqn", path)
    assert first == PRESET and plain.wrappers == {}
    task = first.task(time_limit=30)
    assert (task.environment, task.wrappers.time_limit, task.wrappers.discretise_actions) == ("Pendulum-v1", 30, 5)
    assert not plain.task().wrappers.changes_anything
    with pytest.raises(InvalidSetting, match="no change 'reward_scal'"):
        dataclasses.replace(PRESET, wrappers={"reward_scal": 2}).task()


def test_the_command_line_and_python_do_the_same_with_a_preset(tmp_path, monkeypatch):
    """To the last bit; flags change what the preset says."""
    monkeypatch.setattr(settings, "presets", lambda *names: [PRESET])
    folder = tmp_path / "run"
    line = ["train", "dqn", "Pendulum-v1", "--terminal-reward", "-2", "--reward-scale", "0.2", "--out", str(folder)]
    assert main(line) == 0
    run = Run.open(folder)
    trainer = run.trainer()
    run.restore(trainer)
    preset = treadle.preset("dqn", "Pendulum-v1")
    task = preset.task(terminal_reward=-2, reward_scale=0.2)
    assert run.info["wrappers"] == settings.describe(task.wrappers)
    assert run.info["wrappers"]["reward_offset"] == 8.0
    agent = Agent(preset.make(), task).learn(600)
    ours: Any = agent._trainer
    np.testing.assert_array_equal(first_seed(trainer).network.vector, first_seed(ours).network.vector)
    np.testing.assert_array_equal(first_seed(trainer).memory.words, first_seed(ours).memory.words)


def test_a_task_is_given_wherever_an_environment_is():
    task = Task("Pendulum-v1", Wrappers(discretise_actions=5))
    world: Any = resolve(task)
    assert isinstance(world, Wrapped) and Task.of(world).wrappers.discretise_actions == 5
    for environment in (task, world):
        trainer = make_trainer(Diary(), environment, 100)
        trainer.advance(3)
        assert trainer.spec.action_space.n == 5  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InvalidSetting, match=r"the environment was the class CartPole"):
        make_trainer(Diary(), wrap(CartPole, reward_scale=0.1), 100)
    with pytest.raises(InvalidSetting, match="reward_scale"):
        resolve(Task("Pendulum-v1", Wrappers(reward_scale=0.0)))
