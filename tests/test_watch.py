"""Watching: every step is seen as it was, at the pace asked for, and the run stays the same to the last bit."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from treadle import metrics, training
from treadle.algorithms.base import Algorithm
from treadle.algorithms.q_learning import QLearning
from treadle.errors import InvalidSetting, NonFinite, TreadleError
from treadle.loops.choose import Trainer, make_trainer
from treadle.loops.preview import next_round
from treadle.progress import Progress
from treadle.registry import as_tree
from treadle.run import Run, RunConfig
from treadle.scene import Circle, Polygon, Scene
from treadle.spaces import Discrete
from treadle.types import Alarm, Counter, Mean, Step
from treadle.watch import Watch

pytestmark = pytest.mark.least_optimised

CELLS = 5
STEPS = 802
"""In chunks of 8 updates, and one that is left over."""


@as_tree
class Line:
    """A walk from the middle cell; either end ends the episode, the right one with reward 1. `slip` is the probability
    of a step in the other direction."""

    slip: float = 0.0
    max_episode_steps: int | None = 6

    observation_space = Discrete(CELLS)
    action_space = Discrete(2)

    def reset(self, key):
        return jnp.int32(2), jnp.int32(2)

    def step(self, state, action, key):
        right = (action == 1) ^ (jax.random.uniform(key) < self.slip)
        cell = state + jnp.where(right, 1, -1)
        return cell, Step(cell, (cell == CELLS - 1).astype(jnp.float32), (cell == 0) | (cell == CELLS - 1))

    def scene(self, state):
        cells = (Polygon(((i, 0), (i + 1, 0), (i + 1, 1), (i, 1)), "ground", "-") for i in range(CELLS))
        agent = Circle((int(state) + 0.5, 0.5), 0.3, "agent", "o")
        return Scene((0, 0), (CELLS, 1), (*cells, agent), cells=(CELLS, 1))


@as_tree
class Walker(Algorithm):
    """Goes right; learns nothing, in rollouts of `length` steps. From `nan_from` steps on it reports a NaN."""

    length: int = 1
    nan_from: float = 1_000.0

    @property
    def num_steps(self) -> int:
        return self.length

    def init(self, key, spec):
        return Counter.zero()

    def act(self, state, carry, obs, key, *, explore=True):
        return jnp.ones(obs.shape[0], jnp.int32), carry, ()

    def update(self, state, rollout, key):
        state = state.add(rollout.reward.size)
        loss = jnp.where(state.value >= self.nan_from, jnp.nan, 0.25)
        rows = jnp.float32(rollout.reward.size)
        return state, {"loss": loss, "epsilon": Mean(0.5 * rows, rows), "alarm": Alarm(state.value < 0, "Never.")}


LEARNER, SLIPPERY = QLearning(epsilon=0.4, num_envs=2), Line(slip=0.2)


class Clock:
    """A clock that goes on only where somebody sleeps, or takes `drawing` seconds to look."""

    def __init__(self, drawing: float = 0.0):
        self.now, self.slept, self._drawing = 100.0, [], drawing

    def __call__(self) -> float:
        self.now += self._drawing
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def trainer_of(algorithm: Algorithm, world: Any, steps: int = 60, seeds: int = 1) -> Trainer:
    return make_trainer(algorithm, world, steps, seed=3, num_seeds=seeds)


def watch_of(trainer: Trainer, pace: float = 10.0, clock: Clock | None = None, **console: Any) -> tuple[Watch, Any]:
    """A watch that writes to a file, as plain text unless the console is said to be a terminal."""
    clock, file = clock or Clock(), console.pop("file", io.StringIO())
    shown = Console(file=file, width=60, height=20, _environ={}, color_system=None, **console)
    return Watch(trainer, pace, console=shown, clock=clock, sleep=clock.sleep), file


def run_of(folder: Path, algorithm: Algorithm, steps: int = 60, seeds: int = 1) -> Run:
    config = RunConfig(total_timesteps=steps, seeds=seeds, seed=3, out=str(folder), checkpoint_period=10_000)
    return Run.create("own", "Line", algorithm, config)


def pictures(text: str) -> list[str]:
    """The drawings of the line, in the order in which they were printed."""
    return [line for line in text.splitlines() if len(line) == CELLS and set(line) == {"-", "o"}]


@pytest.mark.least_optimised
def test_every_step_is_printed_where_there_is_no_terminal():
    """Two cells to the right of the start the episode is over; the next begins in the middle again."""
    trainer = trainer_of(Walker(), Line())
    watch, file = watch_of(trainer)
    watch.begin("walker Line", 0, 60)
    for _ in range(3):
        watch.advance()
    watch.close()
    assert (
        file.getvalue()
        == """\
walker Line: step 0 of 60, episode 1
--o--
return 0 at step 0 of the episode
compiling ...

walker Line: step 1 of 60, episode 1
---o-
return 0 at step 1 of the episode
epsilon 0.5, loss 0.25

walker Line: step 2 of 60, episode 1
----o
return 1 at step 2 of the episode, its last
steps of the last episodes: 2
epsilon 0.5, loss 0.25

walker Line: step 3 of 60, episode 2
---o-
return 0 at step 1 of the episode
steps of the last episodes: 2
epsilon 0.5, loss 0.25

"""
    )


@pytest.mark.least_optimised
def test_of_a_long_rollout_every_step_is_seen():
    trainer = trainer_of(Walker(length=5, num_envs=2), Line(), 40)
    watch, file = watch_of(trainer)
    watch.begin("walker Line", 20, 40, episodes=7)
    record = watch.advance()
    assert record.episodes.lengths.shape == (1, 1, 5, 2)
    assert pictures(file.getvalue()) == ["--o--", "---o-", "----o", "---o-", "----o", "---o-"]
    steps = [line.split(": ")[1] for line in file.getvalue().splitlines() if line.startswith("walker")]
    assert steps[1:] == [f"step {20 + 2 * (t + 1)} of 40, episode {e}" for t, e in enumerate([8, 8, 10, 10, 12])]


def test_what_is_seen_is_what_happens():
    """With randomness in the world and in the algorithm: where no episode ends, the states seen are those in which
    acting goes on, and the returns and lengths of episodes that end are those of the record."""
    trainer: Any = trainer_of(LEARNER, SLIPPERY, STEPS, seeds=2)
    ended = 0
    for _ in range(60):
        before = jax.device_get(trainer.state.actor)
        seen = jax.device_get(next_round(trainer.algorithm, trainer.environment, trainer.state))
        record = trainer.advance(1)
        after = jax.device_get(trainer.state.actor)
        assert seen.states.shape == seen.rewards.shape == (1,)
        assert abs(seen.states[0] - before.env_state[0, 0]) == 1
        assert seen.ended[0] == (record.episodes.lengths[0, 0, 0, 0] > 0)
        if seen.ended[0]:
            assert before.episode_return[0, 0] + seen.rewards[0] == record.episodes.returns[0, 0, 0, 0]
            ended += 1
        else:
            assert seen.states[0] == after.env_state[0, 0]
    assert 5 < ended < 40


@pytest.mark.least_optimised
@pytest.mark.parametrize(("pace", "period"), [(10.0, 0.1), (4.0, 0.25), (float("inf"), 0.0)])
def test_the_pace_is_kept_and_an_end_is_looked_at_longer(pace, period):
    """Six steps, of which every second ends an episode and takes three times as long."""
    clock = Clock()
    watch, file = watch_of(trainer_of(Walker(), Line()), pace, clock)
    watch.begin("walker Line", 0, 60)
    for _ in range(6):
        watch.advance()
    assert sum(clock.slept) == pytest.approx((3 + 3 * 3) * period)
    assert max(clock.slept, default=0) <= 0.1, "it wakes often enough to be stopped"
    assert len(pictures(file.getvalue())) == 7


@pytest.mark.least_optimised
def test_time_that_was_lost_is_not_made_up_for():
    """Compiling took a minute; the steps after it are not shown any faster."""
    clock = Clock()
    watch, _ = watch_of(trainer_of(Walker(), Line()), 10.0, clock)
    watch.begin("walker Line", 0, 60)
    watch.advance()
    clock.now += 60.0
    clock.slept.clear()
    watch.advance()
    assert sum(clock.slept) == pytest.approx(0.3)


@pytest.mark.least_optimised
def test_on_a_terminal_it_is_drawn_in_place_and_given_back():
    hide, show, up = "\x1b[?25l", "\x1b[?25h", "\x1b[1A"
    watch, file = watch_of(trainer_of(Walker(), Line()), force_terminal=True)
    watch.begin("walker Line", 0, 60)
    for _ in range(4):
        watch.advance()
    watch.close()
    watch.close()
    text = file.getvalue()
    assert (text.count(hide), text.count(show)) == (1, 1) and text.rindex(show) > text.rindex(hide)
    assert text.count(up) > 4 * 3, "each drawing goes over the one before"
    assert [text.count(f"step {n} of 60") > 0 for n in range(5)] == [True] * 5
    assert "----o" in text and "its last" in text


@as_tree
class Standing(Walker):
    """Goes to and fro."""

    def init_carry(self, spec):
        return jnp.zeros(spec.num_envs, jnp.int32)

    def act(self, state, carry, obs, key, *, explore=True):
        return carry % 2, carry + 1, ()


@pytest.mark.least_optimised
def test_a_fast_pace_draws_a_terminal_no_oftener_than_can_be_seen():
    """A hundred steps, at a thousand a second: a tenth of a second, with four drawings. To a file goes every step."""
    trainer = trainer_of(Standing(length=100), Line(max_episode_steps=None), 200)
    options: Any
    for options, drawn in (({"force_terminal": True}, 1 + 4), ({}, 1 + 100)):
        clock = Clock()
        watch, file = watch_of(trainer, 1000.0, clock, **options)
        watch.begin("standing Line", 0, 200)
        watch.advance()
        assert sum(clock.slept) == pytest.approx(0.1)
        assert abs(file.getvalue().count(" of 200") - drawn) <= 1
        watch.close()


@pytest.mark.least_optimised
def test_a_terminal_without_braille_gets_question_marks():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")

    @as_tree
    class Round(Line):
        def scene(self, state):
            return Scene((0, 0), (1, 1), (Circle((0.5, 0.5), 0.4, "agent"),))

    options: Any
    for options in ({}, {"force_terminal": True}):
        watch, _ = watch_of(trainer_of(Walker(), Round()), file=file, **options)
        watch.begin("walker Round", 0, 60)
        watch.close()
    file.seek(0)
    assert "???" in file.read()


def timeless(run: Run) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "time"} for record in metrics.read(run.folder)]


def assert_same_run(one: Run, other: Run) -> None:
    first, second = (load_file(run.checkpoints()[-1]) for run in (one, other))
    assert first.keys() == second.keys() and len(first) > 3
    for name, leaf in first.items():
        assert leaf.tobytes() == second[name].tobytes(), name
    assert timeless(one) == timeless(other)
    assert any("episode_return" in record for record in timeless(one))


@pytest.mark.parametrize(
    ("algorithm", "world", "steps", "seeds"),
    [
        (LEARNER, SLIPPERY, STEPS, 2),
        pytest.param(Walker(length=4, num_envs=2), Line(), 808, 1, marks=pytest.mark.slow),
        (QLearning(epsilon=0.3), "FrozenLake-v1", 1_500, 1),
    ],
    ids=["fused", "rollouts", "host"],
)
def test_a_run_that_was_watched_is_the_same_to_the_last_bit(tmp_path, algorithm, world, steps, seeds):
    """Parameters, what goes on in the world, and every metric, although it learned one update at a time."""
    runs = []
    for name in ("alone", "watched"):
        trainer = trainer_of(algorithm, world, steps, seeds)
        run = run_of(tmp_path / name, algorithm, steps, seeds)
        watch = watch_of(trainer, float("inf"))[0] if name == "watched" else None
        training.train(run, trainer, watch=watch)
        trainer.close()
        runs.append(run)
        assert run.info["status"] == "finished"
    assert_same_run(*runs)


def test_ctrl_c_stops_at_the_next_step_and_saves(tmp_path):
    """Not at the end of the chunk, which at a person's pace may be minutes away; and the run goes on from there."""
    whole, run = (run_of(tmp_path / name, LEARNER, STEPS, 2) for name in ("whole", "stopped"))
    training.train(whole, trainer_of(LEARNER, SLIPPERY, STEPS, 2))
    trainer, clock = trainer_of(LEARNER, SLIPPERY, STEPS, 2), Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if len(clock.slept) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    watch = Watch(trainer, 10.0, console=Console(file=io.StringIO()), clock=clock, sleep=sleep)
    with pytest.raises(training.Interrupted, match=r"stopped at step \d+ of 802 and saved") as stopped:
        training.train(run, trainer, watch=watch)
    assert stopped.value.exit_status == 128 + signal.SIGINT and run.info["status"] == "interrupted"
    assert max(record["step"] for record in metrics.read(run.folder)) == run.info["step"] <= 2 * 5

    again = trainer_of(LEARNER, SLIPPERY, STEPS, 2)
    step = run.restore(again)
    watch, file = watch_of(again, float("inf"))
    training.train(run, again, step, watch=watch)
    assert f"step {step + 2} of 802" in file.getvalue()
    first, second = (load_file(r.checkpoints()[-1]) for r in (whole, run))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_a_resumed_run_goes_on_counting_its_episodes(tmp_path):
    algorithm = Walker()
    run = run_of(tmp_path / "run", algorithm, 20)
    trainer = trainer_of(algorithm, Line(), 20)
    training.train(run, trainer)
    run.info["config"]["total_timesteps"] = 24
    watch, file = watch_of(trainer, float("inf"))
    training.train(run, trainer, 20, watch=watch)
    assert "step 21 of 24, episode 11" in file.getvalue()


def test_what_is_not_finite_is_named_with_its_step_and_stops_at_once(tmp_path):
    algorithm = Walker(nan_from=33.0)
    trainer = trainer_of(algorithm, Line(), 2_000)
    watch, file = watch_of(trainer, float("inf"), force_terminal=True)
    with pytest.raises(NonFinite, match=r"loss became nan at step 33 .*last good checkpoint is at step 0"):
        training.train(run_of(tmp_path / "run", algorithm, 2_000), trainer, watch=watch)
    assert "step 34 of" not in file.getvalue()
    assert file.getvalue().count("\x1b[?25h") == 1, "the terminal is given back"


def test_the_other_display_is_silent_meanwhile(tmp_path, capsys):
    algorithm = Walker()
    trainer = trainer_of(algorithm, Line(), 20)
    watch, _ = watch_of(trainer, float("inf"))
    progress = Progress("walker Line", 20, 1)
    training.train(run_of(tmp_path / "run", algorithm, 20), trainer, 0, progress, watch)
    assert capsys.readouterr() == ("", "")


def test_gymnasiums_environments_are_shown_by_their_text():
    """With the last state of each episode, which Gymnasium's own rendering has left by then."""
    trainer = trainer_of(QLearning(epsilon=1.0), "FrozenLake-v1", 300)
    watch, file = watch_of(trainer, float("inf"))
    watch.begin("q-learning FrozenLake-v1", 0, 300)
    ended = sum(int((watch.advance().episodes.lengths > 0).sum()) for _ in range(60))
    trainer.close()
    frames = file.getvalue().split("\n\n")[1:-1]
    assert len(frames) == 60 and 2 < ended < 20
    at = "\x1b[41m"
    assert all(frame.count(at) == 1 for frame in frames), "the agent is somewhere"
    last = [frame for frame in frames if ", its last" in frame]
    assert len(last) == ended
    assert all(frame[frame.index(at) + len(at)] in "HG" for frame in last)
    lengths = [int(frame.split("at step ")[1].split()[0]) for frame in last]
    assert sum(lengths) <= 60 and lengths[0] == frames.index(last[0]) + 1


def test_what_cannot_be_watched_is_told_in_a_sentence():
    world: Any = Line()

    @as_tree
    class Sceneless:
        max_episode_steps: int | None = 5
        observation_space, action_space = Discrete(CELLS), Discrete(2)

        def reset(self, key):
            return world.reset(key)

        def step(self, state, action, key):
            return world.step(state, action, key)

    with pytest.raises(TreadleError, match=r"--watch cannot draw Sceneless: the world has no method scene\(state\)"):
        Watch(trainer_of(Walker(), Sceneless()))
    host = make_trainer(Walker(), "CartPole-v1", 60, loop="host")
    with pytest.raises(
        TreadleError, match=r"draw CartPole-v1: Gymnasium does not render it as text\. Leave --loop host"
    ):
        Watch(host)
    host.close()
    vector = make_trainer(Walker(num_envs=2), gymnasium.make_vec("FrozenLake-v1", 2, vectorization_mode="sync"), 60)
    with pytest.raises(InvalidSetting, match="is a vector environment, whose parts cannot be reached"):
        Watch(vector)
    vector.close()
    for pace in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidSetting, match=r"watch_pace \(--watch-pace\) was .*; it must be more than 0"):
            Watch(trainer_of(Walker(), Line()), pace)
