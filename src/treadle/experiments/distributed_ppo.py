"""PPO whose rollouts come from four workers, on Pendulum and on the arm with random goals.

Each update takes the rollouts that are in first; those of an older policy are dropped. What counts is the mean return
of 100 greedy episodes, and for the arm the share of 1,000 at whose end the finger is inside the goal.
"""

from __future__ import annotations

import dataclasses

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common
from treadle.loops.crew import Crew
from treadle.settings import preset

LOOKS, WORKERS, RETURN, SHARE = 20, 4, -200.0, 0.95
PENDULUM, ARM, TUTORIAL = "Pendulum", "arm, a random goal", "arm, a tutorial's settings"
COLOURS = {PENDULUM: figures.BLUE, ARM: figures.BLUE, TUTORIAL: figures.VERMILLION}


def trial(label, environment, name, observe):
    chosen = common.trial_with_looks(label, preset("ppo", environment, name), LOOKS, observe)
    return dataclasses.replace(chosen, crew=Crew("threads", workers=WORKERS))


TRIALS: dict[str, Trial] = {
    PENDULUM: trial(PENDULUM, "Pendulum-v1", "distributed", common.greedy_return(100)),
    ARM: trial(ARM, "ArmHard", "default", common.successes(1_000)),
    TUTORIAL: trial(TUTORIAL, "ArmHard", "distributed-tutorial", common.successes(1_000)),
}


def swings_up(outcomes):
    returns = outcomes[PENDULUM].observed[:, -1]
    each = ", ".join(f"{one:.0f}" for one in returns)
    return Verdict(bool(returns.mean() >= RETURN), f"{returns.mean():.1f}, mean of the seeds: {each}")


def reaches_the_goal(outcomes):
    return common.reach(outcomes[ARM].observed[:, -1], SHARE)


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2)
    common.return_curve(left, TRIALS[PENDULUM], outcomes[PENDULUM].observed, COLOURS[PENDULUM], PENDULUM)
    left.axhline(RETURN, color=figures.GREY, linestyle="--", linewidth=1)
    figures.dress(left, f"PPO, {WORKERS} workers, Pendulum", "thousand steps", "return of greedy episodes")
    for label in (ARM, TUTORIAL):
        common.share_curve(right, TRIALS[label], outcomes[label].observed, COLOURS[label], label)
    common.dress_shares(right, f"PPO, {WORKERS} workers: inside at the end", SHARE)


EXPERIMENT = Experiment(
    about="PPO with rollouts of four workers learns Pendulum and the arm as one loop does",
    source="Schulman et al. (2017); a tutorial's distributed PPO",
    trials=tuple(TRIALS.values()),
    draw=draw,
    claims=(
        Claim(f"{PENDULUM}: a mean return of {RETURN:.0f} or better after 200,000 steps", swings_up),
        Claim(f"{ARM}: the finger is inside at the end of at least {SHARE:.0%} of 1,000 episodes", reaches_the_goal),
    ),
    seeds=5,
    size=(11.0, 4.4),
)
