"""What a person types, and what the tool answers: help, mistakes told in a sentence, and files of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from treadle import __version__, metrics, registry, settings
from treadle.cli import main
from treadle.run import Run

pytestmark = pytest.mark.least_optimised

# As in test_run.py, so that the same compiled programs serve.
SETTINGS = "--learning-starts 50 --batch-size 8 --capacity 150 --hidden-sizes 8 --target-update-period 30"
SMALL = [*SETTINGS.split(), "--preset", "none", "--total-timesteps", "400", "--seeds", "2"]

OWN = """
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from treadle.algorithms.base import Algorithm, register
from treadle.environments import base
from treadle.spaces import Box, Discrete
from treadle.types import Counter, Step


@register("coin")
class Coin(Algorithm):
    bias: float = 0.5
    '''Probability of going right.'''

    def init(self, key, spec):
        return Counter.zero()

    def act(self, state, carry, obs, key, *, explore=True):
        return jax.random.bernoulli(key, self.bias, obs.shape[:1]).astype(jnp.int32), carry, ()

    def update(self, state, rollout, key):
        return state.add(rollout.reward.size), {"reward": jnp.mean(rollout.reward)}


@base.register("Corridor-v0")
@base.register("Cursed-v0", prize=float("nan"))
class Corridor:
    prize: float = 1.0
    max_episode_steps: int | None = 10

    observation_space = Box(-5.0, 5.0, (1,))
    action_space = Discrete(2)

    def reset(self, key):
        return jnp.zeros(()), jnp.zeros((1,))

    def step(self, state, action, key):
        state = state + 2 * action - 1
        return state, Step(state[None], jnp.asarray(self.prize, jnp.float32), jnp.abs(state) >= 3)
"""
GYMNASIUM = """
import gymnasium
import numpy as np
from gymnasium import spaces


class Still(gymnasium.Env):
    metadata = {"render_modes": ["human"]}
    action_space = spaces.Discrete(2)

    def __init__(self, observed=None, render_mode=None):
        self.observation_space = observed or spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, True, False, {}


if "Still-v0" not in gymnasium.registry:
    gymnasium.register("Still-v0", Still)
    gymnasium.register("Parts-v0", Still, kwargs={"observed": spaces.Dict({"a": spaces.Discrete(2)})})
"""


@pytest.fixture
def own(tmp_path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What a test registers is gone after it."""
    for names in (registry.algorithms, registry.environments):
        names.names()
        monkeypatch.setattr(names, "_entries", dict(names._entries))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of two seeds, not to be changed by a test."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "dqn", "CartPole-v1", *SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def in_a_shell(line: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )


PRESET = settings.preset("dqn", "CartPole-v1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--help", ["train", "resume", "evaluate", "plot", "list", "treadle COMMAND --help"]),
        ("-h", ["train"]),
        ("--version", [f"treadle {__version__}"]),
        (
            "train --help",
            [
                "ALGORITHM ENVIRONMENT",
                "dqn",
                "CartPole-v1",
                "--preset NAME",
                "--seeds",
                "--time-limit",
                "--save-data",
                "--data {None}|STR",
                "--import FILE.py",
            ],
        ),
        ("train dqn --help", ["--learning-rate", "--seeds", "--discretise-actions {None}|INT", "--terminal-reward"]),
        (
            "train dqn CartPole-v1 --help",
            ["--learning-rate FLOAT", f"(default: {PRESET.settings['learning_rate']})", "Step size of the optimiser"],
        ),
        ("train dqn CartPole-v1 --preset none --help", ["(default: 0.001)"]),
        ("resume --help", ["RUN", "--checkpoint FILE", "--total-timesteps N"]),
        ("evaluate --help", ["--episodes N", "--render FILE.gif"]),
        ("plot --help", ["--out FILE.png"]),
        ("list", ["dqn", "Deep Q-networks", "CartPole-v1", "rl-zoo", "any Gymnasium environment"]),
    ],
)
def test_help_tells_what_there_is(capsys, line, words):
    assert main(line.split()) == 0
    out, err = capsys.readouterr()
    for word in words:
        assert word in out
    assert err == ""


def test_no_command_at_all_shows_the_usage(capsys):
    assert main([]) == 2
    assert "usage: treadle COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("trian dqn CartPole-v1", "there is no command 'trian'. Did you mean 'train'?"),
        ("--vresion", "there is no flag '--vresion'"),
        ("train", "train needs an algorithm and an environment"),
        ("train dqn", "It was given dqn."),
        ("train --seeds 2 dqn CartPole-v1", "and then the flags"),
        ("train dqm CartPole-v1", "there is no algorithm 'dqm'. Did you mean 'dqn'?"),
        ("train dqn CartPoel-v1", "Did you mean 'CartPole-v1'?"),
        ("train dqn Acrobat-v1", "Did you mean 'Acrobot-v1'?"),
        ("train dqn CartPole-v1 --preset tutorail", "Did you mean 'tutorial'?"),
        ("train dqn FrozenLake-v1 --preset default", "there is no preset for dqn in FrozenLake-v1"),
        ("train dqn CartPole-v1 --preset", "argument --preset: expected one argument"),
        ("train dqn CartPole-v1 --gamma 1.5", "gamma (--gamma) was 1.5; it must be between 0 and 1"),
        ("train dqn CartPole-v1 --learning-rate -1", "learning_rate (--learning-rate) was -1.0"),
        (
            "train dqn CartPole-v1 --batch-size 99 --capacity 9",
            "at most the memory's capacity, which is 9 (--capacity)",
        ),
        ("train dqn CartPole-v1 --seeds 0", "seeds (--seeds) was 0; it must be at least 1"),
        ("train dqn CartPole-v1 --seed 99999999999999999999", "seed (--seed) was 99999999999999999999; it must be"),
        ("train dqn CartPole-v1 --total-timesteps 0", "total_timesteps (--total-timesteps) was 0"),
        ("train dqn CartPole-v1 --total-timesteps -5", "total_timesteps (--total-timesteps) was -5"),
        ("train dqn CartPole-v1 --checkpoint-period 0", "checkpoint_period (--checkpoint-period) was 0"),
        ("train dqn CartPole-v1 --num-envs 0", "num_envs (--num-envs) was 0"),
        ("train dqn Pendulum-v1", "dqn learns to choose among discrete actions"),
        ("train dqn Blackjack-v1", "Blackjack-v1 does not fit by its observation space"),
        ("train dqn Taxi-v3 --loop fused", "--loop fused needs a world in JAX, and 'Taxi-v3' is not one"),
        ("train dqn CartPoleShaped-v1 --loop host", "Gymnasium, which has no such environment"),
        ("train dqn nowhere:Thing-v0", "No module named 'nowhere'"),
        ("train dqn CartPole-v1 --import nothing.py", "--import was given nothing.py, and there is no such file"),
        ("train dqn CartPole-v1 --out /dev/null/run", "the folder /dev/null/run cannot be made"),
        ("resume", "the following arguments are required: RUN"),
        ("resume nowhere", "nowhere is not a run's folder"),
        ("evaluate nowhere", "nowhere is not a run's folder"),
        ("plot nowhere", "nowhere is not a run's folder"),
        ("resume nowhere --checkpiont x", "Did you mean '--checkpoint'?"),
        ("resume nowhere --total-timesteps many", "invalid int value: 'many'"),
        ("evaluate nowhere --episodes few", "invalid int value: 'few'"),
        ("evaluate nowhere --episode 3", "Did you mean '--episodes'?"),
        ("plot nowhere elsewhere", "has no flag or argument 'elsewhere'"),
        ("list everything", "has no flag or argument 'everything'"),
        ("list --import nothing.py", "there is no such file"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(capsys, tmp_path, monkeypatch, line, said):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert said in err and err.startswith("treadle: ") and err.count("\n") == 1
    assert out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--learning-rat 1", ["--learning-rat", "Perhaps you meant", "--learning-rate FLOAT"]),
        ("--seeds x", ["--seeds", "'x'"]),
        ("--learning-rate fast", ["--learning-rate", "'fast'"]),
        ("--learning-rate", ["Missing value for argument '--learning-rate'"]),
        ("--loss hubber", ["invalid choice 'hubber'", "'huber'"]),
        ("--loop fast", ["invalid choice 'fast'", "'fused'"]),
        ("--seeds 2 surplus", ["Unrecognized", "surplus"]),
    ],
)
def test_a_wrong_flag_of_train_is_told_shortly(capsys, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "dqn", "CartPole-v1", *flags.split()]) == 2
    err = capsys.readouterr().err
    for word in [*words, "treadle train dqn CartPole-v1 --help"]:
        assert word in err
    assert err.count("\n") < 18 and "Traceback" not in err and not list(tmp_path.iterdir())


def test_a_missing_package_is_named(capsys, monkeypatch):
    pytest.importorskip("gymnasium")
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["train", "dqn", "LunarLander-v3"]) == 2
    err = capsys.readouterr().err
    assert "Gymnasium cannot make 'LunarLander-v3'" in err and "gymnasium[box2d]" in err


def test_a_closed_pipe_is_no_error():
    for command in ("--help", "list"):
        done = in_a_shell(f"treadle {command} | true")
        assert done.returncode in (0, 1, 141)
        assert done.stderr == ""


def test_importing_and_helping_load_nothing_heavy():
    heavy = (
        "{'jax', 'matplotlib', 'scipy', 'tensorboard', 'tensorboardX', 'gymnasium', 'tyro', 'rich', 'equinox', 'PIL'}"
    )
    script = (
        f"import sys, treadle; from treadle.cli import main; main(['--help']); loaded = {heavy} & set(sys.modules); "
        "treadle.DQN, treadle.Agent; "
        f"late = ({heavy} - {{'jax', 'equinox'}}) & set(sys.modules); print('\\nloaded:', loaded, late)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: set() set()"


def test_a_mistake_in_a_shell_ends_with_a_status_and_without_a_traceback():
    done = in_a_shell("treadle train dqm CartPole-v1")
    assert done.returncode == 2
    assert done.stderr.startswith("treadle: there is no algorithm 'dqm'") and "Traceback" not in done.stderr


def test_a_users_own_algorithm_and_world_train_and_resume_when_named_again(own, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    known = {names: dict(names._entries) for names in (registry.algorithms, registry.environments)}
    flags = ["--total-timesteps", "60", "--bias", "0.9", "--out", str(folder)]
    assert main(["train", "coin", "Corridor-v0", "--import", str(own), *flags]) == 0
    assert json.loads((folder / "run.json").read_text())["imports"] == [str(own)]
    returns = [r["episode_return"] for r in metrics.read(folder) if "episode_return" in r]
    assert returns and min(returns) >= 3

    for names, entries in known.items():
        monkeypatch.setattr(names, "_entries", entries)
    for command in (["resume", str(folder), "--total-timesteps", "90"], ["evaluate", str(folder)]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert "the algorithm 'coin' and the environment 'Corridor-v0' of your own" in err
        assert f"--import {own}" in err and "never runs code" in err
    assert main(["plot", str(folder)]) == 0, "a curve needs no code"

    assert main(["resume", str(folder), "--total-timesteps", "90", "--import", str(own)]) == 0
    assert max(r["step"] for r in metrics.read(folder)) == 90
    assert main(["evaluate", str(folder), "--episodes", "4", "--import", str(own)]) == 0
    assert "4 greedy episodes a seed in Corridor-v0" in " ".join(capsys.readouterr().out.split())
    assert main(["evaluate", str(folder), "--render", str(tmp_path / "x.gif"), "--import", str(own)]) == 2
    assert "has no drawing yet" in capsys.readouterr().err
    assert main(["list", "--import", str(own)]) == 0
    assert "coin" in capsys.readouterr().out
    assert main(["train", "coin", "Corridor-v0", "--import", str(own), "--bais", "1"]) == 2
    assert "--bias" in capsys.readouterr().err


def test_a_name_of_a_users_own_is_suggested_too(own, capsys):
    assert main(["train", "coyn", "Corridor-v0", "--import", str(own)]) == 2
    assert "Did you mean 'coin'?" in capsys.readouterr().err
    assert main(["train", "coin", "Coridor-v0", "--import", str(own)]) == 2
    assert "Did you mean 'Corridor-v0'?" in capsys.readouterr().err


def test_a_file_that_fails_says_where(tmp_path, capsys):
    path = tmp_path / "broken.py"
    path.write_text("import math\n\nmath.pie\n")
    assert main(["train", "dqn", "CartPole-v1", "--import", str(path)]) == 2
    assert re.search(r"broken\.py could not be imported \(line 3\): AttributeError: .*pie", capsys.readouterr().err)
    path.write_text("def (:\n")
    assert main(["list", "--import", str(path)]) == 2
    assert "SyntaxError" in capsys.readouterr().err


def test_rewards_that_are_not_finite_stop_the_run_and_are_named(own, tmp_path, capsys):
    folder = tmp_path / "run"
    flags = ["--import", str(own), "--total-timesteps", "60", "--out", str(folder)]
    assert main(["train", "coin", "Cursed-v0", *flags]) == 1
    err = " ".join(capsys.readouterr().err.split())
    assert re.search(r"environment returned .* a reward that is NaN .* was stopped at step \d+ \(seed 0\)", err)
    assert "last good checkpoint is at step 0" in err and "Traceback" not in err


def test_environments_of_gymnasium_that_cannot_be_served_or_drawn(tmp_path, capsys):
    file = tmp_path / "still.py"
    file.write_text(GYMNASIUM)
    named = ["--import", str(file)]
    assert main(["train", "dqn", "Parts-v0", *named]) == 2
    assert "Parts-v0 does not fit by its observation space" in capsys.readouterr().err

    folder = tmp_path / "run"
    assert main(["train", "dqn", "Still-v0", *named, "--total-timesteps", "20", "--out", str(folder)]) == 0
    with pytest.warns(UserWarning, match="render_mode"):
        status = main(["evaluate", str(folder), *named, "--episodes", "1", "--render", str(tmp_path / "still.gif")])
    assert status == 2
    assert "Still-v0 cannot be drawn" in capsys.readouterr().err


def test_evaluation_prints_a_table_and_keeps_the_numbers(copy, capsys):
    assert main(["evaluate", str(copy), "--episodes", "3"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "3 greedy episodes a seed in Gymnasium's CartPole-v1" in out and "IQM" in out
    kept = json.loads((copy / "evaluation.json").read_text())
    assert kept["step"] == 400 and kept["episodes"] == 3
    assert len(kept["returns"]) == 2 and all(len(row) == 3 for row in kept["returns"])
    again = kept["returns"]
    assert main(["evaluate", str(copy), "--episodes", "3", "--seed", "0"]) == 0
    assert json.loads((copy / "evaluation.json").read_text())["returns"] == again
    assert main(["evaluate", str(copy), "--episodes", "3", "--seed", "1"]) == 0
    assert json.loads((copy / "evaluation.json").read_text())["returns"] != again


def test_an_episode_becomes_a_moving_picture(copy, tmp_path, capsys):
    path = tmp_path / "new" / "episode.gif"
    assert main(["evaluate", str(copy), "--episodes", "1", "--render", str(path)]) == 0
    assert f": {path}" in capsys.readouterr().out
    with Image.open(path) as picture:
        assert picture.format == "GIF" and getattr(picture, "n_frames", 1) > 5 and picture.size[0] == 480
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--episodes 0", "episodes (--episodes) was 0"),
        ("--episodes -3", "episodes (--episodes) was -3"),
        ("--seed -1", "seed (--seed) was -1"),
        ("--render episode.webm", "--render was given episode.webm; it must name a .gif or .mp4 file"),
        ("--checkpoint nothing", "there is no checkpoint nothing"),
    ],
)
def test_an_evaluation_that_cannot_be_made(trained, capsys, flags, said):
    assert main(["evaluate", str(trained), *flags.split()]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and out == ""
    assert not (trained / "evaluation.json").exists()


def test_a_video_without_its_library_is_refused_before_the_episodes(trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["evaluate", str(trained), "--render", "episode.mp4"]) == 2
    out, err = capsys.readouterr()
    assert "pip install 'treadle[video]'" in err and out == "" and not (trained / "evaluation.json").exists()


def test_a_picture_that_cannot_be_written(copy, capsys):
    assert main(["evaluate", str(copy), "--episodes", "1", "--render", "/dev/null/episode.gif"]) == 2
    assert "the drawing /dev/null/episode.gif cannot be written" in capsys.readouterr().err
    assert main(["plot", str(copy), "--out", "/dev/null/curve.png"]) == 2
    assert "the figure /dev/null/curve.png cannot be written" in capsys.readouterr().err
    assert main(["plot", str(copy), "--out", "curve.xyz"]) == 2
    assert "end the name in .png" in capsys.readouterr().err


def test_the_curve_goes_into_the_runs_folder_or_where_you_say(copy, tmp_path, capsys):
    assert main(["plot", str(copy)]) == 0
    inside = copy / "figures" / "learning_curve.png"
    assert capsys.readouterr().out == f"Learning curve: {inside}\n"
    assert main(["plot", str(copy), "--out", str(tmp_path / "curve.png")]) == 0
    for path in (inside, tmp_path / "curve.png"):
        with Image.open(path) as picture:
            assert picture.format == "PNG"
    (copy / "metrics.jsonl").unlink()
    assert main(["plot", str(copy)]) == 2
    assert "no finished episode yet" in capsys.readouterr().err


def test_a_run_without_a_name_gets_one_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("treadle.run.time.strftime", lambda *_: "20260101-120000")
    for expected in ("runs/dqn-CartPole-v1-20260101-120000", "runs/dqn-CartPole-v1-20260101-120000-2"):
        assert main(["train", "dqn", "CartPole-v1", *SMALL]) == 0
        assert f"Run: {expected}\n" in capsys.readouterr().out
        assert Run.open(expected).info["status"] == "finished"
