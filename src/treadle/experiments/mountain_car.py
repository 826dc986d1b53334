"""Sarsa with tile coding on MountainCar: the cost to go as it is learned, and the step size."""

from __future__ import annotations

import itertools

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

SURFACE = "Sarsa, alpha 0.5/8, one run of 9,000 episodes"
EPISODES = (12, 104, 1_000, 9_000)
RATES = (0.1, 0.2, 0.5)
SETTINGS = {"features": "tile-coding", "tilings": 8, "tiles": 8, "gamma": 1.0, "epsilon": 0.0}
ENDLESS = {"max_episode_steps": None}


def label(rate):
    return f"alpha {rate:g}/8"


def cost_to_go(weights, size=40):
    """`-max_a Q` over position and velocity `[size, size]`."""
    import jax
    import jax.numpy as jnp

    from treadle.features import LinearFunction, TileCoding

    low, high = (-1.2, -0.07), (0.6, 0.07)
    position, velocity = (np.linspace(a, b, size, dtype=np.float32) for a, b in zip(low, high, strict=True))
    q = LinearFunction(weights=jnp.asarray(weights), features=TileCoding(low=low, high=high, tilings=8, tiles=8))
    grid = np.stack(np.meshgrid(position, velocity, indexing="ij"), axis=-1)
    return position, velocity, -np.asarray(jax.vmap(jax.vmap(q))(jnp.asarray(grid))).max(-1)


def solved(outcomes):
    lengths = outcomes[SURFACE].lengths[0]
    return Verdict(
        bool(lengths[-1000:].mean() < 160),
        f"first episode {lengths[0]:,} steps, episodes 991 to 1000 {lengths[990:1000].mean():.0f}, the last 1,000 "
        f"{lengths[-1000:].mean():.0f}",
    )


def order(outcomes):
    early = {r: outcomes[label(r)].lengths[:, 10:100].mean(axis=1) for r in RATES}
    told = ", ".join(f"{label(r)} {v.mean():.0f}" for r, v in early.items())
    holds = all(early[a].mean() > early[b].mean() for a, b in itertools.pairwise(RATES))
    return Verdict(holds, f"steps an episode, episodes 11 to 100: {told}")


def highest_in_the_valley(outcomes):
    position, velocity, cost = cost_to_go(outcomes[SURFACE].observed[0, EPISODES[-1] - 1])
    x, v = np.unravel_index(cost.argmax(), cost.shape)
    at_rest = abs(position[x] + 0.5) < 0.25 and abs(velocity[v]) < 0.02
    told = f"{cost.max():.0f} steps at position {position[x]:.2f}, velocity {velocity[v]:.3f}"
    return Verdict(bool(at_rest and 80 < cost.max() < 160), told)


def draw(figure, outcomes):
    grid = figure.add_gridspec(2, 4, height_ratios=(1, 1))
    for column, episode in enumerate(EPISODES):
        axes = figure.add_subplot(grid[0, column], projection="3d")
        position, velocity, cost = cost_to_go(outcomes[SURFACE].observed[0, episode - 1])
        x, y = np.meshgrid(position, velocity, indexing="ij")
        axes.plot_surface(x, y, cost, cmap="viridis", linewidth=0, antialiased=True)
        axes.set_title(f"alpha 0.5/8, episode {episode:,}", fontsize=10, color=figures.INK)
        axes.set_xlabel("position", fontsize=8)
        axes.set_ylabel("velocity", fontsize=8)
        axes.set_xticks((-1.0, -0.5, 0.0, 0.5))
        axes.set_yticks((-0.05, 0.0, 0.05))
        axes.tick_params(labelsize=6, pad=-2)
    axes = figure.add_subplot(grid[1, :])
    for colour, rate in zip(figures.COLOURS, RATES, strict=False):
        rows = outcomes[label(rate)].lengths.astype(float)
        axes.plot(np.arange(1, rows.shape[1] + 1), rows.mean(0), color=colour, linewidth=1.4, label=label(rate))
    axes.set_yscale("log")
    figures.dress(axes, "Steps of an episode, mean over seeds", "episode", "steps (log scale)")


EXPERIMENT = Experiment(
    about="Sarsa with tile coding learns MountainCar; the surfaces are its cost to go, -max Q",
    source="Sutton and Barto (2018), example 10.1, figures 10.1 and 10.2",
    trials=(
        Trial(
            SURFACE,
            "sarsa",
            "MountainCar-v0",
            {**SETTINGS, "learning_rate": 0.5 / 8},
            ENDLESS,
            episodes=9_000,
            observe=common.q_table,
            seeds=1,
        ),
        *(
            Trial(label(r), "sarsa", "MountainCar-v0", {**SETTINGS, "learning_rate": r / 8}, ENDLESS, episodes=500)
            for r in RATES
        ),
    ),
    draw=draw,
    claims=(
        Claim("the car reaches the flag in fewer than 160 steps on average in the end", solved),
        Claim("the larger of the three step sizes learns faster at first", order),
        Claim("the way is longest, 80 to 160 steps, for a car nearly at rest in the valley", highest_in_the_valley),
    ),
    seeds=20,
    size=(12.0, 7.0),
)
