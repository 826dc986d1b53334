"""What several experiments look at, judge and draw."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from treadle import exact, figures, registry, study
from treadle.comparison import CONFIDENCE, contrast
from treadle.environments.wrappers import learning_reward
from treadle.experiment import Claim, Outcome, Outcomes, Trial, Verdict
from treadle.loops import evaluate
from treadle.loops.looks import Moment, Observe
from treadle.loops.rollout import make_spec
from treadle.loops.seeding import purpose
from treadle.settings import Preset

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def q_table(moment: Moment) -> Any:
    """A look at the values of a table `[S, A]`."""
    return moment.state.q.weights


def greedy_return(episodes: int) -> Observe:
    """A look at the mean return of so many greedy episodes."""

    def look(moment: Moment) -> Any:
        policy = moment.algorithm.policy(moment.state)
        return jnp.mean(
            evaluate.jax_episodes(moment.algorithm, policy, moment.environment, episodes, moment.key).returns
        )

    return look


def successes(episodes: int) -> Observe:
    """A look at the share of so many greedy episodes that ends in success."""

    def look(moment: Moment) -> Any:
        policy = moment.algorithm.policy(moment.state)
        found = evaluate.jax_episodes(moment.algorithm, policy, moment.environment, episodes, moment.key)
        assert found.successes is not None
        return jnp.mean(found.successes)

    return look


def trial_with_looks(label: str, preset: Preset, looks: int, observe: Observe) -> Trial:
    """A preset's trial with so many looks evenly spread over it."""
    updates = Trial.of_preset(label, preset).updates
    assert updates is not None
    return Trial.of_preset(label, preset, every=updates // looks, observe=observe)


def reach(shares: np.ndarray, needed: float) -> Verdict:
    """Whether the mean of one share a seed `[S]` is as great as needed, and every seed's."""
    each = ", ".join(f"{share:.1%}" for share in shares)
    return Verdict(bool(shares.mean() >= needed), f"{shares.mean():.1%}, mean of the seeds: {each}")


def share_curve(axes: Axes, trial: Trial, shares: np.ndarray, colour: str, label: str) -> None:
    """Shares `[S, N]` at a trial's looks in %, against the steps of all its environments: every seed and the mean."""
    return_curve(axes, trial, 100 * shares, colour, label)


def return_curve(axes: Axes, trial: Trial, returns: np.ndarray, colour: str, label: str) -> None:
    """Returns `[S, N]` at a trial's looks, against the steps of all its environments: every seed and the mean."""
    algorithm = trial.made()[0]
    steps = np.arange(1, returns.shape[1] + 1) * trial.every * algorithm.num_steps * algorithm.num_envs
    axes.plot(steps / 1000, returns.T, color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(steps / 1000, returns.mean(axis=0), color=colour, linewidth=1.8, label=label)


def dress_shares(axes: Axes, title: str, needed: float) -> None:
    """Axes of such curves, with the share that is needed."""
    axes.axhline(100 * needed, color=figures.GREY, linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_ylim(0, 103)
    figures.dress(axes, title, "thousand steps", "% of episodes")


def paths_are_optimal(world: Any, q: np.ndarray, gamma: float) -> np.ndarray:
    """Whether the greedy path from the start is optimal, for tables `[..., S, A]` of a deterministic world.

    Ties between best actions count as taken the worst way: an action that is as good as another in a table that knows
    nothing yet is no achievement.
    """
    table = world.transitions()
    best = np.asarray(exact.optimal_actions(exact.value_iteration(table, gamma)))
    successor = np.where(table.probability.sum(-1) > 0, table.probability.argmax(-1), -1)
    flat = q.reshape(-1, *q.shape[-2:])
    at = np.full(len(flat), int(table.start.argmax()))
    optimal, going = np.ones(len(flat), bool), np.ones(len(flat), bool)
    for _ in range(q.shape[-2]):
        values = flat[np.arange(len(flat)), at]
        greedy = values >= values.max(axis=1, keepdims=True)
        optimal &= ~going | np.all(best[at] | ~greedy, axis=1)
        following = successor[at, values.argmax(axis=1)]
        going &= following >= 0
        at = np.where(going, following, at)
    return (optimal & ~going).reshape(q.shape[:-2])


def first_optimal(optimal: np.ndarray) -> np.ndarray:
    """The look, counted from 1, at which the path of each seed `[S, N]` is optimal for the first time; `N + 1` where it
    never is."""
    return np.where(optimal.any(axis=1), optimal.argmax(axis=1), optimal.shape[1]) + 1


def all_paths_optimal(label: str, world: str, gamma: float) -> Claim:
    """The claim that the greedy path of every seed is optimal when a trial ends."""

    def judge(outcomes: Outcomes) -> Verdict:
        optimal = paths_are_optimal(registry.environments.make(world), outcomes[label].observed, gamma)
        first = first_optimal(optimal)
        solved = int(optimal[:, -1].sum())
        told = f"{solved} of {len(optimal)} seeds; for the first time after {int(np.median(first)):,} episodes (median)"
        return Verdict(solved == len(optimal), f"{told}, the slowest seed after {int(first.max()):,}")

    return Claim(f"{label}: the greedy path from the start is optimal for every seed", judge)


def draw_solved(axes: Axes, outcomes: Outcomes, world: str, gammas: dict[str, float]) -> None:
    """The share of seeds whose greedy path is optimal, against episodes."""
    made = registry.environments.make(world)
    curves = {label: paths_are_optimal(made, outcomes[label].observed, g).mean(0) for label, g in gammas.items()}
    episodes = np.arange(1, 1 + max(map(len, curves.values())))
    for colour, (label, curve) in zip(figures.COLOURS, curves.items(), strict=False):
        axes.plot(episodes[: len(curve)], 100 * curve, color=colour, linewidth=1.8, label=label)
    axes.set_ylim(0, 103)
    figures.dress(axes, "Seeds whose greedy path is optimal", "episode", "% of seeds")


def mean_curve(axes: Axes, x: np.ndarray, rows: np.ndarray, colour: str, label: str, **style: Any) -> None:
    """The mean over seeds of curves `[S, N]`, with its 95% interval (normal approximation)."""
    mean, half = rows.mean(0), 1.96 * rows.std(0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else 0 * rows[0]
    axes.plot(x, mean, color=colour, label=label, **{"linewidth": 1.8, **style})
    axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)


def median_curve(axes: Axes, x: np.ndarray, rows: np.ndarray, colour: str, label: str) -> None:
    """The median over seeds of curves `[S, N]`, and the middle half of them."""
    low, middle, high = np.percentile(rows, (25, 50, 75), axis=0)
    axes.plot(x, middle, color=colour, linewidth=1.8, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def smoothed(rows: np.ndarray, window: int) -> np.ndarray:
    """Moving mean over the last `window` looks `[S, N]`."""
    total = np.cumsum(np.pad(rows.astype(float), ((0, 0), (window, 0)), mode="edge"), axis=1)
    return (total[:, window:] - total[:, :-window]) / window


def running(rows: np.ndarray, decay: float) -> np.ndarray:
    """The running mean of curves `[S, N]` as tutorials report it: it starts with the first value, and moves by
    `1 - decay` of the way to each."""
    found = rows.astype(float)
    for i in range(1, rows.shape[1]):
        found[:, i] = decay * found[:, i - 1] + (1 - decay) * rows[:, i]
    return found


def first_time(flags: np.ndarray) -> np.ndarray:
    """The look, counted from 1, at which each seed's flag `[S, N]` is up for the first time; infinite where it never
    is."""
    return np.where(flags.any(axis=1), flags.argmax(axis=1) + 1.0, np.inf)


def share_told(first: np.ndarray) -> str:
    """How many seeds came there, and when (`first_time`, in episodes)."""
    told = f"{np.sum(np.isfinite(first))} of {len(first)} seeds"
    middle = np.median(first)
    return f"{told}, by episode {middle:.0f} (median)" if np.isfinite(middle) else told


def episode_returns(outcome: Outcome, count: int) -> np.ndarray:
    """The returns of each seed's first `count` episodes `[S, count]`, NaN after the last that ended. At most one may
    end between two looks."""
    assert outcome.ended.max() <= 1
    found = np.full((len(outcome.returns), count), np.nan)
    for row, returns, ended in zip(found, outcome.returns, outcome.ended, strict=True):
        first = returns[ended > 0][:count]
        row[: len(first)] = first
    return found


def chain_values(moment: Moment) -> Any:
    """A look at the values that a prediction method has learned of a random walk, without the two ends: `[S]`."""
    return moment.state.v.weights[1:-1]


TUTORIAL = {
    "batch_size": 32,
    "epsilon_start": 1.0,
    "epsilon_end": 0.1,
    "loss": "squared",
    "optimiser": "rmsprop",
    "max_grad_norm": "none",
    "initialisation": "scaled",
}
"""What the tutorials' pages on the family of DQN have in common."""


def after_a_full_memory(memory: int, steps: int, falling: int, **own: Any) -> dict[str, Any]:
    """The settings of their comparisons: 20 units learn once the memory is full, and epsilon falls from the first step
    until `falling` steps after that, of `steps` in all."""
    filled = {"capacity": memory, "learning_starts": memory, "epsilon_fraction": (memory + falling) / steps}
    return {**TUTORIAL, "gamma": 0.9, "hidden_sizes": [20], **filled, **own}


NEGLIGIBLE = 1e-5
"""What is left of a reward's weight where the sum of discounted rewards is cut."""


def greedy_sum(moment: Moment, env_state: Any, obs: Any, steps: int, gamma: Any, reward: Callable[..., Any]) -> Any:
    """What the greedy policy of a moment collects from each of `N` states `[N]`: the discounted sum of
    `reward(world, step)` over at most `steps` steps, or to the terminal state."""
    algorithm, world = moment.algorithm, moment.environment
    count = len(jax.tree.leaves(obs)[0])
    policy = algorithm.policy(moment.state)
    carry = algorithm.init_carry(dataclasses.replace(make_spec(algorithm, world, 0), num_envs=count))

    def one_step(play):
        env_state, obs, carry, weight, total, number = play
        act_key, step_key = jax.random.split(jax.random.fold_in(moment.key, number))
        action, carry, _ = algorithm.act(policy, carry, obs, act_key, explore=False)
        env_state, step = jax.vmap(world.step)(env_state, action, jax.random.split(step_key, count))
        total += weight * reward(world, step)
        return env_state, step.obs, carry, weight * gamma * (1.0 - step.terminated), total, number + 1

    def going(play):
        return (play[-1] < steps) & jnp.any(play[3] > 0)

    first = (env_state, obs, carry, jnp.ones(count), jnp.zeros(count), 0)
    return jax.lax.while_loop(going, one_step, first)[4]


def true_values(moment: Moment, gamma: float) -> Any:
    """The discounted return of the greedy policy from every state visited since the look before `[every]`, measured
    by following it, past any time limit, until what is left weighs nothing. Rewards are those that learning sees."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), moment.visited)
    steps = math.ceil(math.log(NEGLIGIBLE) / math.log(gamma))
    return greedy_sum(moment, flat.env_state, flat.obs, steps, gamma, learning_reward)


def greedy_lengths(moment: Moment, episodes: int) -> Any:
    """The steps of so many greedy episodes from the start `[episodes]`, each to its end or to the time limit."""
    world = moment.environment
    env_state, obs = jax.vmap(world.reset)(jax.random.split(purpose(moment.key, "reset"), episodes))
    assert world.max_episode_steps is not None
    return greedy_sum(moment, env_state, obs, world.max_episode_steps, 1.0, lambda world, step: 1.0)


def is_above_zero(values: np.ndarray) -> bool:
    """Whether the 95% bootstrap interval of the mean of one value a seed lies above 0."""
    low = study.interval(values, np.mean).low
    return low is not None and low > 0


def with_interval(values: np.ndarray) -> str:
    """The mean of one value a seed, and its 95% bootstrap interval."""
    low, high, _ = study.interval(values, np.mean)
    return f"{values.mean():.2f}" if low is None else f"{values.mean():.2f} ({low:.2f} to {high:.2f})"


def is_better(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether `treadle compare` would call the first better, where a higher score is."""
    found = contrast(x, y)
    return found.pvalue is not None and found.favours(CONFIDENCE) == 1


def verdict(names: tuple[str, str], x: np.ndarray, y: np.ndarray) -> str:
    """In words, whether the first of two is better, where a higher score is."""
    found = contrast(x, y)
    if found.pvalue is None:
        return "one seed says nothing"
    favours = found.favours(CONFIDENCE)
    better = {0: "no difference shown", 1: f"{names[0]} is better", -1: f"{names[1]} is better"}[favours]
    low, high = found.improvement_interval[:2]
    return (
        f"{better}: probability that {names[0]} is better {found.improvement:.2f} ({low:.2f} to {high:.2f}), "
        f"permutation test p = {found.pvalue:.2g}"
    )
