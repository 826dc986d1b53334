"""The drawings of the classic worlds: plain data within their bounds, with everything where the state says."""

from __future__ import annotations

import json
import math
import typing
from typing import Any

import jax
import numpy as np
import pytest

from treadle import registry
from treadle.environments.acrobot import Acrobot, AcrobotState
from treadle.environments.cartpole import CartPole, CartPoleState
from treadle.environments.mountain_car import MountainCar, MountainCarState
from treadle.environments.pendulum import Pendulum, PendulumState
from treadle.registry import as_float32
from treadle.scene import Circle, Colour, Label, Line, Scene
from treadle.types import select

WORLDS = ["Acrobot-v1", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]


def of(state_type: Any, *numbers: float) -> Any:
    """A state of plain numbers."""
    return state_type(*numbers)


EXTREMES = {
    "Acrobot-v1": [of(AcrobotState, a, b, 0.0, 0.0) for a in (0.0, 1.57, math.pi) for b in (0.0, 3.0)],
    "CartPole-v1": [of(CartPoleState, x, 0.0, a, 0.0) for x in (-2.45, 2.45) for a in (-0.25, 0.25)],
    "MountainCar-v0": [of(MountainCarState, x, 0.0) for x in np.linspace(-1.2, 0.6, 19)],
    "MountainCarContinuous-v0": [of(MountainCarState, x, 0.0) for x in (-1.2, 0.6)],
    "Pendulum-v1": [of(PendulumState, a, 0.0) for a in np.linspace(-math.pi, math.pi, 9)],
}
"""States at the bounds of what is drawn."""


def walk(world: Any) -> list[Any]:
    """The states of random steps, and a reset wherever an episode terminates."""

    def one_step(state, key):
        action_key, reset_key = jax.random.split(key)
        state, step = world.step(state, world.action_space.sample(action_key), key)
        return select(step.terminated, world.reset(reset_key)[0], state), state

    def run(key):
        return jax.lax.scan(one_step, world.reset(key)[0], jax.random.split(key, 60))[1]

    states = jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(0)))
    return [jax.tree.map(lambda x, t=t: x[t], states) for t in range(60)]


def extent(shape: Any) -> tuple[Any, float]:
    """The points of a shape, and how far it reaches beyond them."""
    if isinstance(shape, Circle):
        return [shape.centre], shape.radius
    if isinstance(shape, Label):
        return [shape.at], shape.size / 2
    return shape.points, shape.width / 2 if isinstance(shape, Line) else 0.0


def is_plain(data: Any) -> bool:
    """Whether it consists of Python's own numbers, texts and tuples alone."""
    if isinstance(data, tuple):
        return all(is_plain(part) for part in data)
    return type(data) in (float, int, str)


@pytest.mark.parametrize("name", WORLDS)
def test_a_scene_is_plain_data_within_its_bounds(name):
    """Also of a world whose constants were made arrays, as the loops have it."""
    world = as_float32(registry.environments.make(name))
    for state in walk(world) + EXTREMES[name]:
        scene: Scene = world.scene(state)
        assert scene.cells is None
        assert is_plain((scene.low, scene.high, scene.shapes))
        assert json.dumps(scene.shapes)
        for shape in scene.shapes:
            assert shape.colour in typing.get_args(Colour)
            points, beyond = extent(shape)
            assert np.isfinite(points).all()
            assert (np.min(points, axis=0) - beyond >= np.array(scene.low) - 1e-9).all(), f"{shape} in {state}"
            assert (np.max(points, axis=0) + beyond <= np.array(scene.high) + 1e-9).all(), f"{shape} in {state}"


@pytest.mark.parametrize("name", WORLDS)
def test_the_frame_stays_and_the_agent_moves(name):
    """So that the scenes of an episode make a film."""
    world = registry.environments.make(name)
    one, other = (world.scene(state) for state in EXTREMES[name][:2])
    assert (one.low, one.high) == (other.low, other.high)
    assert [type(shape) for shape in one.shapes] == [type(shape) for shape in other.shapes]
    moved = [a.colour for a, b in zip(one.shapes, other.shapes, strict=True) if a != b]
    assert "agent" in moved or "accent" in moved
    assert not {"ground", "goal", "danger"} & set(moved)


def lines(scene: Scene, colour: Colour) -> list[Any]:
    return [shape.points for shape in scene.shapes if isinstance(shape, Line) and shape.colour == colour]


def test_the_pole_leans_to_the_right_at_a_positive_angle():
    scene = CartPole().scene(of(CartPoleState, 0.5, 0.0, 0.2, 0.0))
    [(foot, tip)] = lines(scene, "accent")
    assert foot[0] == 0.5
    np.testing.assert_allclose(np.subtract(tip, foot), [math.sin(0.2), math.cos(0.2)], rtol=1e-6)


def test_the_car_stands_level_in_the_valley():
    """At -pi/6 the hill is lowest, 0.1 high: both wheels touch it, one on either side."""
    bottom = -math.pi / 6
    scene = MountainCar().scene(of(MountainCarState, bottom, 0.0))
    wheels = [shape for shape in scene.shapes if isinstance(shape, Circle)]
    for wheel, side in zip(wheels, (-1, 1), strict=True):
        np.testing.assert_allclose(wheel.centre, (bottom + side * 0.06, 0.1 + wheel.radius))


def test_the_acrobats_links_hang_from_the_pivot():
    """The first level to the right, the second turned up by another right angle: its end is on the line."""
    right = math.pi / 2
    scene = Acrobot().scene(of(AcrobotState, right, right, 0.0, 0.0))
    first, second = lines(scene, "agent")
    np.testing.assert_allclose([*first, *second], [(0, 0), (1, 0), (1, 0), (1, 1)], atol=1e-12)
    [goal] = lines(scene, "goal")
    assert {y for _, y in goal} == {1.0}


def test_the_pendulum_turns_anticlockwise_from_upright():
    for angle, end in ((0.0, (0, 1)), (math.pi / 2, (-1, 0)), (math.pi, (0, -1))):
        scene = Pendulum().scene(of(PendulumState, angle, 0.0))
        [(_, drawn)] = lines(scene, "agent")
        np.testing.assert_allclose(drawn, end, atol=1e-12)
