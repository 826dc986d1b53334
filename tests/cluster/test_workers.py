"""Workers of a cluster for one learner: what is learned is what is counted, whatever happens to them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import ray

from cluster import worlds
from treadle import A2C, A3C, PPO, CartPole, Crew
from treadle.cli import main
from treadle.errors import TreadleError
from treadle.loops.choose import make_trainer
from treadle.loops.cluster import workers as ray_workers
from treadle.loops.cluster.connection import connect
from treadle.loops.cluster.remote import Limits, WorkerFailed
from treadle.loops.crew import CrewSeeds
from treadle.loops.desk import Desk

pytestmark = pytest.mark.least_optimised

A3C_SMALL = A3C(hidden_sizes=(4,), rollout_length=5, num_envs=2)
A2C_SMALL = A2C(hidden_sizes=(4,), rollout_length=5, num_envs=2)
PPO_SMALL = PPO(hidden_sizes=(4,), rollout_length=5, num_envs=4, num_minibatches=2, epochs=1)


@pytest.fixture(autouse=True)
def _not_connected() -> Iterator[None]:
    ray.shutdown()
    yield
    ray.shutdown()


class Team:
    """A trainer with workers, and what was told of them."""

    def __init__(self, algorithm: Any, environment: Any, address: str, **crew: Any):
        self.told: list[str] = []
        crew = {"workers": 2, "address": address, "worker_timeout": 60.0} | crew
        self.per_update = algorithm.num_steps * algorithm.num_envs
        made = make_trainer(algorithm, environment, 1_000_000, crew=Crew("ray", **crew))
        assert isinstance(made, CrewSeeds)
        self.trainer, engines = made, made._engines
        self.engine: Any = engines[0]
        self.engine._log = self.told.append
        self.updates = 0

    def advance(self, updates: int) -> dict[str, float]:
        """So many updates and no more; what they report."""
        record = self.trainer.advance(updates)
        self.updates += updates
        lengths, returns = record.episodes.lengths, record.episodes.returns
        assert lengths[0].size == updates * self.per_update
        state = self.trainer.state
        learner = getattr(state.algorithm, "learner", state.algorithm)
        assert int(state.updates.value[0]) == self.updates
        assert int(learner.schedule.step.value[0]) == self.updates * self.per_update
        assert 0 < lengths.sum() <= self.updates * self.per_update + 1_000
        assert (returns[lengths > 0] == lengths[lengths > 0]).all()  # each step has a reward of 1
        return {
            name: float(m.total.sum() / m.weight.sum()) for name, m in record.metrics.items() if hasattr(m, "total")
        }

    def until(self, is_so: Callable[[dict[str, float]], bool], updates: int = 5, seconds: float = 60.0) -> int:
        """Updates until their report is so."""
        until, before = time.monotonic() + seconds, self.updates
        while not is_so(metrics := self.advance(updates)):
            assert time.monotonic() < until, (metrics, self.told)
        return self.updates - before

    def pids(self) -> list[int]:
        return [seen.pid for seen in self.engine.processes() if seen is not None]

    def nodes(self) -> list[str]:
        return [seen.node for seen in self.engine.processes() if seen is not None]


@pytest.fixture
def team(address: str, request: pytest.FixtureRequest) -> Callable[..., Team]:
    """One that is closed in the end, by when its workers must be gone."""

    def make(algorithm: Any, environment: Any, **crew: Any) -> Team:
        made = Team(algorithm, environment, address, **crew)

        def end() -> None:
            pids = made.pids() if ray.is_initialized() else []
            made.trainer.close()
            for pid in pids:
                wait_for_end_of(pid)

        request.addfinalizer(end)
        return made

    return make


@pytest.fixture
def learned_from(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Observations `[T, b, 2]` of the rollouts that were taken."""
    seen: list[np.ndarray] = []
    take = Desk.take

    def noting(self: Desk, worker: int, number: int, contribution: Any, *rest: Any) -> bool:
        taken = take(self, worker, number, contribution, *rest)
        if taken:
            seen.append(np.asarray(contribution.payload.obs))
        return taken

    monkeypatch.setattr(Desk, "take", noting)
    return seen


def assert_each_once(rollouts: list[np.ndarray], processes: int) -> None:
    """No transition was learned from twice, and so many processes brought them."""
    steps = np.concatenate([obs.reshape(-1, 2) for obs in rollouts])
    assert len(np.unique(steps, axis=0)) == len(steps)
    assert len(np.unique(steps[:, 0])) == processes


def limited(monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
    monkeypatch.setattr(ray_workers, "Limits", Limited(**limits))


class Limited:
    """In the place of `Limits`: others than its own, whatever is asked for."""

    silence = Limits.silence

    def __init__(self, **limits: Any):
        self._limits = Limits(**limits)

    def __call__(self, **_: Any) -> Limits:
        return self._limits


def wait_for_end_of(pid: int) -> None:
    until = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < until, f"the worker's process {pid} goes on"
        time.sleep(0.1)


class Sign:
    """A file at the sight of which one of the processes has an incident."""

    def __init__(self, folder: Path):
        self.path = folder / "sign"

    def give(self) -> None:
        self.path.touch()

    def finder(self) -> int:
        """The process that has seen it."""
        until = time.monotonic() + 60
        while not (found := list(self.path.parent.glob("sign.*"))):
            assert time.monotonic() < until
            time.sleep(0.02)
        return int(found[0].suffix[1:])


@pytest.fixture
def sign(tmp_path: Path) -> Sign:
    return Sign(tmp_path)


def beside(do: Callable[[], None]) -> None:
    threading.Thread(target=do, daemon=True).start()


@pytest.mark.parametrize("algorithm", [A3C_SMALL, PPO_SMALL], ids=["a3c", "ppo"])
@pytest.mark.parametrize("environment", [worlds.numbered(), CartPole()], ids=["host", "world"])
def test_what_is_learned_is_what_is_counted(team, monkeypatch, algorithm, environment):
    puts: list[Any] = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda *given: puts.append(None) or put(*given))
    two = team(algorithm, environment)
    for updates in (20, 1):
        two.advance(updates)
    two.until(lambda metrics: metrics["workers"] == 2)
    metrics = two.advance(30)
    assert metrics["workers"] == 2 and metrics["steps_per_second"] > 0
    assert 0 <= metrics["staleness"] <= (2 if algorithm.name == "a3c" else 0) and 0 <= metrics["queue"] < 2
    assert 10 < len(puts) <= two.updates + 1, "parameters travel once for each version"
    assert two.told == []


def test_waiting_for_every_worker_makes_a_run_that_can_be_repeated(team):
    runs = []
    for _ in range(2):
        two = team(A2C_SMALL, CartPole(), patience=None)
        two.advance(10)
        runs.append(two.trainer.policies())
    for x, y in zip(*map(jax.tree.leaves, runs), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_worker_is_killed_while_it_collects(team, sign, learned_from):
    two = team(A2C_SMALL, worlds.numbered(incident="hangs", sign=str(sign.path)))
    two.until(lambda metrics: metrics["workers"] == 2)
    sign.give()
    beside(lambda: os.kill(sign.finder(), signal.SIGKILL))
    two.until(lambda metrics: metrics["workers"] == 2 and len(two.told) == 1)
    two.advance(20)
    assert two.told in [[f"worker {i} was lost: its process ended. It is started anew."] for i in (0, 1)]
    assert_each_once(learned_from, processes=3)


def test_a_worker_hangs(team, sign, learned_from):
    two = team(A2C_SMALL, worlds.numbered(incident="hangs", sign=str(sign.path)), worker_timeout=1.5)
    two.until(lambda metrics: metrics["workers"] == 2)
    sign.give()
    two.until(lambda metrics: metrics["workers"] == 2 and len(two.told) == 1)
    two.advance(20)
    (line,) = two.told
    assert line.endswith("was lost: it took longer than 1.5 seconds for a rollout. It is started anew.")
    wait_for_end_of(sign.finder())
    assert_each_once(learned_from, processes=3)


def test_workers_fall_and_rise_as_one_raises_an_error_once(team, sign):
    two = team(A3C_SMALL, worlds.numbered(incident="raises", sign=str(sign.path)))
    two.until(lambda metrics: metrics["workers"] == 2)
    sign.give()
    two.until(lambda metrics: metrics["workers"] == 1)
    assert two.until(lambda metrics: metrics["workers"] == 2) > 5, "the other worked on meanwhile"
    (line,) = two.told
    said = "was lost: its environment or algorithm raised RuntimeError: the wheel came off (worlds.py, line "
    assert said in line and line.endswith("). It is started anew.")


def test_an_environment_that_always_raises_ends_the_run_with_a_sentence(team, monkeypatch):
    limited(monkeypatch, losses=1)
    two = team(A3C_SMALL, worlds.numbered(incident="raises", at=3))
    said = (
        r"worker \d was lost, 2 times without a rollout between: its environment or algorithm raised RuntimeError: the "
        r"wheel came off \(worlds.py, line \d+\). The run was stopped."
    )
    with pytest.raises(WorkerFailed, match=said) as caught:
        two.advance(10)
    assert "in step" in str(caught.value.__cause__)
    with pytest.raises(WorkerFailed, match="the wheel came off"):
        two.advance(10)


@pytest.fixture
def driver(cluster: Any) -> Iterator[None]:
    """This process is connected already; `team` is to be asked for after it."""
    with connect(cluster.address):
        yield


@contextlib.contextmanager
def held(*cpus: int) -> Iterator[None]:
    """While it lasts, so many CPUs of a node are taken, for each number."""

    class Holder:
        def is_there(self) -> bool:
            return True

    holder: Any = ray.remote(Holder)
    made = [holder.options(num_cpus=count).remote() for count in cpus]
    assert all(ray.get([one.is_there.remote() for one in made], timeout=60))
    yield
    for one in made:
        ray.kill(one)


@contextlib.contextmanager
def another_node(cluster: Any) -> Iterator[Any]:
    """With one CPU; it may be removed meanwhile."""
    made = cluster.add_node(num_cpus=1)
    try:
        yield made
    finally:
        if made in cluster.list_all_nodes():
            cluster.remove_node(made, allow_graceful=False)


def test_a_node_leaves_and_another_comes(driver, team, cluster, monkeypatch):
    """It costs its worker only, which comes back when there is a place for it again."""
    limited(monkeypatch, start=24)
    with held(2, 1), another_node(cluster) as first_node, contextlib.ExitStack() as later:
        two = team(A3C_SMALL, worlds.numbered(pause=0.002))
        two.until(lambda metrics: metrics["workers"] == 2)
        assert first_node.node_id in two.nodes()
        two.told.clear()  # where the machine is busy, of a slow beginning
        cluster.remove_node(first_node, allow_graceful=False)
        two.until(lambda metrics: metrics["workers"] == 1)
        two.until(lambda _: "has no process after" in two.told[-1])
        second_node = later.enter_context(another_node(cluster))
        two.until(lambda metrics: metrics["workers"] == 2)
        assert second_node.node_id in two.nodes()
        *left, missed, back = two.told
        assert any(line.endswith("was lost: its node left the cluster. It is started anew.") for line in left), left
        assert "(2 nodes with 4 CPUs in all, of which 0 are free)" in missed
        assert back.endswith("has a process again, and goes on with fresh environments.")
        two.advance(10)
        two.trainer.close()


def test_without_any_place_for_workers_the_run_ends_with_a_sentence(driver, team, monkeypatch):
    limited(monkeypatch, start=3)
    with held(2, 2):
        two = team(A3C_SMALL, worlds.numbered())
        said = r"no worker has had a process for 3 seconds \(2 nodes with 4 CPUs in all, of which 0 are free\)"
        with pytest.raises(WorkerFailed, match=said):
            two.advance(1)


def test_an_environment_that_cannot_be_sent(team):
    with pytest.raises(TreadleError, match=r"cannot be sent to workers .*name that a file of --import"):
        team(A3C_SMALL, worlds.cannot_be_sent())


def test_the_driver_is_killed_and_the_run_gone_on_with(cluster, tmp_path):
    folder, where = tmp_path / "run", ["--address", cluster.address]
    flags = ["--engine", "ray", "--workers", "2", "--preset", "none", "--hidden-sizes", "4", "--out", str(folder)]
    periods = ["--checkpoint-period", "400", "--total-timesteps", "10000000"]
    command = [sys.executable, "-m", "treadle", "train", "a3c", "Pendulum-v1", *flags, *periods, *where]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as driver:
        until = time.monotonic() + 90
        while not chunks(folder)[2:]:
            assert driver.poll() is None and time.monotonic() < until, driver.communicate()[1]
            time.sleep(0.05)
        orphans = actors(cluster)
        driver.kill()
    assert len(orphans) == 2
    for pid in orphans:
        wait_for_end_of(pid)
    total = chunks(folder)[-1]["step"] + 1_000
    assert main(["resume", str(folder), *where, "--total-timesteps", str(total)]) == 0
    lines = chunks(folder)
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)) and steps[-1] == total
    assert all(line["workers"] in (1, 2) for line in lines)
    assert all({"staleness", "queue", "steps_per_second"} < set(line) for line in lines)
    found = [line["step"] for line in metrics_of(folder)]
    assert found == sorted(found)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    return (
        [json.loads(line) for line in file.read_text().splitlines(True) if line.endswith("\n")] if file.exists() else []
    )


def chunks(folder: Path) -> list[dict[str, Any]]:
    """What was reported of each."""
    return [line for line in metrics_of(folder) if "workers" in line]


def actors(cluster: Any) -> list[int]:
    """The processes of workers on a cluster's nodes."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]
    children = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in raylets]
    return [int(pid) for own in children for pid in own if _command(pid).startswith("ray::Worker")]


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


MISTAKES = {
    "nobody": (["--address", "NOBODY"], "cannot be reached"),
    "too many workers": (["--address", "CLUSTER", "--workers", "5"], r"workers (--workers) was 5"),
    "seeds": (["--seeds", "2"], "seeds was 2"),
    "watch": (["--address", "CLUSTER", "--watch"], "--watch shows one learner that acts by itself"),
    "save data": (["--save-data", "x.safetensors"], "--save-data is for one loop without workers"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_a_sentence(address, tmp_path, capfd, mistake):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    flags, sentence = MISTAKES[mistake]
    named = {"NOBODY": f"127.0.0.1:{port}", "CLUSTER": address}
    flags = [named.get(flag, flag) for flag in ["--workers", "2", *flags]]
    folder = tmp_path / "run"
    began = time.monotonic()
    command = ["train", "a3c", "CartPole-v1", "--engine", "ray", "--preset", "none", "--out", str(folder), *flags]
    assert main(command) == 2
    assert time.monotonic() - began < 30
    said = capfd.readouterr().err
    assert sentence in said and said.startswith("treadle: ") and said.count("\n") == 1
    assert not folder.exists()


def test_a_study_on_a_cluster_cannot_be_watched_in_the_terminal(address, tmp_path, capfd):
    flags = ["--engine", "ray", "--address", address, "--workers", "2", "--seeds", "2", "--preset", "none"]
    assert main(["train", "q-learning", "Maze", *flags, "--out", str(tmp_path / "run"), "--watch"]) == 2
    assert "--watch shows one learner that acts by itself" in capfd.readouterr().err
