"""PPO on Pendulum with a tutorial's settings: clipping against the adaptive KL penalty, with two kinds of policy.

The tutorial's network gives means by tanh and a deviation for each observation; the other has unbounded means and one
deviation for all. Where the tutorial cuts its rollouts at the end of an episode, here each has 32 steps. It clips no
gradient and does not normalise advantages. Stopping early ends the values' steps too, where its critic goes on. Returns
are those of training, with actions drawn.
"""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common
from treadle.settings import preset

EPISODES, DECAY, LATE, WATCHED = 1_000, 0.9, 100, -300
PENALTIES = {"clip": "tutorial-clip", "KL": "tutorial-kl"}
POLICIES = {"deviation from the network": "network", "one deviation": "parameter"}
TUTORIAL, OTHER = POLICIES
COLOURS = {"clip": figures.BLUE, "KL": figures.VERMILLION}


def label(penalty, policy):
    return f"{penalty}, {policy}"


def trial(penalty, policy):
    made = preset("ppo", "Pendulum-v1", PENALTIES[penalty])
    return Trial.of_preset(label(penalty, policy), made, settings={**made.settings, "std": POLICIES[policy]})


def returns(outcomes, penalty, policy):
    return common.episode_returns(outcomes[label(penalty, policy)], EPISODES)


def moving(outcomes, penalty, policy):
    """The moving return, without the first episodes: it starts with a single one."""
    rows = common.running(returns(outcomes, penalty, policy), DECAY)
    rows[:, : round(1 / (1 - DECAY))] = np.nan
    return rows


def late(outcomes, penalty, policy):
    return returns(outcomes, penalty, policy)[:, -LATE:].mean(axis=1)


def reach(policy, share):
    """That more than this share of the seeds reach what is watched for, whichever the penalty."""

    def judge(outcomes):
        holds, told = True, []
        for penalty in PENALTIES:
            first = common.first_time(moving(outcomes, penalty, policy) > WATCHED)
            holds &= bool(np.isfinite(first).mean() > share)
            told.append(f"{penalty}: {common.share_told(first)}")
        return Verdict(holds, "; ".join(told))

    return judge


def clip_is_better(policy):
    def judge(outcomes):
        clip, kl = (late(outcomes, penalty, policy) for penalty in PENALTIES)
        told = f"median return clip {np.median(clip):.0f}, KL {np.median(kl):.0f}"
        return Verdict(common.is_better(clip, kl), f"{told}; {common.verdict(('clip', 'KL'), clip, kl)}")

    return judge


def one_deviation_is_better(outcomes):
    holds, told = True, []
    for penalty in PENALTIES:
        one, network = (late(outcomes, penalty, policy) for policy in (OTHER, TUTORIAL))
        holds &= common.is_better(one, network)
        words = common.verdict(("one deviation", "the network's"), one, network)
        told.append(f"{penalty}: {words}")
    return Verdict(holds, "; ".join(told))


def draw(figure, outcomes):
    *curves, ends = figure.subplots(1, 3, sharey=True, width_ratios=(1.4, 1.4, 1))
    for column, (axes, policy) in enumerate(zip(curves, POLICIES, strict=True)):
        for row, (penalty, colour) in enumerate(COLOURS.items()):
            rows = moving(outcomes, penalty, policy)
            common.median_curve(axes, np.arange(1, EPISODES + 1), rows, colour, penalty)
            last = np.sort(late(outcomes, penalty, policy))
            ends.plot(2 * column + row + np.linspace(-0.25, 0.25, len(last)), last, "o", color=colour, markersize=4)
        axes.axhline(WATCHED, color=figures.GREY, linestyle="--", linewidth=1)
        figures.dress(axes, f"Moving return, {policy}", "episode", "" if column else "return")
    ends.axhline(WATCHED, color=figures.GREY, linestyle="--", linewidth=1)
    ends.set_ylim(top=0)
    figures.dress(ends, f"Each seed, last {LATE} episodes", "", "")
    ends.set_xticks((0.5, 2.5), ["from the\nnetwork", "one\ndeviation"])


EXPERIMENT = Experiment(
    about="PPO on Pendulum: clipping or the adaptive KL penalty matters less than the kind of policy",
    source="a tutorial's settings; Schulman et al. (2017)",
    trials=tuple(trial(penalty, policy) for policy in POLICIES for penalty in PENALTIES),
    draw=draw,
    claims=(
        Claim(f"{TUTORIAL} (tutorial): the moving return of every seed passes {WATCHED}", reach(TUTORIAL, 0.99), False),
        Claim(f"{OTHER}: that of most seeds does", reach(OTHER, 0.5)),
        Claim(
            f"one deviation for all observations is better over the last {LATE} episodes, whichever the penalty",
            one_deviation_is_better,
        ),
        Claim(
            f"{TUTORIAL}: clipping is better than the penalty over the last {LATE}",
            clip_is_better(TUTORIAL),
            expected=False,
        ),
        Claim(f"{OTHER}: clipping is better over them", clip_is_better(OTHER), expected=False),
    ),
    seeds=20,
    size=(13.0, 4.4),
)
