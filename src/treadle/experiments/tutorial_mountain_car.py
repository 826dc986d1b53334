"""A tutorial's DQN on MountainCar, which is to reach the flag within 100 episodes of 200 steps, beside other settings.

The tutorial takes the time limit for a terminal state and bootstraps through the flag; here neither is so. Other such
tutorials reward the distance from the bottom, `|position + 0.5|`.
"""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

EPISODES, LIMIT, WON = 100, 200, 199
"""An episode is won in fewer than 199 steps."""
LONGER, UPDATES, STEPS_A_ROUND = 300, 3_750, 16
"""Of the last trial: episodes at least, updates, and the steps of each, 60,000 in all."""
SETTINGS = {
    "hidden_sizes": [24, 48, 24],
    "learning_rate": 0.01,
    "gamma": 0.95,
    "epsilon_start": 1.0,
    "epsilon_end": 0.01,
    "epsilon_schedule": "exponential",
    "epsilon_scale": -1 / float(np.log(0.995)),
    "capacity": 2_000,
    "batch_size": 32,
    "learning_starts": 32,
    "target_update_period": 1,
    "tau": 0.05,
    "loss": "squared",
    "max_grad_norm": "none",
    "initialisation": "scaled",
}
OURS = {
    "hidden_sizes": [64, 64],
    "learning_rate": 4e-3,
    "gamma": 0.98,
    "epsilon_start": 1.0,
    "epsilon_end": 0.07,
    "epsilon_fraction": 0.2,
    "capacity": 10_000,
    "batch_size": 128,
    "learning_starts": 1_000,
    "train_frequency": STEPS_A_ROUND,
    "gradient_steps": 8,
    "target_update_period": 600,
    "initialisation": "scaled",
}
TUTORIAL, LOWER, SHAPED, ZOO = "tutorial, gamma 0.95", "tutorial, gamma 0.9", "shaped reward", "RL Zoo's, 64-64"
TRIALS = (
    Trial(TUTORIAL, "dqn", "MountainCar-v0", SETTINGS, episodes=EPISODES),
    Trial(LOWER, "dqn", "MountainCar-v0", {**SETTINGS, "gamma": 0.9}, episodes=EPISODES),
    Trial(SHAPED, "dqn", "MountainCarShaped-v0", SETTINGS, episodes=EPISODES),
    Trial(ZOO, "dqn", "MountainCar-v0", OURS, updates=UPDATES),
)


def won(outcomes, label):
    """Whether each episode is won `[S, M]`, `M` being what all seeds have ended. No episode is as short as a round, so
    that at most one ended between two looks."""
    ended = [row[row > 0] for row in outcomes[label].lengths]
    return np.stack([row[: min(map(len, ended))] for row in ended]) < WON


def first_won(outcomes, label):
    """The first episode that each seed wins `[S]`, counted from 1; infinite where there is none."""
    flags = won(outcomes, label)
    return np.where(flags.any(axis=1), flags.argmax(axis=1) + 1.0, np.inf)


def succeeds(label, within=EPISODES):
    def judge(outcomes):
        first, flags = first_won(outcomes, label), won(outcomes, label)
        early = int(np.sum(first <= EPISODES))
        told = f"{early} of {len(first)} seeds won one of the first {EPISODES}"
        if within > EPISODES:
            told += f", {np.sum(first <= within)} one of {within}; the first in episode {np.median(first):.0f} (median)"
        late = flags[:, :within][:, -20:].mean()
        return Verdict(bool(np.all(first <= within)), f"{told}; of the last 20 episodes {late:.0%} were won")

    return judge


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2)
    colours = (figures.VERMILLION, figures.ORANGE, figures.GREEN, figures.BLUE)
    for colour, style, label in zip(colours, ("-", "--", "-", "-"), (TUTORIAL, LOWER, SHAPED, ZOO), strict=True):
        flags = won(outcomes, label)
        episodes = np.arange(1, flags.shape[1] + 1)
        once = np.maximum.accumulate(flags, axis=1).mean(axis=0)
        look = {
            "color": colour,
            "linestyle": style,
            "linewidth": 1.8,
            "label": label,
            "zorder": 3 - 0.1 * (label == ZOO),
        }
        left.plot(episodes, 100 * once, **look)
        right.plot(episodes, 100 * common.smoothed(flags, 10).mean(axis=0), **look)
    for axes in (left, right):
        axes.set_ylim(-2, 103)
        axes.axvline(EPISODES, color=figures.EDGE, linestyle="--", linewidth=1)
    figures.dress(left, "Seeds that have won an episode", "episode", "% of seeds")
    figures.dress(right, "Episodes that are won (mean of 10)", "episode", "% of episodes", legend=False)


EXPERIMENT = Experiment(
    about="A tutorial's agent on MountainCar never sees the flag; a shaped reward or other settings bring it there",
    source="a tutorial's settings, with time limits handled correctly; the last are RL Zoo's with 64-64 units",
    trials=TRIALS,
    draw=draw,
    claims=(
        Claim(f"{TUTORIAL}: every seed wins an episode within {EPISODES}", succeeds(TUTORIAL), expected=False),
        Claim(f"{LOWER}: every seed does", succeeds(LOWER), expected=False),
        Claim(f"{SHAPED}: every seed does", succeeds(SHAPED)),
        Claim(f"{ZOO}: every seed does within {LONGER}", succeeds(ZOO, LONGER)),
    ),
    seeds=20,
    size=(10.0, 4.4),
)
