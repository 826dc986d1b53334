"""Natural against dueling DQN on Pendulum with 25 torques: the cost that is descended, and the reward collected.

Where the tutorial is silent, settings are those of `double_dqn`: batches of 32, gamma 0.9, one hidden layer of 20,
epsilon down to 0.1 after 900 updates, RMSProp. Like the tutorial's, the one episode never ends.
"""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

MEMORY, UPDATES, EVERY = 3_000, 15_000, 100
STEPS = MEMORY + UPDATES
REWARD_SCALE = 0.1
SETTINGS = common.after_a_full_memory(MEMORY, STEPS, falling=900, learning_rate=0.001, target_update_period=200)
METHODS = {"natural": False, "dueling": True}


def cost_and_reward(moment):
    """The mean loss since the look before, and the reward collected since the beginning, as learning sees it: there is
    one endless episode."""
    return {"cost": moment.metrics["loss"], "reward": REWARD_SCALE * moment.visited.episode_return[-1, 0]}


def collected(outcomes, label):
    """The reward that each seed collects once learning has started `[S]`."""
    reward = outcomes[label].observed["reward"]
    return reward[:, -1] - reward[:, MEMORY // EVERY - 1]


def dueling_collects_more(outcomes):
    natural, dueling = (collected(outcomes, label) for label in METHODS)
    told = f"mean reward in {UPDATES:,} steps: natural {natural.mean():,.0f}, dueling {dueling.mean():,.0f}"
    return Verdict(
        common.is_better(dueling, natural), f"{told}; {common.verdict(('dueling', 'natural'), dueling, natural)}"
    )


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, STEPS // EVERY + 1) * EVERY
    learning = steps > MEMORY
    for colour, label in zip((figures.VERMILLION, figures.BLUE), METHODS, strict=True):
        seen = outcomes[label].observed
        updates = steps[learning] - MEMORY
        common.median_curve(left, updates, seen["cost"][:, learning], colour, label)
        common.mean_curve(right, steps, seen["reward"], colour, label)
    left.set_yscale("log")
    figures.dress(left, "Squared TD error: median, and middle half", "training steps", "cost (log scale)")
    figures.dress(right, "Accumulated reward / 10, mean over seeds", "environment steps", "reward")
    right.axvline(MEMORY, color=figures.EDGE, linestyle="--", linewidth=1)
    right.text(MEMORY + 200, right.get_ylim()[0], "learning starts", color=figures.GREY, fontsize=8, va="bottom")


EXPERIMENT = Experiment(
    about="Dueling DQN collects more reward than natural DQN on Pendulum",
    source="a tutorial's comparison on Pendulum with 25 torques; Wang et al. (2016)",
    trials=tuple(
        Trial(
            label,
            "dqn",
            "Pendulum-v1",
            {**SETTINGS, "dueling": dueling},
            wrappers={"discretise_actions": 25, "reward_scale": REWARD_SCALE, "time_limit": "none"},
            updates=STEPS,
            every=EVERY,
            observe=cost_and_reward,
        )
        for label, dueling in METHODS.items()
    ),
    draw=draw,
    claims=(Claim("dueling DQN collects more reward than natural DQN while it learns", dueling_collects_more),),
    seeds=20,
    size=(10.0, 4.4),
)
