"""DQN and PPO learn to fly a quadrotor through a room with pillars to its target, touching nothing.

It is looked at over 1,000 greedy episodes from random starts, all over the room. A success is an episode that ends at
the target; a collision ends one too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from treadle import figures
from treadle.environments.quadrotor import QuadrotorRoom
from treadle.experiment import Claim, Experiment
from treadle.experiments import common
from treadle.loops.seeding import purpose
from treadle.settings import preset

LOOKS, EPISODES, PATHS, LONGEST, NEEDED = 20, 1_000, 40, 100, 0.95
"""Looks; greedy episodes in each, and those whose path is kept, up to so many steps; the share that must arrive."""
DISCRETE, CONTINUOUS = "DQN, a push or none", "PPO, three accelerations"
PRESETS = {DISCRETE: ("dqn", "QuadrotorRoom"), CONTINUOUS: ("ppo", "QuadrotorRoomContinuous")}
COLOURS = {DISCRETE: figures.BLUE, CONTINUOUS: figures.GREEN}


def look(moment):
    """The share of successes, and the paths of some episodes: places `[N, T, 3]`, NaN after the end, and whether each
    arrived."""
    algorithm, world = moment.algorithm, moment.environment
    policy = algorithm.policy(moment.state)
    states, obs = jax.vmap(world.reset)(jax.random.split(purpose(moment.key, "reset"), PATHS))

    def one_step(carry, _):
        states, obs, going, arrived = carry
        place = jnp.where(going[:, None], states.position, jnp.nan)
        action, _, _ = algorithm.act(policy, (), obs, moment.key, explore=False)
        states, step = jax.vmap(world.step, in_axes=(0, 0, None))(states, action, moment.key)
        arrived |= going & jax.vmap(world.is_success)(states)
        return (states, step.obs, going & ~step.terminated, arrived), place

    first = (states, obs, jnp.ones(PATHS, bool), jnp.zeros(PATHS, bool))
    (_, _, _, arrived), places = jax.lax.scan(one_step, first, length=LONGEST)
    return common.successes(EPISODES)(moment), jnp.swapaxes(places, 0, 1), arrived


def arrives(label):
    def judge(outcomes):
        return common.reach(outcomes[label].observed[0][:, -1], NEEDED)

    return judge


def draw(figure, outcomes):
    curves, above = figure.subplots(1, 2, width_ratios=(1.3, 1))
    for label, colour in COLOURS.items():
        declared = next(t for t in EXPERIMENT.trials if t.label == label)
        common.share_curve(curves, declared, outcomes[label].observed[0], colour, label)
    common.dress_shares(curves, "At the target, nothing touched", NEEDED)
    draw_paths(above, *(x[0, -1] for x in outcomes[DISCRETE].observed[1:]))


def draw_paths(axes, places, arrived):
    """Paths `[N, T, 3]` through the room with pillars, seen from above."""
    from matplotlib.patches import Circle, Rectangle

    world = QuadrotorRoom()
    state, _ = world.reset(jax.random.key(0))
    width, depth, _ = world.room_size
    axes.add_patch(Rectangle((0, 0), width, depth, fill=False, edgecolor=figures.INK, linewidth=1.5))
    for x, y, radius, _ in np.asarray(state.obstacles):
        axes.add_patch(Circle((x, y), radius, color=figures.EDGE))
    x, y, _ = np.asarray(state.target)
    axes.add_patch(Circle((x, y), world.target_radius, color=figures.GREEN, alpha=0.7))
    for path, ended_well in zip(places, arrived, strict=True):
        colour = figures.BLUE if ended_well else figures.VERMILLION
        axes.plot(path[:, 0], path[:, 1], color=colour, linewidth=0.9, alpha=0.7)
        axes.plot(*path[0, :2], ".", color=colour, markersize=4)
    axes.set_aspect("equal")
    figures.dress(axes, f"{PATHS} flights of the first seed, from above", "x, metres", "y, metres")
    axes.grid(visible=False)


EXPERIMENT = Experiment(
    about="a quadrotor learns to fly through a room to its target",
    source="a project of the tutorials; Mnih et al. (2015), van Hasselt et al. (2016), Schulman et al. (2017)",
    trials=tuple(
        common.trial_with_looks(label, preset(*names, "default"), LOOKS, look) for label, names in PRESETS.items()
    ),
    draw=draw,
    claims=(
        *(
            Claim(
                f"{label}: at least {NEEDED:.0%} of {EPISODES:,} flights end at the target",
                arrives(label),
                expected=label == DISCRETE,
            )
            for label in PRESETS
        ),
    ),
    seeds=5,
    size=(11.0, 4.6),
)
