"""Gymnasium environments teach the same, whichever way Gymnasium resets them."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

from treadle.environments.gymnasium import GymnasiumEnvironments, counterpart, known_ids
from treadle.errors import InvalidSetting, TreadleError, UnknownName, UnsupportedSpace
from treadle.spaces import Box, Discrete

pytestmark = pytest.mark.least_optimised

COUNTER = "treadle-tests/Counter-v0"


class Counter(gymnasium.Env):
    """Counts its steps, in a buffer that it writes again and again, beside a number drawn for the episode.

    Terminates after 2 to 6 steps, or where action 7 is taken in the third. Actions are 5, 6 and 7.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - Gymnasium's own convention
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(3, start=5)

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        self._buffer = np.zeros(2)
        self._length = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._length = int(self.np_random.integers(2, 7))
        self._buffer[:] = 0, self.np_random.uniform()
        return self._buffer, {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action} is not among 5, 6 and 7"
        self._buffer[0] += 1
        count = self._buffer[0]
        return self._buffer, float(action), bool(count >= self._length or (action == 7 and count == 3)), False, {}

    def render(self):
        return np.full((2, 2, 3), int(self._buffer[0]), np.uint8)


class AsItIs(VectorWrapper):
    """A wrapper that changes nothing, so that the vector environment's own `step` is used."""


class Row(NamedTuple):
    """One transition of one environment."""

    obs: Any
    action: Any
    reward: float
    next_obs: Any
    terminated: bool
    truncated: bool


@pytest.fixture(autouse=True)
def _counter():
    gymnasium.register(COUNTER, entry_point=lambda **options: Counter(**options), max_episode_steps=5)
    yield
    del gymnasium.registry[COUNTER]


def chosen_actions(environments: GymnasiumEnvironments, count: int) -> np.ndarray:
    """The `count` actions that each environment takes in its valid steps, `[count, B, ...]`."""
    rng = np.random.default_rng(3)
    space, batch = environments.action_space, environments.num_envs
    if isinstance(space, Discrete):
        return rng.integers(space.n, size=(count, batch)).astype(np.int32)
    return rng.uniform(space.low, space.high, (count, batch, *space.shape)).astype(np.float32)


def learning_data(environments: GymnasiumEnvironments, steps: int, seed: int = 0) -> list[list[Row]]:
    """The valid transitions of each environment, in order. Also that the observation to act on is always told."""
    actions = chosen_actions(environments, steps)
    taken = np.zeros(environments.num_envs, int)
    rows: list[list[Row]] = [[] for _ in taken]
    obs = environments.reset(seed)
    told, copies = [], []
    for _ in range(steps):
        action = actions[taken, np.arange(len(taken))]
        action.flags.writeable = False
        step = environments.step(action)
        assert (step.valid is not None) == environments.masks_rows
        valid = np.ones(len(taken), bool) if step.valid is None else step.valid
        for i in np.flatnonzero(valid):
            ends = bool(step.terminated[i]), bool(step.truncated[i])
            rows[i].append(Row(obs[i], action[i], float(step.reward[i]), step.next_obs[i], *ends))
        taken += valid
        told.append(step)
        copies.append([None if part is None else part.copy() for part in step])
        obs = step.obs
    for step, copy in zip(told, copies, strict=True):
        for part, kept in zip(step, copy, strict=True):
            np.testing.assert_array_equal(part, kept, "a later step wrote to what an earlier one returned")
    environments.close()
    return rows


def assert_equal(data: list[list[Row]], expected: list[list[Row]]) -> None:
    for environment, others in zip(data, expected, strict=True):
        length = min(len(environment), len(others))
        assert length > 0.5 * max(len(environment), len(others))
        for row, other in zip(environment[:length], others[:length], strict=True):
            for field, value in zip(Row._fields, row, strict=True):
                np.testing.assert_array_equal(value, getattr(other, field), field)


SHORT = {"Pendulum-v1": 15, "Acrobot-v1": 20, "CartPole-v1": 15, "FrozenLake-v1": 10}
"""Time limits that let both kinds of end happen soon."""


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("name", [*SHORT, COUNTER])
def test_all_three_modes_give_the_same_learning_data(name, num_envs):
    options: dict[str, Any] = {"max_episode_steps": SHORT[name]} if name in SHORT else {}
    expected = learning_data(GymnasiumEnvironments(name, num_envs, "same_step", **options), 80)
    for mode in ("next_step", "disabled"):
        environments = GymnasiumEnvironments(name, num_envs, mode, **options)
        assert_equal(learning_data(environments, 80), expected)

    ends = [(row.terminated, row.truncated) for environment in expected for row in environment]
    assert (True, True) not in ends
    assert any(truncated for _, truncated in ends) or name == "FrozenLake-v1"
    if name not in ("Pendulum-v1", "Acrobot-v1"):
        assert any(terminated for terminated, _ in ends)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("wrapper", [lambda vector: vector, AsItIs], ids=["bare", "wrapped"])
def test_ready_vector_environments_give_the_same_learning_data(mode, wrapper):
    make = functools.partial(gymnasium.make, "CartPole-v1", max_episode_steps=30)
    vector = wrapper(SyncVectorEnv([make] * 3, autoreset_mode=mode))
    environments = GymnasiumEnvironments(vector)
    assert environments.num_envs == 3
    assert environments.name == "CartPole-v1"
    assert environments.max_episode_steps == 30
    assert environments.masks_rows == (mode is AutoresetMode.NEXT_STEP)
    data = learning_data(environments, 80)
    expected = learning_data(GymnasiumEnvironments("CartPole-v1", 3, max_episode_steps=30), 80)
    assert_equal(data, expected)


def test_environments_in_other_processes_give_the_same_learning_data():
    make = functools.partial(gymnasium.make, "CartPole-v1")
    vector = AsyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP, context="spawn")
    data = learning_data(GymnasiumEnvironments(vector), 60)
    assert_equal(data, learning_data(GymnasiumEnvironments("CartPole-v1", 2), 60))


def test_a_vector_environment_of_gymnasiums_own_making_is_understood():
    """CartPole's NumPy version has one generator for all its environments, so its data is checked by itself."""
    environments = GymnasiumEnvironments(gymnasium.make_vec("CartPole-v1", 4, max_episode_steps=12))
    assert environments.autoreset == "next_step"
    assert environments.max_episode_steps == 12
    rows = learning_data(environments, 60)
    for environment in rows:
        for row, following in itertools.pairwise(environment):
            if row.terminated or row.truncated:
                assert np.abs(following.obs).max() <= 0.05, "the next valid row begins an episode"
            else:
                np.testing.assert_array_equal(row.next_obs, following.obs)
    assert any(row.truncated for environment in rows for row in environment)


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_the_successor_at_an_episodes_end_is_the_true_one(mode):
    """The counter has one more step behind it, and the number of its own episode, although its buffer was reset."""
    rows = learning_data(GymnasiumEnvironments(COUNTER, 3, mode), 50)
    ends = 0
    for environment in rows:
        for row, following in itertools.pairwise(environment):
            np.testing.assert_array_equal(row.next_obs, np.add(row.obs, [1, 0]))
            if row.terminated or row.truncated:
                ends += 1
                assert following.obs[0] == 0
                assert following.obs[1] != row.obs[1], "two episodes should not start the same"
            else:
                np.testing.assert_array_equal(following.obs, row.next_obs)
    assert ends > 10


def test_a_ready_vector_of_environments_that_write_their_buffer_again_keeps_the_true_successor():
    make = functools.partial(gymnasium.make, COUNTER, disable_env_checker=True)
    vector = SyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    for environment in learning_data(GymnasiumEnvironments(vector), 30):
        for row in environment:
            np.testing.assert_array_equal(row.next_obs, np.add(row.obs, [1, 0]))


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_arrays_have_the_types_that_treadle_computes_with(mode):
    for name, dtype in (("FrozenLake-v1", np.int32), (COUNTER, np.float32)):
        environments = GymnasiumEnvironments(name, 2, mode)
        obs = environments.reset(0)
        step = environments.step(np.zeros(2, np.int32))
        for part in (obs, step.obs, step.next_obs):
            assert part.dtype == dtype
            assert part.shape == (2, *environments.observation_space.shape)
        assert step.reward.dtype == np.float32
        for flag in (step.terminated, step.truncated):
            assert flag.dtype == np.bool_
            assert flag.shape == (2,)
        environments.close()


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_actions_count_from_zero_whatever_the_spaces_start(mode):
    environments = GymnasiumEnvironments(COUNTER, 3, mode)
    assert environments.action_space == Discrete(3, start=5)
    environments.reset(0)
    step = environments.step(np.array([0, 1, 2], np.int32))
    np.testing.assert_array_equal(step.reward, [5, 6, 7])


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_an_environment_may_write_to_its_action(mode):
    """What an algorithm computed is read-only, and the transition keeps what it chose."""

    class Clips(Counter):
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64)

        def step(self, action):
            assert action.dtype == np.float64
            action *= 0.5
            return self._buffer, action.sum(), False, False, {}

    environments = GymnasiumEnvironments(Clips, 2, mode)
    environments.reset(0)
    actions = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)
    actions.flags.writeable = False
    np.testing.assert_array_equal(environments.step(actions).reward, [0.5, 0.5])


def test_the_same_seed_gives_the_same_data_and_others_do_not():
    def firsts(seed):
        return learning_data(GymnasiumEnvironments(COUNTER, 3), 20, seed)

    assert_equal(firsts(0), firsts(0))
    numbers = [environment[0].obs[1] for seed in range(4) for environment in firsts(seed)]
    assert len(set(numbers)) == 12, "neither seeds nor environments share a start"


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_spaces_are_seeded_too_and_each_differently(mode):
    """Some environments draw from their own action space."""

    class Restless(Counter):
        def step(self, action):
            action = self.action_space.sample()
            return super().step(action)

        def __init__(self):
            super().__init__()
            self.action_space = gymnasium.spaces.Discrete(3, start=5)

    def rewards():
        environments = GymnasiumEnvironments(Restless, 2, mode)
        return [[row.reward for row in environment] for environment in learning_data(environments, 40)]

    first, second = rewards(), rewards()
    assert first == second
    assert first[0][:20] != first[1][:20]


def test_a_second_reset_starts_afresh():
    for mode in ("same_step", "next_step", "disabled"):
        environments = GymnasiumEnvironments("FrozenLake-v1", 2, mode, max_episode_steps=1)
        environments.reset(0)
        environments.step(np.zeros(2, np.int32))
        environments.reset(1)
        step = environments.step(np.zeros(2, np.int32))
        assert step.valid is None or step.valid.all()


def test_an_environment_may_come_as_a_callable_or_ready_made():
    for env in (Counter, lambda: Counter(), Counter()):
        environments = GymnasiumEnvironments(env)
        assert environments.name == "Counter"
        assert environments.max_episode_steps is None
        assert environments.observation_space == Box(-np.inf, np.inf, (2,), np.float32)
        assert environments.reset(0).shape == (1, 2)
    with pytest.raises(InvalidSetting, match="callable"):
        GymnasiumEnvironments(Counter(), num_envs=2)
    with pytest.raises(InvalidSetting, match="is_slippery would have no effect"):
        GymnasiumEnvironments(gymnasium.make("FrozenLake-v1"), is_slippery=False)


def test_rendering_shows_every_environment():
    ready = SyncVectorEnv([lambda: Counter("rgb_array")] * 2)
    for environments in (
        GymnasiumEnvironments(COUNTER, 2, render_mode="rgb_array"),
        GymnasiumEnvironments(Counter, 2, "disabled", render_mode="rgb_array"),
        GymnasiumEnvironments(ready),
    ):
        environments.reset(0)
        environments.step(np.zeros(2, np.int32))
        frames = environments.render()
        np.testing.assert_array_equal(frames, np.ones((2, 2, 2, 3)))
        environments.close()


def test_an_outdated_version_works_without_a_word():
    """Warnings are errors here, and Gymnasium says that CartPole-v0 is out of date."""
    environments = GymnasiumEnvironments("CartPole-v0")
    assert environments.max_episode_steps == 200
    assert environments.name == "CartPole-v0"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("CartPole-v9", "CartPole-v1"),
        ("Frozen Lake", "FrozenLake-v1"),
        ("treadle-tests/Counte-v0", COUNTER),
    ],
)
def test_an_unknown_id_suggests_the_nearest(wrong, right):
    with pytest.raises(UnknownName, match=rf"no environment '{wrong}'.*Did you mean '{right}'"):
        GymnasiumEnvironments(wrong)


def test_an_id_in_a_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "worlds_of_a_test.py").write_text(
        "import gymnasium\ngymnasium.register('FromModule-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    environments = GymnasiumEnvironments("worlds_of_a_test:FromModule-v0")
    assert environments.name == "worlds_of_a_test:FromModule-v0", "the name makes the environment again"
    assert environments.max_episode_steps is None
    del gymnasium.registry["FromModule-v0"]


def test_what_is_not_installed_is_told_in_gymnasiums_words(monkeypatch):
    def needs_box2d(**_):
        raise gymnasium.error.DependencyNotInstalled('Box2D is missing, run `pip install "gymnasium[box2d]"`')

    monkeypatch.setitem(gymnasium.registry, "Moon-v0", EnvSpec("Moon-v0", needs_box2d))
    with pytest.raises(UnknownName, match=r"cannot make 'Moon-v0': .*pip install \"gymnasium\[box2d\]\"`\.$"):
        GymnasiumEnvironments("Moon-v0")
    with pytest.raises(UnknownName, match=r"No module named 'no_such_module'"):
        GymnasiumEnvironments("no_such_module:World-v0")
    with pytest.raises(UnknownName, match=r"NoSuchPackage.*installed the proper package"):
        GymnasiumEnvironments("NoSuchPackage/World-v0")


def test_what_a_users_environment_raises_passes_through():
    class Broken(Counter):
        def step(self, action):
            raise RuntimeError("the motor is on fire")

    for mode in ("same_step", "next_step"):
        environments = GymnasiumEnvironments(Broken, 2, mode)
        environments.reset(0)
        with pytest.raises(RuntimeError, match="on fire"):
            environments.step(np.zeros(2, np.int32))


def test_unsupported_spaces_name_the_environment():
    with pytest.raises(UnsupportedSpace, match=r"Blackjack-v1 .* observation space: .*Tuple.*FlattenObservation"):
        GymnasiumEnvironments("Blackjack-v1")

    class ManyHands(Counter):
        action_space = gymnasium.spaces.MultiDiscrete([2, 2])

    with pytest.raises(UnsupportedSpace, match=r"ManyHands .* action space: .*MultiDiscrete"):
        GymnasiumEnvironments(ManyHands)


def test_an_observation_of_another_shape_than_the_space_says_is_noticed():
    """NumPy would otherwise spread one number over the whole row."""

    class Liar(Counter):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)

    with pytest.raises(TreadleError, match=r"Liar returned observations of shape \(2,\).*\(3,\)"):
        GymnasiumEnvironments(Liar).reset(0)


def test_settings_out_of_range_are_told():
    with pytest.raises(InvalidSetting, match=r"num_envs .* was 0"):
        GymnasiumEnvironments("CartPole-v1", num_envs=0)
    autoreset: Any = "sometimes"
    with pytest.raises(InvalidSetting, match="same_step, next_step, disabled"):
        GymnasiumEnvironments("CartPole-v1", autoreset=autoreset)
    wrong: Any = 3
    with pytest.raises(InvalidSetting, match=r"environment was 3.*Gymnasium id"):
        GymnasiumEnvironments(wrong)
    makes_nothing: Any = dict
    with pytest.raises(InvalidSetting, match=r"returned \{\}.*gymnasium.Env"):
        GymnasiumEnvironments(makes_nothing)


def test_a_vector_environment_must_say_how_it_resets():
    class Silent(VectorEnv):
        num_envs = 2
        single_observation_space = gymnasium.spaces.Discrete(2)
        single_action_space = gymnasium.spaces.Discrete(2)

        def step(self, actions):
            ends = np.ones(2, bool)
            return np.ones(2, int), np.zeros(2), ends, ~ends, {}

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, int), {}

    with pytest.raises(InvalidSetting, match=r"Silent does not say how it resets.*AutoresetMode"):
        GymnasiumEnvironments(Silent())

    class Forgetful(Silent):
        metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - Gymnasium's own convention

    environments = GymnasiumEnvironments(Forgetful())
    environments.reset(0)
    with pytest.raises(TreadleError, match=r"Forgetful.*final_obs"):
        environments.step(np.zeros(2, np.int32))


def test_counterparts_are_found_by_name():
    assert counterpart("CartPole-v1") == "CartPole-v1"
    assert counterpart("Corridor-v0") is None
    assert "FrozenLake-v1" in known_ids()
