"""Replay of images gives back what happened: no wrong successor, no stack over two episodes, each frame stored once."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from treadle import DQN
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.frames import CANDIDATES, FrameMemory, FrameState, PrioritizedFrameMemory, memory_bytes
from treadle.loops.execution import compiler_options
from treadle.loops.seeds import side_by_side
from treadle.registry import as_float32
from treadle.spaces import Box, Discrete
from treadle.types import Counter, Spec, Transition, space_spec

pytestmark = pytest.mark.least_optimised

GAMMA = 0.5
FRAME = (2, 3)
"""Six bytes, which fill no whole number of words. Of a frame the first three hold its number."""


class Form(NamedTuple):
    """Stack, steps of a return, environments, capacity, and lengths of rollouts."""

    k: int
    n: int
    B: int
    capacity: int
    lengths: tuple[int, ...]

    @property
    def memory(self) -> PrioritizedFrameMemory:
        return as_float32(
            PrioritizedFrameMemory(
                capacity=self.capacity,
                batch_size=4,
                num_envs=self.B,
                frame_stack=self.k,
                n_step=self.n,
                gamma=GAMMA,
                alpha=1.0,
                priority_offset=0.0,
                weights_over="memory",
            )
        )

    @property
    def window(self) -> int:
        """Steps that can be drawn from a full memory."""
        return -(-self.capacity // self.B)


FORMS = [Form(3, 1, 2, 5, (1, 4)), Form(4, 3, 2, 17, (1, 4, 20)), Form(1, 5, 3, 20, (3, 5))]
"""Capacities that the environments divide and do not, and rollouts longer than the memory."""


class Row(NamedTuple):
    """A transition whose stacks are numbers of frames."""

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    truncated: Any
    valid: Any


class Game:
    """One environment in next-step autoreset, in whose stream any row may end the game, cut it, or lose a life; stacks
    are tuples of the numbers of their frames, which never come twice."""

    def __init__(self, k: int, seed: int, env: int, ends: float):
        self._rng, self._k, self._ends = np.random.default_rng([seed, env]), k, ends
        self._number = 100_000 * env
        self.begin()

    def begin(self) -> None:
        self._obs, self._over = (0,) * (self._k - 1) + (self._frame(),), False

    def row(self) -> Row:
        obs, over = self._obs, self._over
        action, reward = int(self._rng.integers(9)), float(self._rng.integers(1, 9))
        if over:
            self.begin()
            return Row(obs, action, reward, self._obs, False, False, False)
        self._obs = (*obs, self._frame())[1:]
        self._over = bool(self._rng.random() < self._ends)
        cut = self._over and bool(self._rng.random() < 0.5)
        terminated = (self._over and not cut) or bool(self._rng.random() < self._ends / 2)
        return Row(obs, action, reward, self._obs, terminated, cut, True)

    def _frame(self) -> int:
        self._number += 1
        return self._number


def pictures(stacks: Any) -> np.ndarray:
    """Frames `[..., 2, 3]` for numbers; that of 0 is black."""
    numbers = np.asarray(stacks)[..., None]
    digits = numbers // 256 ** np.arange(3) % 256
    rest = np.where(numbers > 0, np.broadcast_to([7, 77, 255], digits.shape), 0)
    return np.concatenate([digits, rest], axis=-1).astype(np.uint8).reshape(*np.shape(stacks), *FRAME)


def rollout_of(columns: list[list[Row]]) -> Transition:
    """The rows of each environment as one rollout `[T, B, ...]`."""
    rows = Row(*([[getattr(row, name) for row in step] for step in zip(*columns, strict=True)] for name in Row._fields))
    columns_: Any = (np.int32(rows.action), np.float32(rows.reward), pictures(rows.next_obs))
    flags: Any = map(np.asarray, (rows.terminated, rows.truncated, rows.valid))
    return Transition(pictures(rows.obs), *columns_, *flags)


def example_of(k: int, frame: tuple[int, ...] = FRAME) -> Transition:
    obs, never = jnp.zeros((k, *frame), jnp.uint8), jnp.zeros((), jnp.bool_)
    return Transition(obs, jnp.zeros((), jnp.int32), jnp.zeros(()), obs, never, never)


def expected(rows: list[Row | None], at: int, n: int) -> dict[str, Any]:
    """What the row at `at` should give, by a walk over what happened; `None` where the stream broke off."""
    row: Any = rows[at]
    total, factor, last = 0.0, 1.0, row
    for step in rows[at : at + n]:
        if step is None:
            break
        total, last = total + factor * step.reward, step
        factor *= 0.0 if step.terminated else GAMMA
        if step.terminated or step.truncated:
            break
    return {"obs": row.obs, "action": row.action, "reward": total, "next_obs": last.next_obs, "extras": factor}


class Reference:
    """A list of rows for each environment, and a plain table of priorities."""

    def __init__(self, form: Form):
        self.form, self.highest = form, 1.0
        self.rows: list[list[Row | None]] = [[None] for _ in range(form.B)]
        self.priorities: dict[tuple[int, int], float] = {}

    def add(self, columns: list[list[Row]], broken: bool) -> None:
        for rows, column in zip(self.rows, columns, strict=True):
            rows += [*([None] if broken else []), *column]
        slots = self.form.window + self.form.k + self.form.n - 1
        steps = len(self.rows[0])
        times = range(max(0, steps - slots + self.form.k), steps - self.form.n + 1)
        held = [(t, env) for t in times for env, rows in enumerate(self.rows) if (row := rows[t]) and row.valid]
        self.priorities = {place: self.priorities.get(place, self.highest) for place in held}

    def index(self, place: tuple[int, int]) -> int:
        """The number of the ring's row that holds it."""
        t, env = place
        return t % (self.form.window + self.form.k + self.form.n - 1) * self.form.B + env


@functools.partial(jax.jit, static_argnums=0)
def _start(form: Form) -> Any:
    return form.memory.init(example_of(form.k))


@functools.partial(jax.jit, static_argnums=0)
def _add(form: Form, state: Any, rollout: Transition) -> Any:
    return form.memory.add(state, rollout)


@functools.partial(jax.jit, static_argnums=0)
def _look(form: Form, state: Any, key: jax.Array) -> Any:
    """All rows of the ring, which of them may be drawn, and samples of both kinds."""
    memory = form.memory
    indices = jnp.arange(memory.uniform.num_rows + 3)
    drawable = memory.uniform.drawable(state.ring, indices)
    items = memory.uniform.items(state.ring, indices[: memory.uniform.num_rows])
    return items, drawable, memory.sample(state, key), memory.uniform.sample(state.ring, key)


@functools.partial(jax.jit, static_argnums=0)
def _update(form: Form, state: Any, indices: jax.Array, errors: jax.Array) -> Any:
    return form.memory.update_priorities(state, indices, errors)


def _check(reference: Reference, state: Any, key: jax.Array) -> None:
    """The memory holds what the reference does, and nothing else can be drawn."""
    form = reference.form
    items, drawable, prioritized, uniform = jax.device_get(_look(form, state, key))
    places = {reference.index(place): place for place in reference.priorities}
    assert set(np.flatnonzero(drawable).tolist()) == set(places)
    for index, (t, env) in places.items():
        wanted = expected(reference.rows[env], t, form.n)
        np.testing.assert_array_equal(items.obs[index], pictures(wanted["obs"]))
        np.testing.assert_array_equal(items.next_obs[index], pictures(wanted["next_obs"]))
        assert items.action[index] == wanted["action"]
        assert items.reward[index] == wanted["reward"] and items.extras[index] == wanted["extras"]

    leaves = np.zeros(len(drawable), np.float32)
    leaves[list(places)] = [reference.priorities[place] for place in places.values()]
    np.testing.assert_allclose(state.sums.values[: len(items.reward)], leaves[: len(items.reward)], rtol=1e-6)
    np.testing.assert_allclose(state.sums.root, leaves.sum(), rtol=1e-6)
    for sample in (prioritized, uniform):
        found = jax.tree.map(lambda x, at=sample.indices: x[at], items)
        jax.tree.map(np.testing.assert_array_equal, sample.items, found)
    np.testing.assert_array_equal(uniform.weights, drawable[uniform.indices])
    if leaves.any():
        drawn = leaves[prioritized.indices]
        np.testing.assert_allclose(prioritized.weights, (leaves[leaves > 0].min() / drawn) ** 0.4, rtol=1e-5)
    else:
        assert not prioritized.weights.any()


rounds = st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 9)), min_size=1, max_size=9)


@given(st.sampled_from(FORMS), st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.5, 1.0]), rounds)
@example(FORMS[1], 0, 0.1, [(1, False, 3)] * 30)
@example(FORMS[1], 1, 0.3, [(0, False, 9)] * 30 + [(0, True, 9)] * 6)
@example(FORMS[2], 2, 1.0, [(0, False, 9)] * 12)
@example(FORMS[0], 3, 0.2, [(1, False, 3), (0, True, 3), (1, True, 3)] * 4)
def test_what_can_be_drawn_is_what_happened(form, seed, ends, rounds):
    """Against lists of rows: through ends, time limits, lost lives, write heads, and streams that break off."""
    games = [Game(form.k, seed, env, ends) for env in range(form.B)]
    reference, state, rng = Reference(form), _start(form), np.random.default_rng(seed)
    for i, (length, breaks, errors) in enumerate(rounds):
        breaks = breaks and i > 0 and errors < 5
        if breaks:
            state = form.memory.begin_episodes(form.memory.begin_episodes(state))
            for game in games:
                game.begin()
        columns = [[game.row() for _ in range(form.lengths[length % len(form.lengths)])] for game in games]
        reference.add(columns, breaks)
        state = _add(form, state, rollout_of(columns))
        _check(reference, state, jax.random.key(i))

        rows = form.memory.uniform.num_rows + 3
        indices = rng.permutation(np.append(np.arange(rows), 2**31 - 1))[:6]
        values = rng.integers(0, 4 * errors + 1, 6) / 4
        state = _update(form, state, jnp.asarray(indices, jnp.int32), jnp.asarray(values, jnp.float32))
        told = dict(zip(indices.tolist(), values.tolist(), strict=True))
        for place in reference.priorities:
            value = told.get(reference.index(place))
            if value is not None:
                reference.priorities[place] = value
                reference.highest = max(reference.highest, value)
        assert state.highest == pytest.approx(reference.highest)
    assert int(state.ring.position.value) == len(reference.rows[0]) % form.memory.uniform.num_slots
    assert int(state.ring.size.value) == min(len(reference.rows[0]), form.memory.uniform.num_slots)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_full_memory_gives_its_whole_capacity(form):
    """Not one row fewer, wherever the write head is, and whole steps of all environments."""
    games = [Game(form.k, 0, env, 0.0) for env in range(form.B)]
    state, length = _start(form), form.lengths[0]
    for i in range(3 * form.memory.uniform.num_slots):
        state = _add(form, state, rollout_of([[game.row() for _ in range(length)] for game in games]))
        if i * length > form.memory.uniform.num_slots:
            drawable = _look(form, state, jax.random.key(i))[1]
            assert drawable.sum() == form.window * form.B >= form.capacity


def test_a_row_whose_stream_broke_off_keeps_its_successor_and_bootstraps_from_it():
    """By hand: rewards 1, 2, 3 and then the run was resumed. With three steps and gamma 1/2 the returns are
    1 + 2/2 + 3/4, 2 + 3/2 and 3, and all bootstrap from the observation after the last, by 1/8, 1/4 and 1/2."""
    form = Form(2, 3, 1, 20, (3,))
    stacks = [(0, 1), (1, 2), (2, 3), (3, 4)]
    rows = [Row(stacks[t], t, t + 1.0, stacks[t + 1], False, False, True) for t in range(3)]
    state = form.memory.begin_episodes(_add(form, _start(form), rollout_of([rows])))
    after = [Row((5 + t - 1 if t else 0, 5 + t), 9, 9.0, (5 + t, 6 + t), False, False, True) for t in range(3)]
    ring = _add(form, state, rollout_of([after])).ring
    items = jax.jit(form.memory.uniform.items)(ring, jnp.array([1, 2, 3, 5]))
    assert items.reward.tolist() == [2.75, 3.5, 3.0, 9 * 1.75]
    assert items.extras.tolist() == [0.125, 0.25, 0.5, 0.125]
    np.testing.assert_array_equal(items.next_obs, pictures([(3, 4), (3, 4), (3, 4), (7, 8)]))
    np.testing.assert_array_equal(items.obs, pictures([(0, 1), (1, 2), (2, 3), (0, 5)]))


def test_colours_and_bytes_of_any_size_come_back():
    memory = FrameMemory(capacity=4, batch_size=1, num_envs=1, frame_stack=2)
    frames = np.random.default_rng(0).integers(0, 256, (4, 5, 3, 3), np.uint8)
    stacks = np.stack([np.concatenate([0 * frames[:1], frames[:-1]]), frames], axis=1)[:, None]
    row = jnp.zeros((3, 1))
    rollout = Transition(stacks[:-1], row.astype(jnp.int32), row, stacks[1:], row > 0, row > 0)
    state = jax.jit(memory.add)(memory.init(example_of(2, (5, 3, 3))), rollout)
    items = jax.jit(memory.items)(state, jnp.array([1, 2, 3]))
    np.testing.assert_array_equal(items.obs, stacks[:-1, 0])
    np.testing.assert_array_equal(items.next_obs, stacks[1:, 0])


def test_every_second_row_invalid_all_others_are_equally_likely():
    """Games of one step each, in two environments of which one is a step ahead."""
    memory = FrameMemory(capacity=18, batch_size=9_000, num_envs=2, frame_stack=3)
    even = np.arange(40) % 2 == 0
    valid = np.stack([even, ~even], axis=1)
    rollout = _example_rollout(40, 2, 3)._replace(terminated=jnp.asarray(valid), valid=jnp.asarray(valid))
    state = jax.jit(lambda: memory.add(memory.init(example_of(3)), rollout))()
    sample = jax.jit(memory.sample)(state, jax.random.key(0))
    assert (sample.weights == 1).all(), f"some place had {CANDIDATES} invalid candidates"
    numbers, counts = np.unique(sample.indices, return_counts=True)
    assert len(numbers) == 9
    assert np.asarray(memory.drawable(state, jnp.asarray(numbers))).all()
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("B", [1, 8, 16])
@pytest.mark.parametrize("size", [84, 42])
def test_it_takes_little_more_than_the_frames(B, size):
    form = {"capacity": 10_000, "batch_size": 32, "num_envs": B, "frame_stack": 4, "n_step": 5}
    picture = example_of(4, (size, size))
    for memory in (FrameMemory(**form), PrioritizedFrameMemory(**form, weights_over="memory")):
        assert 10_000 * size * size <= memory_bytes(memory, picture) <= 1.1 * 10_000 * size * size


def test_the_bytes_are_told_before_they_are_taken():
    memory = PrioritizedFrameMemory(capacity=1_000, batch_size=32, num_envs=4, frame_stack=4)
    taken = sum(x.nbytes for x in jax.tree.leaves(memory.init(example_of(4, (10, 10)))))
    assert memory_bytes(memory, example_of(4, (10, 10))) == taken
    endless = dataclasses.replace(memory, capacity=10**9)
    assert memory_bytes(endless, example_of(4, (84, 84))) > 7 * 10**12


def test_what_are_no_stacks_of_bytes_is_refused():
    memory = FrameMemory(capacity=10, batch_size=1, num_envs=1, frame_stack=4)
    with pytest.raises(
        TypeError, match=r"holds a stack of 4 uint8 frames \[4, ...\]; it was given uint8 of shape \(3,"
    ):
        memory.init(example_of(3))
    floats = example_of(4)._replace(obs=jnp.zeros((4, 2, 2)))
    with pytest.raises(TypeError, match="it was given float32"):
        memory.init(floats)
    with pytest.raises(TypeError, match="actions of 32 bits"):
        memory.init(example_of(4)._replace(action=jnp.zeros((), jnp.uint8)))


def _example_rollout(T: int, B: int, k: int) -> Transition:
    obs, row = jnp.zeros((T, B, k, *FRAME), jnp.uint8), jnp.zeros((T, B))
    return Transition(obs, row.astype(jnp.int32), row, obs, row > 0, row > 0, row == 0)


@pytest.mark.least_optimised(False)
@pytest.mark.parametrize("prioritized", [False, True])
def test_a_donated_memory_is_updated_in_place(prioritized):
    """Nothing in the compiled loop copies frames, rows or trees, though a branch draws and updates: a step must not
    cost what the memory weighs."""
    settings: dict[str, Any] = {"capacity": 2_003, "batch_size": 8, "num_envs": 2, "frame_stack": 3, "n_step": 2}
    memory = PrioritizedFrameMemory(**settings) if prioritized else FrameMemory(**settings)
    state = memory.init(example_of(3))
    forms = {f"{x.dtype.name[0]}{8 * x.dtype.itemsize}[{','.join(map(str, x.shape))}]" for x in jax.tree.leaves(state)}
    forms = {form for form in forms if "[]" not in form}
    forms = {form.replace("i32", "s32") for form in forms}
    assert len(forms) == (3 if prioritized else 2)

    def learn(state, key):
        sample = memory.sample(state, key)
        state = memory.update_priorities(state, sample.indices, jax.random.normal(key, (8,)))
        return state, sample.items.obs.sum() + sample.items.next_obs.sum() + sample.weights.sum()

    def run(state, keys):
        def step(state, key):
            state = memory.add(state, _example_rollout(2, 2, 3))
            ring = getattr(state, "ring", state)
            return jax.lax.cond(ring.size.value > 9, learn, lambda state, _: (state, 0.0), state, key)

        return jax.lax.scan(step, state, keys)

    def copies(**options) -> list[str]:
        program = jax.jit(run, compiler_options=compiler_options(), **options)
        text = str(program.lower(state, jax.random.split(jax.random.key(0), 20)).compile().as_text())
        return re.findall(rf"= ((?:{'|'.join(map(re.escape, forms))})\S*) (?:copy|select)\(", text)

    assert copies(donate_argnums=0) == []
    assert copies(), "without donation the arrays are copied once: the test looks for the right thing"


# DQN


class Recall(gymnasium.Env):
    """What was seen first decides: a bright or a dark picture, then two grey ones, then a reward of 1 or -1."""

    observation_space = gymnasium.spaces.Box(0, 255, (3, 2, 2), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._bright, self._frames = bool(self.np_random.integers(2)), np.zeros((3, 2, 2), np.uint8)
        return self._see(3 if self._bright else 1), {}

    def step(self, action):
        obs = self._see(2)
        ended = bool((self._frames[0] == 2).all())
        return obs, (1.0 if self._bright else -1.0) if ended else 0.0, ended, False, {}

    def _see(self, shade: int) -> np.ndarray:
        self._frames = np.concatenate([self._frames[1:], np.full((1, 2, 2), shade, np.uint8)])
        return self._frames


RECALL = DQN(
    num_envs=2,
    capacity=61,
    batch_size=32,
    learning_rate=1e-2,
    learning_rate_end=0.0,
    learning_starts=100,
    train_frequency=2,
    target_update_period=20,
    hidden_sizes=(32,),
    features="flat",
    gamma=0.8,
    priority_beta=1.0,
)


def _spec_of(algorithm: DQN, frame_stack: int) -> Spec:
    spec = space_spec(Box(0, 255, (3, 2, 2), np.uint8), Discrete(2), algorithm.num_envs, 2_400)
    return dataclasses.replace(spec, frame_stack=frame_stack)


def _learned(algorithm: DQN, frame_stack: int, rounds: int) -> Any:
    """The state after so many rounds in `Recall`, under actions that do not matter."""
    worlds, rng = GymnasiumEnvironments(Recall, algorithm.num_envs, "next_step"), np.random.default_rng(0)
    state = jax.jit(lambda key: algorithm.init(key, _spec_of(algorithm, frame_stack)))(jax.random.key(0))
    update, obs = jax.jit(algorithm.update, donate_argnums=0), np.array(worlds.reset(0))
    for number in range(rounds):
        rows = []
        for _ in range(algorithm.num_steps):
            actions = rng.integers(2, size=algorithm.num_envs, dtype=np.int32)
            step = worlds.step(actions)
            np.testing.assert_array_equal(step.obs, step.next_obs)
            extras = np.zeros(algorithm.num_envs, np.float32)
            told: Any = (step.reward, step.next_obs, step.terminated, step.truncated, step.valid)
            rows.append(Transition(obs, actions, *told, extras=extras))
            obs = step.next_obs
        state, _ = update(state, jax.tree.map(lambda *x: np.stack(x), *rows), jax.random.key(number))
    worlds.close()
    return state


@pytest.mark.parametrize("options", [{}, {"n_step": 2, "prioritized": True}], ids=str)
def test_dqn_learns_the_same_values_from_frames_as_from_whole_stacks(options):
    """Those that are right: 0.8^2, 0.8 and 1, each with the sign of what was seen first."""
    algorithm = as_float32(dataclasses.replace(RECALL, **options))
    shades = [[0, 0, s] for s in (1, 3)] + [[0, s, 2] for s in (1, 3)] + [[s, 2, 2] for s in (1, 3)]
    obs = np.broadcast_to(np.asarray(shades, np.uint8)[:, :, None, None], (6, 3, 2, 2))
    values = []
    for frame_stack in (0, 3):
        state = _learned(algorithm, frame_stack, 800)
        assert isinstance(getattr(state.memory, "ring", state.memory), FrameState) == bool(frame_stack)
        values.append(jax.vmap(state.network)(obs).mean(axis=1))
        np.testing.assert_allclose(values[-1], [-0.64, 0.64, -0.8, 0.8, -1, 1], atol=0.1)
    np.testing.assert_allclose(values[0], values[1], atol=0.1)


def test_dqn_counts_and_keeps_valid_rows_and_marks_where_a_run_was_resumed():
    algorithm = as_float32(dataclasses.replace(RECALL, learning_starts=1_000, n_step=3, capacity=400))
    state = _learned(algorithm, 3, 20)
    assert state.recent is None and state.waiting is None
    assert int(state.step.value) == 2 * 40 * 3 // 4, "of four rows one leads to the next episode"
    assert int(state.memory.size.value) == 41 and int(state.memory.broken.value) == 0
    resumed = algorithm.begin_episodes(state)
    assert int(resumed.memory.broken.value) == 1
    both = jax.vmap(algorithm.begin_episodes)(jax.tree.map(lambda x: jnp.stack([x, x]), state))
    assert both.memory.broken.value.tolist() == [1, 1]


def test_rounds_before_learning_change_no_priority():
    """Not even that of the row whose number is the capacity, which in this memory is a row like any other."""
    algorithm = as_float32(dataclasses.replace(RECALL, learning_starts=1_000, prioritized=True))
    state = _learned(algorithm, 3, 40)
    priorities = np.unique(state.memory.sums.values[: algorithm.memory_for(3).uniform.num_rows])
    assert priorities.tolist() == [0.0, float(state.memory.highest)]


@pytest.mark.least_optimised(False)
def test_side_by_side_no_branch_copies_the_frames():
    """Counters stay unbatched, so that `cond` stays a branch, and the memory is neither selected nor branched on."""
    algorithm = as_float32(dataclasses.replace(RECALL, hidden_sizes=()))
    state = algorithm.init(jax.random.key(0), _spec_of(algorithm, 3))
    states = jax.tree.map(lambda x: jnp.stack([x] * 3), state)
    rollout = _example_rollout(2, 2, 3)._replace(extras=jnp.zeros((2, 2)))
    rollout = rollout._replace(
        obs=jnp.zeros((2, 2, 3, 2, 2), jnp.uint8), next_obs=jnp.zeros((2, 2, 3, 2, 2), jnp.uint8)
    )

    def advance(states):
        return side_by_side(lambda state: algorithm.update(state, rollout, jax.random.key(0)), states)

    program = jax.jit(advance, donate_argnums=0, compiler_options=compiler_options())
    text = str(program.lower(states).compile().as_text())
    frames = f"u8[{','.join(map(str, states.memory.frames.shape))}]"
    assert frames in text, "the test looks for the memory under the wrong shape"
    conditionals = [line for line in text.splitlines() if re.search(r"= .* conditional\(", line)]
    assert conditionals, "learning_starts became a select"
    for line in conditionals:
        assert frames not in line.split(" conditional(")[0]
    assert not re.findall(rf"= {re.escape(frames)}\S* (?:select|copy)\(", text)
    assert isinstance(states.memory.position, Counter)
