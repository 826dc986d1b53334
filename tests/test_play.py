"""Playing for somebody who watches: starts that can be had again, a person's hand, and what is to be seen of a step."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle.algorithms.base import Algorithm
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.environments.wrappers import wrap
from treadle.errors import TreadleError
from treadle.loops.play import HostPlayer, Player, WorldPlayer, action_of_keys, needed
from treadle.registry import as_tree
from treadle.scene import Circle, Handle, Scene
from treadle.spaces import Box, Discrete
from treadle.types import Step, space_spec


@as_tree
class Track:
    """A place in [0, 10] that the action moves, up to 2 at once; at 10 the episode ends, which is a success unless the
    goal was moved elsewhere. Episodes start anywhere in [4, 6)."""

    max_episode_steps: int | None = 8
    dt: float = 0.1

    action_names: ClassVar = ("push",)
    keys: ClassVar = {"ArrowLeft": -1.5, "ArrowRight": (1.5,)}
    observation_space = Box(0.0, 10.0, (2,))
    action_space = Box(-2.0, 2.0, (1,))

    def reset(self, key):
        state = jnp.stack([4.0 + 2.0 * jax.random.uniform(key), jnp.float32(10.0)])
        return state, self.observe(state)

    def step(self, state, action, key):
        place = jnp.clip(state[0] + action[0], 0.0, 10.0)
        state = jnp.stack([place, state[1]])
        return state, Step(self.observe(state), action[0], place >= 10.0)

    def observe(self, state):
        return state

    def is_success(self, state):
        return jnp.abs(state[0] - state[1]) < 0.5

    def move(self, state, handle, to):
        return np.array([state[0], min(max(to[0], 0.0), 10.0)])

    def scene(self, state):
        place, goal = (float(x) for x in state)
        return Scene((0, 0), (10, 1), (Circle((place, 0.5), 0.3, "agent"),), handles=(Handle("goal", (goal, 0), 1),))


@as_tree
class Pusher(Algorithm):
    """Pushes by as much as `push` says, and in every tenth step of an episode, which acting counts, not at all."""

    push: float = 1.0

    def init(self, key, spec):
        return {"push": self.push, "memory": jnp.zeros(1000)}

    def init_carry(self, spec):
        return jnp.zeros(spec.num_envs, jnp.int32)

    def act(self, state, carry, obs, key, *, explore=True):
        action = jnp.where((carry % 10 == 9)[:, None], 0.0, state["push"] * jnp.ones((obs.shape[0], 1)))
        return action, carry + 1, ()

    def inspect(self, state, obs):
        return {"value": obs[1] - obs[0]}


@as_tree
class Chooser(Pusher):
    """The same, choosing the last of discrete actions."""

    def act(self, state, carry, obs, key, *, explore=True):
        return jnp.full(obs.shape[:1], 2, jnp.int32), carry + 1, ()


def player_in(world: Any, algorithm: Algorithm | None = None, push: float = 1.0) -> WorldPlayer:
    player = WorldPlayer(world)
    follow(player, algorithm or Pusher(), push)
    player.reset(0)
    return player


def follow(player: Player, algorithm: Algorithm, push: float) -> None:
    spec = space_spec(Box(0.0, 10.0, (2,)), player.action_space)
    player.follow(algorithm, {"push": jnp.float32(push), "memory": jnp.zeros(1000)}, spec)


def place(player: WorldPlayer) -> float:
    scene = player.see().picture
    assert isinstance(scene, Scene) and isinstance(scene.shapes[0], Circle)
    return scene.shapes[0].centre[0]


def test_an_episode_is_seen_step_by_step():
    player = player_in(Track(), push=2.0)
    first = player.see()
    assert (first.step, first.reward, first.episode_return, first.action, first.ended) == (0, None, 0.0, None, None)
    start = place(player)
    assert first.insight["value"] == pytest.approx(10.0 - start)
    player.step()
    seen = player.see()
    assert (seen.step, seen.reward, seen.episode_return, seen.action, seen.by_person) == (1, 2.0, 2.0, [2.0], False)
    assert place(player) == pytest.approx(start + 2.0)
    assert seen.success is None
    while not player.ended:
        player.step()
    seen = player.see()
    assert (seen.ended, seen.success, seen.step, seen.episode_return) == ("terminated", True, 3, 6.0)
    player.step()
    assert player.see().step == 3


def test_a_start_can_be_had_again():
    player = player_in(Track())
    starts = []
    for number in (0, 1, 2, 1, 2**31 - 1):
        player.reset(number)
        starts.append(place(player))
    assert starts[1] == starts[3]
    assert len(set(starts)) == 4
    assert all(4.0 <= start < 6.0 for start in starts)


@pytest.mark.parametrize("limit", [8, 3])
def test_the_time_limit_ends_an_episode(limit: int):
    player = player_in(Track(max_episode_steps=limit), push=0.1)
    for _ in range(limit):
        assert player.ended is None
        player.step()
    assert (player.ended, player.see().success) == ("truncated", False)


def test_keys_add_up_within_bounds_and_say_nothing_where_they_mean_nothing():
    player = player_in(Track())
    assert action_of_keys(player, []) is None
    assert action_of_keys(player, ["Space"]) is None
    together = {("ArrowLeft",): -1.5, ("ArrowLeft", "Space", "ArrowRight"): 0.0, ("ArrowRight", "ArrowRight"): 2.0}
    for held, action in together.items():
        assert np.asarray(action_of_keys(player, held)).tolist() == [action]


def test_of_discrete_actions_the_last_key_counts():
    player = player_in(Track())
    player.own_actions, player.keys = Discrete(3), {"ArrowLeft": 0, "ArrowRight": 2}
    assert action_of_keys(player, ["ArrowRight", "ArrowLeft"]) == 0
    assert action_of_keys(player, ["ArrowLeft", "ArrowRight"]) == 2


def test_a_person_takes_the_place_of_the_policy_for_a_step():
    player = player_in(Track())
    start = place(player)
    player.step(action_of_keys(player, ["ArrowLeft"]))
    seen = player.see()
    assert (seen.action, seen.by_person, seen.reward) == ([-1.5], True, -1.5)
    assert place(player) == pytest.approx(start - 1.5)
    player.step()
    assert player.see().by_person is False
    assert place(player) == pytest.approx(start - 0.5)


def test_a_person_is_not_bound_to_discretised_actions():
    """The agent's third of three actions is a push of 2; the person pushes by 1.5."""
    player = player_in(wrap(Track(), discretise_actions=3), Chooser())
    start = place(player)
    player.step()
    assert player.see().action == 2
    assert place(player) == pytest.approx(start + 2.0)
    player.step(action_of_keys(player, ["ArrowLeft"]))
    assert player.see().action == [-1.5]
    assert place(player) == pytest.approx(start + 0.5)


def test_what_a_person_moves_is_observed_at_once():
    player = player_in(Track())
    player.move("goal", (3.0, 0.0))
    assert player.see().insight["value"] == pytest.approx(3.0 - place(player))
    player.move("goal", (30.0, 0.0))
    assert player.see().insight["value"] == pytest.approx(10.0 - place(player))
    with pytest.raises(TreadleError, match="no 'lamp' to be moved"):
        player.move("lamp", (3.0, 0.0))
    player.step()
    assert player.see().step == 1


def test_another_policy_goes_on_where_the_world_is_and_remembers_nothing():
    """The tenth step since acting's memory began stands still: the fifth after the change at step 5 does not."""
    player = player_in(Track(max_episode_steps=None), push=0.1)
    start = place(player)
    for _ in range(5):
        player.step()
    follow(player, Pusher(), push=0.2)
    assert place(player) == pytest.approx(start + 0.5, abs=1e-5)
    assert player.see().step == 5
    rewards = []
    for _ in range(10):
        player.step()
        rewards.append(player.see().reward)
    assert rewards == pytest.approx([0.2] * 9 + [0.0])


def test_what_nobody_asks_for_need_not_be_there():
    """Acting goes by how far it pushes; of the memory it is enough to know that there is one."""
    spec = space_spec(Box(0.0, 10.0, (2,)), Track().action_space)
    state = jax.eval_shape(lambda: Pusher().init(jax.random.key(0), spec))
    assert needed(Pusher(), state, spec) == {"push": True, "memory": False}
    player = player_in(Track())
    player.follow(Pusher(), {"push": np.float32(0.5), "memory": jax.ShapeDtypeStruct((1000,), np.float32)}, spec)
    player.reset(0)
    player.step()
    assert player.see().reward == 0.5


def test_a_world_says_at_what_pace_it_goes():
    assert player_in(Track()).steps_per_second == pytest.approx(10.0)
    assert player_in(Track(dt=1e-6)).steps_per_second == 200.0


class Rendered(gymnasium.Env):
    """Counts steps from 0, and shows the count as the grey of its frames; the third ends the episode."""

    observation_space = gymnasium.spaces.Box(0.0, 10.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)
    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode: str | None = None, draws: bool | None = True):
        self.render_mode, self.draws, self.count, self.offset = render_mode, draws, 0, 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.offset = 0, float(self.np_random.uniform())
        return np.array([self.offset, 1.0], np.float32), {}

    def step(self, action):
        self.count += 1
        obs = np.array([self.count + self.offset, 1.0], np.float32)
        return obs, float(action), self.count == 3, False, {"is_success": self.count == 3}

    def render(self):
        if self.draws is None:
            raise gymnasium.error.DependencyNotInstalled("pygame is not installed")
        return np.full((4, 6, 3), 10 * self.count, np.uint8) if self.draws else None


def host_player(**options: Any) -> HostPlayer:
    player = HostPlayer(GymnasiumEnvironments(Rendered, 1, render_mode="rgb_array", **options))
    follow(player, Chooser(), 1.0)
    player.reset(0)
    return player


def test_gymnasiums_frames_show_an_episode_to_its_end():
    player = host_player()
    greys = []
    for _ in range(4):
        seen = player.see()
        assert isinstance(seen.picture, np.ndarray)
        greys.append(int(seen.picture[0, 0, 0]))
        player.step()
    assert greys == [0, 10, 20, 30]
    seen = player.see()
    assert (seen.ended, seen.success, seen.episode_return, seen.action) == ("terminated", True, 6.0, 2)
    assert player.steps_per_second == 20.0
    first = {}
    for number in (1, 2, 1):
        player.reset(number)
        first.setdefault(number, []).append(float(player.see().insight["value"]))
    assert first[1][0] == first[1][1] != first[2][0]
    player.close()


def test_what_cannot_be_drawn_or_steered_is_said():
    player = host_player(draws=False)
    with pytest.raises(TreadleError, match="renders nothing"):
        player.see()
    with pytest.raises(TreadleError, match="cannot be drawn: pygame is not installed"):
        host_player(draws=None).see()
    with pytest.raises(TreadleError, match="cannot be steered"):
        player.step(1)
    with pytest.raises(TreadleError, match="nothing of this environment can be moved"):
        player.move("goal", (0.0, 0.0))
    player.close()
