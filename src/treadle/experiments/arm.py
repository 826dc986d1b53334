"""The arm learns to bring its finger to a goal and to keep it there: DDPG and PPO, and DDPG with a tutorial's settings.

What counts is where the finger is when an episode ends, after 200 steps or once it has been inside the goal square for
more than 50 in a row: inside, or not. It is looked at over 1,000 greedy episodes from random angles, with random goals
where these are random.
"""

from __future__ import annotations

from treadle import figures
from treadle.experiment import Claim, Experiment, Verdict
from treadle.experiments import common
from treadle.settings import preset

LOOKS, EPISODES = 20, 1_000
NEEDED = {"ArmHard": 0.95, "ArmEasy": 0.99}
GOALS = {"ArmHard": "a random goal", "ArmEasy": "a fixed goal"}
DDPG, PPO, TUTORIAL = "DDPG", "PPO", "DDPG, a tutorial's settings"
COLOURS = {DDPG: figures.BLUE, PPO: figures.GREEN, TUTORIAL: figures.VERMILLION}


def trial(method, environment, name="default"):
    chosen = preset("ppo" if method == PPO else "ddpg", environment, name)
    label = f"{method}, {GOALS[environment]}"
    return common.trial_with_looks(label, chosen, LOOKS, common.successes(EPISODES))


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
        return common.reach(final(outcomes, method, environment), NEEDED[environment])

    needed = f"at least {NEEDED[environment]:.0%} of {EPISODES:,} episodes"
    return Claim(f"{method}, {GOALS[environment]}: the finger is inside at the end of {needed}", judge)


def is_better_than_the_tutorials(outcomes):
    ours, theirs = final(outcomes, DDPG, "ArmHard"), final(outcomes, TUTORIAL, "ArmHard")
    told = common.verdict(("the preset", "the tutorial"), ours, theirs)
    return Verdict(common.is_better(ours, theirs), f"{ours.mean():.1%} against {theirs.mean():.1%}; {told}")


def draw(figure, outcomes):
    for axes, (environment, goal) in zip(figure.subplots(1, 2, sharey=True), GOALS.items(), strict=True):
        for (method, where), declared in TRIALS.items():
            if where == environment:
                shares = outcomes[declared.label].observed
                common.share_curve(axes, declared, shares, COLOURS[method], method)
        common.dress_shares(axes, f"Inside at the end, {goal}", NEEDED[environment])


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
