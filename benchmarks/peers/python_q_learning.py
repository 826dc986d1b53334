"""Updates per second of Q-learning on the 4x4 maze in a Python loop, its table in pandas (as the tutorials) or NumPy.

Prints one line of JSON. Runs in the peers' environment, without Treadle.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import pandas as pd

ALPHA, GAMMA, EPSILON = 0.01, 0.9, 0.1
MOVES = ((0, -1), (0, 1), (1, 0), (-1, 0))
TREASURE, TRAPS = (2, 2), ((2, 1), (1, 2))


def step(place: tuple[int, int], action: int) -> tuple[tuple[int, int], float, bool]:
    dx, dy = MOVES[action]
    place = (min(max(place[0] + dx, 0), 3), min(max(place[1] + dy, 0), 3))
    if place == TREASURE:
        return place, 1.0, True
    return (place, -1.0, True) if place in TRAPS else (place, 0.0, False)


class PandasTable:
    """A row for each state, added when it is first met, under its name."""

    def __init__(self) -> None:
        self.q = pd.DataFrame(columns=list(range(4)), dtype=np.float64)

    def know(self, state: str) -> None:
        if state not in self.q.index:
            self.q.loc[state] = np.zeros(4)

    def act(self, place: tuple[int, int]) -> int:
        state = str(place)
        self.know(state)
        if np.random.uniform() < EPSILON:
            return int(np.random.choice(4))
        values = self.q.loc[state, :]
        return int(np.random.choice(values[values == np.max(values)].index))

    def learn(self, place, action, reward, successor, terminated) -> None:
        state, following = str(place), str(successor)
        self.know(following)
        target = reward if terminated else reward + GAMMA * self.q.loc[following, :].max()
        self.q.loc[state, action] += ALPHA * (target - self.q.loc[state, action])


class NumpyTable:
    def __init__(self) -> None:
        self.q = np.zeros((4, 4, 4))

    def act(self, place: tuple[int, int]) -> int:
        if np.random.uniform() < EPSILON:
            return int(np.random.randint(4))
        values = self.q[place]
        return int(np.random.choice(np.flatnonzero(values == values.max())))

    def learn(self, place, action, reward, successor, terminated) -> None:
        target = reward if terminated else reward + GAMMA * self.q[successor].max()
        self.q[place][action] += ALPHA * (target - self.q[place][action])


def updates_per_second(table: PandasTable | NumpyTable, steps: int) -> float:
    place = (0, 0)
    begin = time.perf_counter()
    for _ in range(steps):
        action = table.act(place)
        successor, reward, terminated = step(place, action)
        table.learn(place, action, reward, successor, terminated)
        place = (0, 0) if terminated else successor
    return steps / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", choices=("pandas", "numpy"), default="pandas")
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    np.random.seed(0)
    table = PandasTable() if options.table == "pandas" else NumpyTable()
    updates_per_second(table, 500)
    result = {
        "peer": f"a Python loop with {options.table}",
        "steps_per_second": updates_per_second(table, options.steps),
        "versions": {"pandas": pd.__version__, "numpy": np.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
