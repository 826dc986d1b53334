"""A3C with two workers on Pendulum and CartPole: learning while parameters change under the workers' hands.

What counts is the mean return of 100 greedy episodes. Workers are threads that wait for nobody, so that no two runs of
a seed are the same, and figures move a little from one time to the next.
"""

from __future__ import annotations

import dataclasses

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common
from treadle.loops.crew import Crew
from treadle.settings import preset

LOOKS, EPISODES, WORKERS = 20, 100, 2
PENDULUM, TUTORIAL, CARTPOLE = "Pendulum", "Pendulum, a tutorial's settings", "CartPole"
NEEDED = {PENDULUM: -200.0, CARTPOLE: 475.0}
COLOURS = {PENDULUM: figures.BLUE, TUTORIAL: figures.VERMILLION, CARTPOLE: figures.BLUE}


def trial(label, environment, name="default"):
    chosen = common.trial_with_looks(label, preset("a3c", environment, name), LOOKS, common.greedy_return(EPISODES))
    return dataclasses.replace(chosen, crew=Crew("threads", workers=WORKERS))


TRIALS: dict[str, Trial] = {
    PENDULUM: trial(PENDULUM, "Pendulum-v1"),
    TUTORIAL: trial(TUTORIAL, "Pendulum-v1", "tutorial"),
    CARTPOLE: trial(CARTPOLE, "CartPole-v1"),
}


def reaches(label):
    def judge(outcomes):
        returns = outcomes[label].observed[:, -1]
        each = ", ".join(f"{one:.0f}" for one in returns)
        return Verdict(bool(returns.mean() >= NEEDED[label]), f"{returns.mean():.1f}, mean of the seeds: {each}")

    steps = f"{preset('a3c', TRIALS[label].environment).total_timesteps:,}"
    return Claim(f"{label}: a mean return of {NEEDED[label]:.0f} or better after {steps} steps", judge)


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2)
    for label in (PENDULUM, TUTORIAL):
        common.return_curve(left, TRIALS[label], outcomes[label].observed, COLOURS[label], label)
    common.return_curve(right, TRIALS[CARTPOLE], outcomes[CARTPOLE].observed, COLOURS[CARTPOLE], CARTPOLE)
    for axes, label in ((left, PENDULUM), (right, CARTPOLE)):
        axes.axhline(NEEDED[label], color=figures.GREY, linestyle="--", linewidth=1)
        figures.dress(axes, f"A3C, {WORKERS} workers, {label}", "thousand steps", "return of greedy episodes")


EXPERIMENT = Experiment(
    about="A3C learns Pendulum and CartPole with workers that push gradients and wait for nobody",
    source="Mnih et al. (2016), algorithm S3; a tutorial's settings",
    trials=tuple(TRIALS.values()),
    draw=draw,
    claims=(reaches(PENDULUM), reaches(CARTPOLE)),
    seeds=5,
    size=(11.0, 4.4),
)
