"""The learner's side of many workers: what may be begun, what counts, and what is dropped. Without workers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle.loops.desk import Desk, LearnerState
from treadle.loops.rollout import Episodes
from treadle.loops.totals import Totals
from treadle.loops.workers import Contribution
from treadle.types import Counter

pytestmark = pytest.mark.least_optimised


class Book:
    """Stands in for compiled programs: the learner's state is the list of what it learned from."""

    def __init__(self):
        self.totals = Totals(["loss"], {})
        self.settings = SimpleNamespace(pack=lambda algorithm: ())
        self.state = SimpleNamespace(pack=lambda state: state, unpack=lambda state: state)

    def share(self, settings, state):
        return state

    def apply(self, settings, state, payload):
        return (*state, payload), (*state, payload)

    def update(self, settings, state, rollouts, key, number):
        learned = (*state, tuple(rollouts))
        return learned, learned, np.ones((2, 1), np.float32)


def desk(sends_gradients: bool = False, **settings: Any) -> Desk:
    post: Any = SimpleNamespace(algorithm=None, sends_gradients=sends_gradients)
    programs: Any = Book()
    made = Desk(post, programs, LearnerState((), Counter(jnp.zeros((), jnp.int32)), jax.random.key(0)), **settings)
    made.ask(100)
    return made


def answer(what: Any) -> Contribution:
    episodes = Episodes(np.zeros((2, 1), np.float32), np.zeros((2, 1), np.int32))
    return Contribution(what, np.ones((2, 1), np.float32), episodes)


def learned(made: Desk) -> Any:
    return made.state.algorithm


def begin(made: Desk, worker: int, now: float = 0.0, **settings: Any) -> Any:
    task = made.begin(worker, now, **settings)
    assert task is not None
    return task


def metric(made: Desk, name: str) -> float:
    found = made.take_record().metrics[name]
    return float(found.total[0] / found.weight[0])


def test_gradients_are_applied_as_they_come_whatever_the_age_of_their_snapshot():
    made = desk(sends_gradients=True)
    a, b = begin(made, 0), begin(made, 1)
    assert (a.version, b.version) == (0, 0) and a.number != b.number
    assert made.take(1, b.number, answer("b"), 1.0)
    again = begin(made, 1)
    assert again.version == 1 and again.shared == ("b",)
    assert made.take(0, a.number, answer("a"), 2.0)
    assert learned(made) == ("b", "a") and made.version == 2
    assert metric(made, "staleness") == 0.5


def test_no_more_gradients_are_begun_than_are_asked_for():
    made = desk(sends_gradients=True)
    made.target = 2
    tasks = [begin(made, worker) for worker in (0, 1)]
    assert made.begin(2, 0.0) is None
    assert made.begin(2, 0.0, ahead=True) is not None
    for worker, task in enumerate(tasks):
        made.take(worker, task.number, answer(worker), 1.0)
    assert made.is_done and made.begin(0, 2.0) is None


def test_an_answer_counts_once_and_none_of_a_worker_that_was_lost():
    made = desk(sends_gradients=True)
    task = begin(made, 0)
    assert made.take(0, task.number, answer("a"), 1.0)
    assert not made.take(0, task.number, answer("a"), 1.0)
    lost = begin(made, 0)
    made.lost(0)
    instead = begin(made, 0)
    assert not made.take(0, lost.number, answer("lost"), 2.0)
    assert made.take(0, instead.number, answer("instead"), 2.0)
    assert learned(made) == ("a", "instead")


def test_an_update_takes_as_many_rollouts_as_it_needs_in_the_order_of_workers():
    made = desk(needed=2, patience=2.0)
    a, b = begin(made, 0), begin(made, 1)
    assert made.begin(2, 0.0) is None  # two are on their way
    made.take(1, b.number, answer("b"), 1.0)
    assert made.begin(1, 1.0) is None and learned(made) == ()
    made.take(0, a.number, answer("a"), 1.5)
    assert learned(made) == (("a", "b"),)
    record = made.take_record()
    assert record.episodes.returns.shape == (1, 2, 2)
    assert begin(made, 2).version == 1


def test_a_straggler_is_not_waited_for_and_its_rollout_is_dropped():
    made = desk(needed=2, patience=2.0)
    for now in (0.0, 1.0):
        a, b = begin(made, 0, now), begin(made, 1, now)
        made.take(0, a.number, answer("a"), now + 1)
        made.take(1, b.number, answer("b"), now + 1)
    fast, slow = begin(made, 0, 2.0), begin(made, 1, 2.0)
    made.take(0, fast.number, answer("fast"), 3.0)
    assert made.begin(0, 3.9) is None  # tasks take a second, and the other has had 1.9
    surplus = begin(made, 0, 4.1)
    made.take(0, surplus.number, answer("surplus"), 5.0)
    assert learned(made)[-1] == ("fast", "surplus")
    assert not made.take(1, slow.number, answer("slow"), 6.0)
    assert learned(made)[-1] == ("fast", "surplus")
    assert metric(made, "dropped") == pytest.approx(1 / 7)


def test_without_patience_each_worker_gives_one_rollout_to_every_update():
    made = desk(needed=2, patience=None)
    a, b = begin(made, 0), begin(made, 1)
    made.take(0, a.number, answer("a"), 1.0)
    assert made.begin(0, 1e6) is None
    made.take(1, b.number, answer("b"), 1e6)
    assert learned(made) == (("a", "b"),)


def test_where_a_worker_is_gone_the_others_stand_in():
    made = desk(needed=2, patience=None)
    a, _ = begin(made, 0), begin(made, 1)
    made.lost(1)
    made.alive = 1
    made.take(0, a.number, answer("a"), 1.0)
    more = begin(made, 0, 1.0)
    made.take(0, more.number, answer("more"), 2.0)
    assert learned(made) == (("a", "more"),)


def test_rollouts_that_are_not_too_old_teach():
    made = desk(needed=1, max_staleness=1, patience=2.0)
    a, b = begin(made, 0), begin(made, 1)
    assert made.begin(2, 0.0) is None
    made.take(0, a.number, answer("a"), 1.0)
    made.take(1, b.number, answer("b"), 1.0)  # of the policy before that update
    assert learned(made) == (("a",), ("b",))
    assert metric(made, "staleness") == 0.5


def test_a_state_that_is_restored_takes_no_answer_from_before():
    made = desk(sends_gradients=True)
    a, out = begin(made, 0), begin(made, 1)
    made.take(0, a.number, answer("a"), 1.0)
    kept = made.state
    made.restore(kept)
    assert made.version == 1 and learned(made) == ("a",)
    assert not made.take(1, out.number, answer("out"), 2.0)
    assert learned(made) == ("a",)
