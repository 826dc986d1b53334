"""Studies on a cluster: the same numbers as here, whatever happens to the workers."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import ray

from cluster import worlds
from treadle import DQN, QLearning, checkpoint, hoist, training
from treadle.errors import InvalidSetting, TreadleError
from treadle.loops import seeds
from treadle.loops.choose import make_trainer
from treadle.loops.cluster.remote import Limits, WorkerFailed
from treadle.loops.cluster.seeds import RaySeeds
from treadle.loops.execution import seed_mesh
from treadle.run import Run, RunConfig

pytestmark = pytest.mark.usefixtures("connected")

SMALL = DQN(num_envs=2, capacity=301, batch_size=8, learning_starts=10, target_update_period=15, hidden_sizes=(8,))
TABLE = QLearning()
STEPS = 4_000


def study(environment: Any, algorithm: Any = SMALL, num_seeds: int = 3, **options: Any) -> RaySeeds:
    return RaySeeds(algorithm, environment, STEPS, 5, num_seeds, **{"workers": 2, "log": _no_log} | options)


def alone(environment: Any, algorithm: Any = SMALL, num_seeds: int = 3, **options: Any) -> Any:
    return make_trainer(algorithm, environment, STEPS, 5, num_seeds, **options)


def _no_log(line: str) -> None:
    raise AssertionError(f"nothing was to happen, and there is: {line}")


def assert_same(a: Any, b: Any) -> None:
    """Equal in structure, in types, and to the last bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        x, y = (jax.random.key_data(leaf) if hoist.is_key(leaf) else leaf for leaf in (x, y))
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def assert_goes_on_the_same(plain: Any, spread: RaySeeds, chunks: tuple[int, ...] = (20, 20)) -> None:
    for num_updates in chunks:
        assert_same(plain.advance(num_updates), spread.advance(num_updates))
    assert_same(plain.state, spread.state)


def pids(spread: RaySeeds) -> list[int]:
    """The workers' processes."""
    return [seen.pid for seen in spread.processes() if seen is not None]


def nodes(spread: RaySeeds) -> list[str]:
    """Those on which the workers are."""
    return [seen.node for seen in spread.processes() if seen is not None]


def wait_for_end_of(pid: int) -> None:
    until = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < until, f"the worker's process {pid} goes on"
        time.sleep(0.1)


def soon(do: Callable[[], None], seconds: float = 0.3) -> None:
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    timer.start()


@pytest.fixture(autouse=True)
def _one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained here is trained on one device, as in a worker: a program for several rounds differently."""
    mesh = seed_mesh(1)
    monkeypatch.setattr(seeds, "seed_mesh", lambda num_seeds: mesh)


@pytest.fixture
def spreads(request: pytest.FixtureRequest) -> Callable[..., RaySeeds]:
    """`study`, of which what was made is closed in the end."""

    def make(*given: Any, **options: Any) -> RaySeeds:
        made = study(*given, **options)
        request.addfinalizer(made.close)
        return made

    return make


@pytest.mark.parametrize(
    ("environment", "options"),
    [("CartPole-v1", {"loop": "fused", "keep_data": True}), ("CartPole-v1", {"loop": "host"}), (worlds.walk, {})],
    ids=["fused", "host", "a function"],
)
def test_the_numbers_are_those_without_a_cluster(spreads, environment, options):
    plain, spread = alone(environment, **options), spreads(environment, **options)
    assert_same(plain.state, spread.state)
    assert_goes_on_the_same(plain, spread)
    assert_same(plain.policies(), spread.policies())
    assert (spread.exact_resume, spread.num_seeds) == (plain.exact_resume, 3)
    assert spread.spec.num_envs == plain.spec.num_envs


def test_a_state_is_gone_on_from(spreads):
    plain = alone("Maze", TABLE)
    plain.advance(30)
    spread = spreads("Maze", TABLE)
    spread.advance(7)
    spread.restore(plain.state)
    assert_goes_on_the_same(plain, spread)


def test_a_run_has_the_same_folder(spreads, tmp_path):
    config = RunConfig(total_timesteps=STEPS, seeds=3, seed=5)
    folders = []
    for name, make in (("alone", alone), ("spread", spreads)):
        out = dataclasses.replace(config, out=str(tmp_path / name))
        run = Run.create("q-learning", "Maze", TABLE, out)
        training.train(run, make("Maze", TABLE))
        folders.append(run)
    first, second = folders
    assert [p.name for p in first.checkpoints()] == [p.name for p in second.checkpoints()]
    like = alone("Maze", TABLE).state
    assert_same(*(checkpoint.load(run.checkpoints()[-1], like)[0] for run in folders))
    assert _metrics(first.folder) == _metrics(second.folder)


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


@pytest.mark.parametrize("fetched", [False, True], ids=["from the beginning", "from the last checkpoint"])
def test_a_worker_that_is_killed_is_started_anew_and_the_numbers_stay(spreads, fetched):
    lines: list[str] = []
    plain, spread = alone("Maze", TABLE), spreads("Maze", TABLE, log=lines.append)
    if fetched:
        assert_goes_on_the_same(plain, spread)
    former = pids(spread)
    assert_same(plain.advance(20), spread.advance(20))
    os.kill(former[0], signal.SIGKILL)
    assert_goes_on_the_same(plain, spread)
    assert lines == ["worker 0 (seeds 0 to 1) was lost (its process ended) and is started anew"]
    assert pids(spread)[0] != former[0] and pids(spread)[1] == former[1]


def test_a_worker_may_be_killed_while_it_works(spreads):
    lines: list[str] = []
    plain, spread = alone(worlds.walk), spreads(worlds.walk, log=lines.append)
    assert_same(plain.advance(20), spread.advance(20))
    victim = pids(spread)[1]
    soon(lambda: os.kill(victim, signal.SIGKILL))
    assert_same(plain.advance(1_500), spread.advance(1_500))
    assert_goes_on_the_same(plain, spread)
    assert lines == ["worker 1 (seed 2) was lost (its process ended) and is started anew"]


def test_a_host_loop_goes_on_from_a_checkpoint_with_new_episodes(spreads):
    lines: list[str] = []
    spread = spreads(worlds.walk, log=lines.append)
    spread.advance(20)
    assert int(spread.state.updates.value[0]) == 20
    os.kill(pids(spread)[0], signal.SIGKILL)
    spread.advance(20)
    assert [int(n) for n in spread.state.updates.value] == [40, 40, 40]
    assert lines[0].endswith("is started anew, its environments at the start of new episodes")


def test_a_worker_that_is_silent_is_started_anew(spreads):
    lines: list[str] = []
    limits = Limits(silence=4)
    plain, spread = alone("Maze", TABLE), spreads("Maze", TABLE, log=lines.append, limits=limits)
    assert_goes_on_the_same(plain, spread)
    victim = pids(spread)[0]
    os.kill(victim, signal.SIGSTOP)
    assert_goes_on_the_same(plain, spread)
    (line,) = lines
    assert "it gave no sign of life for 4 seconds" in line
    wait_for_end_of(victim)


def test_a_node_that_is_removed(spreads, cluster):
    lines: list[str] = []
    added = cluster.add_node(num_cpus=2)
    spread = spreads("Maze", TABLE, num_seeds=6, workers=3, log=lines.append)
    plain = alone("Maze", TABLE, num_seeds=6)
    assert_goes_on_the_same(plain, spread)
    assert nodes(spread).count(added.node_id) == 1, "workers are spread over the nodes"
    victim = pids(spread)[nodes(spread).index(added.node_id)]
    cluster.remove_node(added, allow_graceful=False)
    wait_for_end_of(victim)
    assert_goes_on_the_same(plain, spread)
    (line,) = lines
    assert "was lost (its node left the cluster) and is started anew" in line
    assert len(nodes(spread)) == 3 and added.node_id not in nodes(spread)


def test_where_a_node_leaves_and_no_core_is_free_workers_share_one(spreads, cluster):
    lines: list[str] = []
    added = cluster.add_node(num_cpus=2)
    spread = spreads("Maze", TABLE, num_seeds=6, workers=6, log=lines.append)
    plain = alone("Maze", TABLE, num_seeds=6)
    assert_goes_on_the_same(plain, spread)
    there = [pid for pid, node in zip(pids(spread), nodes(spread), strict=True) if node == added.node_id]
    assert len(there) == 2
    for worker in spread._workers:
        worker.limits = Limits(start=20)
    cluster.remove_node(added, allow_graceful=False)
    for victim in there:
        wait_for_end_of(victim)
    assert_goes_on_the_same(plain, spread)
    assert sum("shares a core with another from now on" in line for line in lines) == 2
    assert added.node_id not in nodes(spread)


def test_an_environment_that_hangs_is_started_anew(spreads, tmp_path):
    lines: list[str] = []
    sign = tmp_path / "sign"
    world = worlds.numbered(incident="hangs", sign=str(sign))
    spread = spreads(world, num_seeds=2, workers=2, log=lines.append, limits=Limits(step=3))
    spread.advance(20)
    sign.touch()
    spread.advance(20)
    (line,) = lines
    assert "its environment took longer than 3 seconds for a step" in line
    assert [int(n) for n in spread.state.updates.value] == [40, 40]


def test_an_environment_that_raises_ends_the_run_with_a_sentence(spreads):
    spread = spreads(worlds.breaks)
    said = (
        r"worker \d \(seed.*\) stopped, because its environment or algorithm raised RuntimeError: the wheel came off "
        r"\(worlds.py, line \d+\)."
    )
    with pytest.raises(WorkerFailed, match=said) as caught:
        spread.advance(20)
    assert "in happen" in str(caught.value.__cause__)
    with pytest.raises(WorkerFailed, match="the wheel came off"):
        spread.advance(20)


def test_an_environment_that_ends_its_process_again_and_again(spreads):
    lines: list[str] = []
    spread = spreads(worlds.dies, num_seeds=1, workers=1, limits=Limits(losses=1), log=lines.append)
    with pytest.raises(WorkerFailed, match=r"worker 0 \(seed 0\) was lost 2 times in the same stretch"):
        spread.advance(20)
    assert len(lines) == 1


def test_where_there_is_no_room_it_says_so(spreads):
    class Holder:
        def is_there(self) -> bool:
            return True

    holder: Any = ray.remote(Holder)
    held: list[Any] = [holder.options(num_cpus=2).remote() for _ in range(2)]
    assert all(ray.get([one.is_there.remote() for one in held], timeout=60))
    said = r"no process could be started for it within 3 seconds \(2 nodes with 4 CPUs in all, of which 0 are free\)"
    try:
        with pytest.raises(WorkerFailed, match=said):
            spreads("Maze", TABLE, limits=Limits(start=3))
    finally:
        for one in held:
            ray.kill(one)


def test_an_environment_that_cannot_be_sent(spreads):
    said = r"the environment .*locked_walk.* cannot be sent to workers .*name that a file of --import registers"
    with pytest.raises(TreadleError, match=said):
        spreads(worlds.cannot_be_sent())


def test_an_environment_that_is_made_already(spreads):
    with pytest.raises(InvalidSetting, match="is made already, and workers make their own"):
        spreads(worlds.walk(), num_seeds=1)


def test_mistakes_are_told_before_there_is_a_connection():
    bad = dataclasses.replace(SMALL, batch_size=0)
    with pytest.raises(InvalidSetting, match="batch_size"):
        study("CartPole-v1", bad, address="127.0.0.1:1")


def test_a_file_of_the_users_own_is_run_by_the_workers(spreads, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from cluster.worlds import Walk\nimport gymnasium\n"
        "gymnasium.register('Mine-v0', entry_point=Walk, max_episode_steps=4)\n"
    )
    from treadle import registry

    registry.import_file(file)
    plain, spread = alone("Mine-v0"), spreads("Mine-v0", imports=[str(file)])
    assert_goes_on_the_same(plain, spread)


def test_closing_ends_the_workers():
    spread = study("Maze", TABLE)
    spread.advance(5)
    ended = pids(spread)
    assert len(ended) == 2
    spread.close()
    spread.close()
    for pid in ended:
        wait_for_end_of(pid)
    assert ray.is_initialized()
