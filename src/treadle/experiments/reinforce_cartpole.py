"""REINFORCE on CartPole with a tutorial's settings: the running return, and what weighs each step of an episode.

The tutorial has no time limit. Here an episode ends after 500 steps, and the returns of one that is cut off are those
of the rewards seen.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from treadle import figures
from treadle.algorithms.reinforce import normalised_returns
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common
from treadle.settings import preset

EPISODES, DECAY, SOLVED = 1_000, 0.99, 195
"""The last is what CartPole-v0 was taken to be solved at."""
LABEL = "REINFORCE"
PRESET = preset("reinforce", "CartPole-v1", "tutorial")
GAMMA = PRESET.make().gamma


def running(outcomes):
    return common.running(outcomes[LABEL].returns, DECAY)


def weights(outcomes):
    """The normalised return of each step of every seed's first episode, in which each reward is 1."""
    lengths = outcomes[LABEL].lengths[:, 0].tolist()
    return [np.array(normalised_returns(jnp.ones(n), GAMMA)) for n in lengths]


def every_seed_reaches(outcomes):
    first = common.first_time(running(outcomes) >= SOLVED)
    return Verdict(bool(np.isfinite(first).all()), common.share_told(first))


def most_stay(outcomes):
    ends = running(outcomes)[:, -1]
    stay = np.sum(ends >= SOLVED)
    told = f"{stay} of {len(ends)} seeds; running return in the end {np.median(ends):.0f} (median)"
    return Verdict(bool(stay > len(ends) / 2), f"{told}, from {ends.min():.0f} to {ends.max():.0f}")


def falls(outcomes):
    found = weights(outcomes)
    holds = all((w[1:] < w[:-1]).all() and w[0] > 0 > w[-1] for w in found)
    firsts, lasts = ([w[i] for w in found] for i in (0, -1))
    return Verdict(
        bool(holds),
        f"first episodes of {len(found)} seeds: first step {min(firsts):.2f} to {max(firsts):.2f}, last step "
        f"{min(lasts):.2f} to {max(lasts):.2f}",
    )


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    rows, episodes = running(outcomes), np.arange(1, EPISODES + 1)
    for row in rows:
        left.plot(episodes, row, color=figures.BLUE, linewidth=0.7, alpha=0.35)
    left.plot(episodes, np.median(rows, axis=0), color=figures.BLUE, linewidth=2.4, label="median of the seeds")
    left.axhline(SOLVED, color=figures.GREY, linestyle="--", linewidth=1, label=str(SOLVED))
    left.set_ylim(0, 520)
    figures.dress(left, "Running return, 0.99 / 0.01: each seed, and the median", "episode", "return")
    found = weights(outcomes)
    for w in found[1:]:
        right.plot(np.arange(len(w)), w, color=figures.BLUE, linewidth=0.7, alpha=0.35)
    right.plot(np.arange(len(found[0])), found[0], color=figures.BLUE, linewidth=2.4, label="of the first seed")
    right.axhline(0, color=figures.GREY, linewidth=0.9)
    figures.dress(right, "Normalised return of each step, first episode", "step", "normalised return")


EXPERIMENT = Experiment(
    about="REINFORCE learns to balance the pole, though not on every seed, and some lose it again",
    source="a tutorial's settings; Williams (1992)",
    trials=(Trial.of_preset(LABEL, PRESET, updates=None, episodes=EPISODES),),
    draw=draw,
    claims=(
        Claim(f"the running return of every seed reaches {SOLVED}", every_seed_reaches, expected=False),
        Claim(f"that of most is at {SOLVED} or more after {EPISODES:,} episodes", most_stay),
        Claim("the normalised return falls with each step of an episode, from above 0 to below it", falls),
    ),
    seeds=20,
    size=(11.0, 4.4),
)
