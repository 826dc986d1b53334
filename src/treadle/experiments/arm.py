"""The arm learns to bring its finger to a goal and to keep it there: DDPG and PPO, and DDPG with a tutorial's settings.

What counts is where the finger is when an episode ends, after 200 steps or once it has been inside the goal square for
more than 50 in a row: inside, or not. It is looked at over 1,000 greedy episodes from random angles, with random goals
where these are random.
"""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common
from treadle.settings import preset

LOOKS, EPISODES = 20, 1_000
NEEDED = {"ArmHard": 0.95, "ArmEasy": 0.99}
GOALS = {"ArmHard": "a random goal", "ArmEasy": "a fixed goal"}
DDPG, PPO, TUTORIAL = "DDPG", "PPO", "DDPG, a tutorial's settings"
COLOURS = {DDPG: figures.BLUE, PPO: figures.GREEN, TUTORIAL: figures.VERMILLION}


def trial(method, environment, name="default"):
    """A preset's trial with looks evenly spread over it."""
    chosen = preset("ppo" if method == PPO else "ddpg", environment, name)
    plain = Trial.of_preset(f"{method}, {GOALS[environment]}", chosen)
    assert plain.updates is not None
    return Trial.of_preset(plain.label, chosen, every=plain.updates // LOOKS, observe=common.successes(EPISODES))


TRIALS = {
    (DDPG, "ArmHard"): trial(DDPG, "ArmHard"),
    (TUTORIAL, "ArmHard"): trial(TUTORIAL, "ArmHard", "tutorial"),
    (PPO, "ArmHard"): trial(PPO, "ArmHard"),
    (DDPG, "ArmEasy"): trial(DDPG, "ArmEasy"),
    (PPO, "ArmEasy"): trial(PPO, "ArmEasy"),
}


def final(outcomes, method, environment):
    """The share of each seed's last look `[S]`."""
    return outcomes[TRIALS[method, environment].label].observed[:, -1]


def reaches(method, environment):
    def judge(outcomes):
        shares = final(outcomes, method, environment)
        each = ", ".join(f"{share:.1%}" for share in shares)
        return Verdict(bool(shares.mean() >= NEEDED[environment]), f"{shares.mean():.1%}, mean of the seeds: {each}")

    needed = f"at least {NEEDED[environment]:.0%} of {EPISODES:,} episodes"
    return Claim(f"{method}, {GOALS[environment]}: the finger is inside at the end of {needed}", judge)


def is_better_than_the_tutorials(outcomes):
    ours, theirs = final(outcomes, DDPG, "ArmHard"), final(outcomes, TUTORIAL, "ArmHard")
    told = common.verdict(("the preset", "the tutorial"), ours, theirs)
    return Verdict(common.is_better(ours, theirs), f"{ours.mean():.1%} against {theirs.mean():.1%}; {told}")


def draw(figure, outcomes):
    for axes, (environment, goal) in zip(figure.subplots(1, 2, sharey=True), GOALS.items(), strict=True):
        for (method, where), declared in TRIALS.items():
            if where != environment:
                continue
            algorithm = declared.made()[0]
            shares = 100 * outcomes[declared.label].observed
            steps = np.arange(1, shares.shape[1] + 1) * declared.every * algorithm.num_steps * algorithm.num_envs
            axes.plot(steps / 1000, shares.T, color=COLOURS[method], alpha=0.3, linewidth=0.8)
            axes.plot(steps / 1000, shares.mean(axis=0), color=COLOURS[method], linewidth=1.8, label=method)
        axes.axhline(100 * NEEDED[environment], color=figures.GREY, linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.set_ylim(0, 103)
        figures.dress(axes, f"Inside at the end, {goal}", "thousand steps", "% of episodes")


EXPERIMENT = Experiment(
    about="an arm of two links brings its finger to a goal and keeps it there",
    source="a tutorial's world and settings; Lillicrap et al. (2016), Schulman et al. (2017)",
    trials=tuple(TRIALS.values()),
    draw=draw,
    claims=(
        *(reaches(method, environment) for method, environment in TRIALS if method != TUTORIAL),
        Claim("DDPG's preset is better than the tutorial's settings, a random goal", is_better_than_the_tutorials),
    ),
    seeds=5,
    size=(11.0, 4.4),
)
