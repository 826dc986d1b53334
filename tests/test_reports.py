"""What is drawn of an agent: a world's scenes where it has some, else the frames of Gymnasium's environment."""

from __future__ import annotations

from typing import Any

import av
import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from treadle import reports
from treadle.algorithms.base import Algorithm
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.environments.wrappers import Task, Wrappers
from treadle.errors import TreadleError
from treadle.loops import choose
from treadle.loops.seeding import seed_key
from treadle.registry import as_tree
from treadle.scene import Circle, Scene
from treadle.spaces import Discrete
from treadle.types import Step


@as_tree
class Right(Algorithm):
    """Always action 1."""

    def act(self, state, carry, obs, key, *, explore=True):
        return jnp.ones(obs.shape[0], jnp.int32), carry, ()


@as_tree
class Line:
    """Four cells, of which the last ends the episode."""

    max_episode_steps: int | None = None

    observation_space = Discrete(4)
    action_space = Discrete(2)

    def reset(self, key):
        return jnp.int32(0), jnp.int32(0)

    def step(self, state, action, key):
        cell = jnp.clip(state + 2 * action - 1, 0, 3)
        return cell, Step(cell, jnp.float32(1.0), cell == 3)

    def scene(self, state):
        return Scene((0, 0), (4, 1), (Circle((int(state) + 0.5, 0.5), 0.3, "agent", "o"),), cells=(4, 1))


class Frames(gymnasium.Env):
    """An episode of 3 steps, each frame of its own grey."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - Gymnasium's own convention
    observation_space = gymnasium.spaces.Discrete(4)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        self.steps, self.closed = 0, False

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return 0, {}

    def step(self, action):
        self.steps += 1
        return self.steps, 1.0, self.steps == 3, False, {}

    def render(self):
        return np.full((20, 30, 3), 50 * self.steps, np.uint8)

    def close(self):
        self.closed = True


def draw(world: Any, path):
    return reports.draw_episode(world, Right(), (), path, seed_key(0))


def test_a_world_with_a_scene_is_drawn_by_it(tmp_path):
    with Image.open(draw(Line(), tmp_path / "line.gif")) as picture:
        assert getattr(picture, "n_frames", 1) == 4 and picture.size == (480, 120), "the first state and the last too"
    with Image.open(draw(Line(), tmp_path / "line.PNG")) as picture:
        assert picture.format == "PNG" and picture.size[0] == 960
    with av.open(str(draw(Line(), tmp_path / "line.Mp4"))) as video:
        assert (video.format.name.split(",")[1], video.streams.video[0].frames) == ("mp4", 3 + 4)


def test_an_environment_of_gymnasiums_is_drawn_by_its_own_frames(tmp_path):
    made: list[Frames] = []

    def make(**options):
        made.append(Frames(**options))
        return made[-1]

    for name, size in (("frames.gif", (30, 20)), ("frames.png", (960, 692))):
        world: Any = choose.drawn_environment(make)
        assert isinstance(world, GymnasiumEnvironments)
        with Image.open(draw(world, tmp_path / name)) as picture:
            assert picture.size == size and getattr(picture, "n_frames", 1) == (3 if name.endswith("gif") else 1)
            assert made[-1].closed


def test_scenes_are_preferred_because_they_look_the_same_everywhere():
    for environment, name in (
        ("CartPole-v1", "CartPole-v1"),
        ("CartPoleShaped-v1", "CartPole-v1"),
        (Task("Pendulum-v1", Wrappers(discretise_actions=11, time_limit=7)), "Pendulum-v1"),
    ):
        world: Any = choose.drawn_environment(environment)
        assert not isinstance(world, GymnasiumEnvironments) and world.name == name
    assert world.action_space.n == 11 and world.max_episode_steps == 200, "as in evaluation"
    assert isinstance(choose.drawn_environment(Line()), Line)
    frames: Any = choose.drawn_environment("FrozenLake-v1")
    assert isinstance(frames, GymnasiumEnvironments)
    frames.close()


def test_an_episode_takes_about_as_long_as_in_its_world():
    def seconds(name: str) -> float:
        world: Any = choose.drawn_environment(name)
        return reports._frame_seconds(world, world.scene(world.reset(seed_key(0))[0]))

    assert seconds("CartPole-v1") == pytest.approx(0.02)
    assert seconds("Pendulum-v1") == pytest.approx(0.05)
    assert seconds("Acrobot-v1") == 0.1, "a fifth of a second would be a jerk"
    assert seconds("MountainCar-v0") == 0.04, "which has no unit of time"
    assert seconds("Maze") == 0.25


def test_what_cannot_be_drawn_is_told_in_a_sentence():
    @as_tree
    class Blank:
        max_episode_steps: int | None = None
        observation_space = action_space = Discrete(2)

        def reset(self, key):
            return jnp.int32(0), jnp.int32(0)

        def step(self, state, action, key):
            return state, Step(state, jnp.float32(0.0), jnp.bool_(True))

    with pytest.raises(TreadleError, match=r"has no drawing yet: the world has no method scene\(state\)"):
        choose.drawn_environment(Blank())

    class Blind(Frames):
        def render(self):
            return None

    with pytest.raises(TreadleError, match="cannot be drawn: it renders nothing in the mode rgb_array"):
        draw(choose.drawn_environment(Blind), None)
