"""Arm: where the links end, what the goal pays, and how long the finger must stay there."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle import drawing, registry
from treadle.environments.arm import Arm, ArmState
from treadle.scene import Circle, Line
from treadle.spaces import Box

pytestmark = pytest.mark.least_optimised

EASY = (250.0, 303.0)
RIGHT = math.pi / 2


def at(first: float, second: float, goal: tuple[float, float] = EASY, hold: int = 0, get_point: bool = False) -> Any:
    numbers: Any = (
        np.array([first, second], np.float32),
        np.array(goal, np.float32),
        np.int32(hold),
        np.bool_(get_point),
    )
    return ArmState(*numbers)


@jax.jit
def play(world: Arm, state: ArmState, actions: jax.Array) -> Any:
    """The states and answers `[T]` of a sequence of actions, also beyond the end."""

    def one_step(state, action):
        state, step = world.step(state, action, jax.random.key(0))
        return state, (state, step)

    return jax.lax.scan(one_step, state, actions)[1]


@jax.jit
def resets(world: Arm) -> Any:
    return jax.vmap(world.reset)(jax.random.split(jax.random.key(0), 4096))


def step(state: ArmState, *action: float, **fields: Any) -> Any:
    """One step, as a state and an answer."""
    states, steps = play(Arm(**fields), state, jnp.array([action or (0.0, 0.0)]))
    return jax.tree.map(lambda x: np.asarray(x)[0], (states, steps))


@pytest.mark.parametrize(
    ("angles", "elbow", "finger"),
    [
        ((0, 0), (300, 200), (400, 200)),
        ((RIGHT, 0), (200, 300), (200, 400)),
        ((0, RIGHT), (300, 200), (300, 300)),  # the second angle is from the first link
        ((RIGHT, RIGHT), (200, 300), (100, 300)),
        ((0, math.pi), (300, 200), (200, 200)),
    ],
)
def test_links_of_100_stand_in_the_middle_of_the_plane(angles, elbow, finger):
    _, answer = step(at(*angles))
    offsets = np.subtract([elbow, finger, (200, 200)], EASY) / 200
    np.testing.assert_allclose(answer.obs, [0.0, *offsets.ravel()], atol=1e-6)
    distance = math.dist(finger, EASY)
    np.testing.assert_allclose(answer.reward, -distance / 200, rtol=1e-6)


def test_a_step_worked_by_hand():
    """Both joints at level go up by 0.1: the first link points to 0.1, the second to 0.2, from the goal at (250, 303).
    The reward is that of the new place."""
    state, answer = step(at(0.0, 0.0), 1.0, 1.0)
    np.testing.assert_allclose(state.angles, [0.1, 0.1])
    elbow = (200 + 100 * math.cos(0.1), 200 + 100 * math.sin(0.1))
    finger = (elbow[0] + 100 * math.cos(0.2), elbow[1] + 100 * math.sin(0.2))
    np.testing.assert_allclose(answer.obs[1:5], np.subtract([elbow, finger], EASY).ravel() / 200, atol=1e-6)
    np.testing.assert_allclose(answer.reward, -math.dist(finger, EASY) / 200, rtol=1e-6)
    assert not answer.terminated


def test_the_reward_is_minus_the_distance_in_halves_of_the_plane():
    """The finger at (300, 300) is 30 and 40, that is 50, from (270, 260): -1/4."""
    np.testing.assert_allclose(step(at(0, RIGHT, (270, 260)))[1].reward, -0.25, rtol=1e-6)


@pytest.mark.parametrize(
    ("goal", "inside"),
    [
        ((386, 214), True),  # a corner of the square, 20 from its centre
        ((400, 214), True),
        ((384, 200), False),
        ((385, 200), False),  # the rim
        ((400, 215), False),
    ],
)
def test_the_goal_is_a_square_without_its_rim(goal, inside):
    """The finger is at (400, 200), exactly."""
    state, answer = step(at(0, 0, goal, hold=7))
    np.testing.assert_allclose(answer.reward, inside - math.dist((400, 200), goal) / 200, rtol=1e-6)
    assert answer.obs[0] == inside == bool(Arm().is_success(state))
    assert state.hold == (8 if inside else 0)


def test_the_point_is_won_by_the_51st_step_inside():
    """And not again by the 52nd: the finger rests in the goal's centre."""
    for ends in (True, False):
        states, steps = play(Arm(ends_at_get_point=ends), at(0, 0, (400, 200)), jnp.zeros((60, 2)))
        np.testing.assert_array_equal(states.hold, np.arange(1, 61))
        np.testing.assert_allclose(steps.reward, [1.0] * 50 + [11.0] + [1.0] * 9)
        np.testing.assert_array_equal(states.get_point, [False] * 50 + [True] * 10)
        np.testing.assert_array_equal(steps.terminated, states.get_point & ends)


def test_who_leaves_must_hold_anew():
    """30 steps inside; out in two steps of 0.1 rad, about 14 each, of which the first ends inside; back in two. Counted
    from 1 the 32nd is outside, so that the point is won by the 32 + 51st. The same again after 90, from the 92nd."""
    out_and_back = [(1.0, 0.0)] * 2 + [(-1.0, 0.0)] * 2
    rest = [(0.0, 0.0)]
    actions = jnp.array(rest * 30 + out_and_back + rest * 56 + out_and_back + rest * 60)
    states, steps = play(Arm(ends_at_get_point=False), at(0, RIGHT, (300, 300)), actions)
    assert (np.flatnonzero(states.hold == 0) + 1).tolist() == [32, 92]
    assert (np.flatnonzero(np.asarray(steps.reward) > 5) + 1).tolist() == [32 + 51, 92 + 51]
    assert (np.flatnonzero(states.get_point) + 1).tolist() == [*range(83, 92), *range(143, 155)]


def test_how_long_and_for_what_are_settings():
    _, steps = play(Arm(hold_steps=2, point_reward=3.0), at(0, 0, (400, 200)), jnp.zeros((4, 2)))
    np.testing.assert_allclose(steps.reward, [1, 1, 4, 1])
    np.testing.assert_array_equal(steps.terminated, [False, False, True, True])


def test_the_count_is_observed_if_asked_for():
    """As a share of 50, and no further than to 51."""
    for held, seen in ((0, 1 / 50), (24, 0.5), (50, 1.02), (90, 1.02)):
        answer = step(at(0, 0, (400, 200), held), observe_hold=True, ends_at_get_point=False)[1]
        np.testing.assert_allclose(answer.obs[7:], [seen], rtol=1e-6)
    assert Arm(observe_hold=True).observation_space.shape == (8,)
    assert step(at(0, 0), observe_hold=True)[1].obs[7] == 0


def test_angles_stay_within_a_turn():
    state, _ = step(at(2 * math.pi - 0.05, 0.05), 1.0, -1.0)
    np.testing.assert_allclose(state.angles, [0.05, 2 * math.pi - 0.05], atol=1e-6)
    state, _ = step(at(1.25, 6.25))
    assert state.angles.tolist() == [1.25, 6.25], "not touched by rounding"


def test_actions_are_clipped():
    for a, b in zip(*(jax.tree.leaves(step(at(1, 2), *action)) for action in ((3, -7), (1, -1))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_episodes_start_at_any_angle():
    quantiles = np.linspace(0.1, 0.9, 9)
    for goal in ("fixed", "random"):
        states, obs = jax.tree.map(np.asarray, resets(Arm(goal=goal)))
        # The quantiles of a uniform distribution, known to within 0.016 of the whole (two deviations).
        spread = np.quantile(states.angles / (2 * math.pi), quantiles, axis=0)
        np.testing.assert_allclose(spread, np.stack([quantiles] * 2, 1), atol=0.03)
        assert abs(np.corrcoef(states.angles.T)[0, 1]) < 0.08
        assert not states.hold.any() and not states.get_point.any()
        np.testing.assert_array_equal(obs[:, 0] == 1, np.abs(obs[:, 3:5]).max(1) < 15 / 200)
        if goal == "fixed":
            assert (states.goal == EASY).all()
        else:
            spread = np.quantile(states.goal, quantiles, axis=0)
            np.testing.assert_allclose(spread, 100 + 200 * np.stack([quantiles] * 2, 1), atol=6)
            assert abs(np.corrcoef(states.goal.T)[0, 1]) < 0.08
            assert states.goal.min() >= 100 and states.goal.max() <= 300


def test_easy_and_hard_differ_in_the_goal():
    easy, hard = (registry.environments.make(name) for name in ("ArmEasy", "ArmHard"))
    assert (easy.goal, hard.goal) == ("fixed", "random")
    assert easy.max_episode_steps == hard.max_episode_steps == 200
    assert easy.action_space == Box(-1.0, 1.0, (2,))
    high = (1.0, 1.5, 1.5, 2.0, 2.0, 1.0, 1.0)
    assert easy.observation_space == hard.observation_space == Box((0.0, *(-h for h in high[1:])), high, (7,))


def test_compiled_or_not_it_is_the_same():
    world = Arm(goal="random", observe_hold=True)
    state = at(1.0, 2.0, (250, 250), 3)
    eager = world.step(state, jnp.array([0.3, -0.7]), jax.random.key(0))
    for a, b in zip(
        jax.tree.leaves(eager),
        jax.tree.leaves(step(state, 0.3, -0.7, goal="random", observe_hold=True)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("to", "goal"),
    [
        ((100.0, 150.0), (100, 150)),
        ((400.0, 400.0), (200 + math.sqrt(2) * 100, 200 + math.sqrt(2) * 100)),  # the furthest that way, at 200
        ((-90.0, 200.0), (0, 200)),
        ((200.0, 200.0), (200, 200)),
    ],
)
def test_a_person_moves_the_goal_within_reach(to, goal):
    state = Arm().move(at(0, 0), "goal", to)
    np.testing.assert_allclose(state.goal, goal, rtol=1e-6)


def test_links_of_two_lengths_do_not_reach_their_base():
    arm = Arm(link_lengths=(100.0, 60.0))
    for to, goal in (((200.0, 210.0), (200, 240)), ((200.0, 200.0), (240, 200)), ((0.0, 200.0), (40, 200))):
        np.testing.assert_allclose(arm.move(at(0, 0), "goal", to).goal, goal, rtol=1e-6)


def test_the_count_begins_anew_where_the_goal_is_moved_away():
    held = at(0, 0, (400, 200), 60, True)
    little, away = (Arm().move(held, "goal", to) for to in ((390.0, 200.0), (380.0, 200.0)))
    assert (little.hold, little.get_point) == (60, True)
    assert (away.hold, away.get_point) == (0, False)
    np.testing.assert_array_equal(away.angles, held.angles)
    onto = Arm().move(at(0, 0), "goal", (400.0, 200.0))
    assert onto.hold == 0 and Arm().is_success(onto)


def test_the_drawing_shows_the_links_and_whether_the_finger_is_inside():
    rims = []
    for goal in ((290.0, 290.0), EASY):
        scene = Arm().scene(at(0, RIGHT, goal))
        links = {shape.colour: shape.points for shape in scene.shapes if isinstance(shape, Line)}
        np.testing.assert_allclose(links["agent"], [(200, 200), (300, 200)])
        np.testing.assert_allclose(links["accent"], [(300, 200), (300, 300)])
        rims += [shape.colour for shape in scene.shapes if isinstance(shape, Line) and len(shape.points) == 5]
        assert [handle.at for handle in scene.handles] == [goal]
        assert (scene.low, scene.high) == ((0, 0), (400, 400))
        assert sum(isinstance(shape, Circle) for shape in scene.shapes) == 3
        assert len(drawing.as_text(scene, 40).splitlines()) == 20
    assert rims == ["ink", "muted"]


def test_arrows_turn_the_joints_anticlockwise_to_the_left_and_upwards():
    turned = {"ArrowLeft": (1.1, 2.0), "ArrowRight": (0.9, 2.0), "ArrowUp": (1.0, 2.1), "ArrowDown": (1.0, 1.9)}
    for key, angles in turned.items():
        np.testing.assert_allclose(step(at(1, 2), *Arm.keys[key])[0].angles, angles, rtol=1e-6)
