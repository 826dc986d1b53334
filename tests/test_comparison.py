"""Two runs are called different only where their seeds bear it out, and everything that was compared is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from treadle import comparison, metrics, settings, study
from treadle.cli import main
from treadle.comparison import Contrast, compare
from treadle.comparison_report import describe, notes, plot, report, verdicts
from treadle.environments.wrappers import Wrappers
from treadle.errors import InvalidSetting, TreadleError
from treadle.run import Run, RunConfig
from treadle.study import Interval

pytestmark = pytest.mark.least_optimised

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=9)
LOW, HIGH = (1.0, 2.0, 3.0, 4.0, 5.0), (11.0, 12.0, 13.0, 14.0, 15.0)


def make_run(
    folder: Path,
    levels: Any = LOW,
    steps=100,
    until: int | None = None,
    algorithm="dqn",
    environment="CartPole-v1",
    status="finished",
    evaluated=None,
    wrappers: Wrappers | None = None,
    **fields,
) -> Path:
    """A run that Treadle might have written: every 10 steps up to `until` an episode ends, whose return is the seed's
    level, or what `level(step)` gives."""
    config = RunConfig(steps, len(levels), out=str(folder))
    run = Run.create(algorithm, environment, settings.make(algorithm, fields), config, wrappers=wrappers)
    end = until or steps
    records = []
    for seed, level in enumerate(levels):
        for step in range(10, end + 1, 10):
            value: Any = level(step) if callable(level) else level
            about = {"seed": seed, "step": step, "time": 0.0}
            records.append({**about, "episode_return": float(value), "episode_length": 10.0})
        records.append({"seed": seed, "step": end, "time": 0.0, "loss": 0.5})
    with metrics.MetricsWriter(folder, range(len(levels))) as writer:
        writer.write(records)
    run.save_info(status=status, step=end)
    if evaluated is not None:
        evaluate(folder, evaluated, end)
    return folder


def evaluate(folder: Path, per_seed, step=100, environment="Gymnasium's CartPole-v1"):
    content = {"environment": environment, "step": step, "episodes": 20, "per_seed": list(per_seed)}
    (folder / "evaluation.json").write_text(json.dumps(content))


@pytest.fixture
def low(tmp_path) -> Path:
    return make_run(tmp_path / "low", LOW, double=False)


@pytest.fixture
def high(tmp_path) -> Path:
    return make_run(tmp_path / "high", HIGH, double=True)


def said(found) -> str:
    return " ".join(notes(found))


# The statistics


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([2], [1], 1),
        ([1], [2], 0),
        ([1], [1], 0.5),
        ([1, 2, 3], [2, 2], 3 / 6),  # 1 never, 2 half of both, 3 both
        ([3, 4], [1, 2, 3], 5.5 / 6),  # 3 beats two and ties one, 4 beats all
    ],
)
def test_the_probability_of_improvement_counts_pairs_of_seeds_and_ties_by_half(x, y, expected):
    assert study.probability_of_improvement(x, y) == pytest.approx(expected)


@given(scores, scores)
def test_the_probability_of_improvement_is_that_of_its_definition(x, y):
    pairs = [float(a > b) + 0.5 * float(a == b) for a in x for b in y]
    found = study.probability_of_improvement(x, y)
    assert found == pytest.approx(np.mean(pairs))
    assert found + study.probability_of_improvement(y, x) == pytest.approx(1)


def test_the_statistics_of_two_samples_reduce_the_axis_that_they_are_given():
    x, y = np.array([[0.0, 10.0], [1, 11], [3, 13], [100, -100]]), np.array([[1.0, 1.0], [3, 3]])
    np.testing.assert_allclose(study.difference_of_iqms(x, y), [2 - 2, 10.5 - 2])
    np.testing.assert_allclose(study.probability_of_improvement(x, y), [(0.5 + 1.5 + 2) / 8, 6 / 8])
    np.testing.assert_allclose(study.probability_of_improvement(x.T, y.T, axis=1), [0.5, 6 / 8])


def test_an_interval_between_two_runs_can_be_checked_by_hand():
    """Of x = {0, 1}, resamples are 00, 01, 10, 11; y is 0 always. A seed of x is above one of y with probability 1/2,
    3/4, 3/4 and 1, and the means differ by 0, 1/2, 1/2 and 1."""
    x, y = [0, 1], [0, 0]
    assert study.interval_between(x, y, study.probability_of_improvement) == (0.5, 1, None)
    assert study.interval_between(x, y, study.probability_of_improvement, confidence=0.4) == (0.75, 0.75, None)
    assert study.interval_between(x, y, study.difference_of_iqms) == (0, 1, None)
    assert study.interval_between(y, x, study.difference_of_iqms) == (-1, 0, None)


def test_one_seed_has_no_interval_between():
    low, high, reason = study.interval_between([1], [1, 2], study.difference_of_iqms)
    assert low is None and high is None and reason is not None


def test_the_intervals_hold_the_truth_about_as_often_as_they_say():
    """Normal scores, one run better by 0.7 standard deviations: the probability of improvement is 0.690. Of 1,000
    repetitions with 10 seeds the intervals held it in 93% and the difference in 96%."""
    rng, truth = np.random.default_rng(0), 0.5 * (1 + math.erf(0.7 / 2))
    inside = []
    for _ in range(40):
        x, y = rng.normal(0.7, size=10), rng.normal(size=10)
        improvement = study.interval_between(x, y, study.probability_of_improvement)
        difference = study.interval_between(x, y, study.difference_of_iqms)
        inside.append((contains(improvement, truth), contains(difference, 0.7), contains(difference, 2.0)))
    held = np.mean(inside, axis=0)
    assert held[0] > 0.8 and held[1] > 0.8
    assert held[2] < 0.5, "so wide an interval would hold anything"


def contains(found: Interval, value: float) -> bool:
    assert found.low is not None and found.high is not None
    return found.low <= value <= found.high


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 3), (3, 5), (4, 4)])
def test_the_permutation_test_is_exact_for_few_seeds(n, m):
    """Wholly apart is one of the C(n + m, n) ways to deal the scores out, and so is the other way round."""
    exact = 2 / math.comb(n + m, n)
    assert study.permutation_pvalue(range(n), range(10, 10 + m)) == pytest.approx(exact)
    assert comparison.least_pvalue(n, m) == pytest.approx(exact)
    assert study.permutation_pvalue([7.0] * n, [7.0] * m) == 1


def test_runs_that_differ_in_nothing_are_rarely_told_apart():
    """By the intervals alone 17% of such pairs with 3 seeds were. With 3 seeds none can be now, with 4 are 2 in 70."""
    rng = np.random.default_rng(0)
    for seeds, most in ((3, 0), (4, 8)):
        values = rng.normal(size=(100, 2, seeds))
        assert sum(study.permutation_pvalue(x, y) <= 0.05 for x, y in values) <= most


def test_the_seeds_that_a_difference_needs_are_noethers():
    """(1.96 + 0.84)^2 / (6 0.2^2) = 32.7, at 95% and a power of 80%. Of 300 such pairs with 33 seeds of normal scores
    81% were told apart."""
    assert comparison.seeds_needed(0.7) == comparison.seeds_needed(0.3) == 33
    assert comparison.seeds_needed(0.7, 0.99) > 33
    assert comparison.seeds_needed(0.5) == math.inf


# The verdict


def contrast(difference=(1.0, 3.0), improvement=(0.6, 0.9), pvalue: float | None = 0.01) -> Contrast:
    return Contrast(1, "final", 2.0, Interval(*difference), 0.75, Interval(*improvement), pvalue)


def test_a_run_is_better_only_where_all_three_agree():
    assert contrast().favours(0.95) == 1
    assert contrast((-3, -1), (0.1, 0.4)).favours(0.95) == -1
    assert contrast((0, 3)).favours(0.95) == 0, "an interval that ends at 0 does not exclude it"
    assert contrast(improvement=(0.5, 0.9)).favours(0.95) == 0
    assert contrast(improvement=(0.1, 0.4)).favours(0.95) == 0, "the two point in opposite directions"
    assert contrast(pvalue=0.06).favours(0.95) == 0
    assert contrast(pvalue=0.03).favours(0.95) == 1
    assert contrast(pvalue=0.03).favours(0.975) == 0, "at a higher level less is shown"
    assert contrast(pvalue=None).favours(0.95) == 0


def test_a_contrast_can_be_told_the_other_way_round():
    there = contrast()
    back = there.reversed()
    assert (back.difference, back.difference_interval) == (-2, (-3, -1, None))
    assert back.improvement == 0.25 and back.improvement_interval[:2] == pytest.approx((0.1, 0.4))
    assert back.favours(0.95) == -there.favours(0.95)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_equal_scores_never_make_one_run_better(values, random):
    shuffled = random.sample(values, len(values))
    found = comparison.contrast(np.asarray(shuffled, float), np.asarray(values, float))
    assert found.favours(0.5) == 0 and found.improvement == 0.5


def test_a_better_run_is_named_whichever_comes_first(low, high):
    for folders in ((low, high), (high, low)):
        found = compare(folders)
        (verdict,) = verdicts(found)
        assert verdict.startswith("double=True is better than double=False by return at the end of training")
        assert "probability of improvement is 1.00 (95% interval 1.00 to 1.00)" in verdict
        assert "difference of IQMs 10.0 (" in verdict and "permutation test p = 0.0079" in verdict
        assert describe(found)["comparisons"][0]["outcome"] == ("better" if folders[0] == low else "worse")


def test_a_small_difference_is_not_shown_and_it_is_told_what_could_show_one(low, tmp_path):
    other = make_run(tmp_path / "other", (2.0, 3.0, 4.0, 5.0, 6.0), double=True)
    (verdict,) = verdicts(compare([low, other]))
    assert verdict.startswith("double=True against double=False: no difference shown by")
    # 13 of 25 pairs are clear wins and 4 are ties: 0.68.
    assert "improvement is 0.68 (95% interval" in verdict
    assert f"about {comparison.seeds_needed(0.68)} seeds of each" in verdict
    assert "not to say that they are equal" in verdict


def test_a_difference_as_good_as_none_is_not_chased(low, tmp_path):
    other = make_run(tmp_path / "other", (5.0, 4.0, 3.0, 2.0, 1.0), double=True)
    (verdict,) = verdicts(compare([low, other]))
    assert "no difference shown" in verdict and "more than 1,000 seeds of each" in verdict
    assert "difference of IQMs 0 (" in verdict


def test_three_seeds_show_nothing_however_far_apart(tmp_path):
    folders = [make_run(tmp_path / "a", LOW[:3], double=False), make_run(tmp_path / "b", HIGH[:3], double=True)]
    (verdict,) = verdicts(compare(folders))
    assert "no difference shown" in verdict and "better" not in verdict
    assert "With 3 and 3 seeds none could be: chance alone sets them all apart in 10% of cases." in verdict
    assert verdict.endswith("Train at least 4 of each.")


def test_one_seed_says_nothing(low, tmp_path):
    one = make_run(tmp_path / "one", (1000.0,), double=True)
    found = compare([low, one])
    (verdict,) = verdicts(found)
    assert "one seed says nothing" in verdict and "better" not in verdict
    assert found.contrasts[0].pvalue is None and found.contrasts[0].difference_interval.low is None
    assert found.entries[1].curves is not None
    plot(found, tmp_path / "one.png")
    described = json.loads(json.dumps(describe(found), allow_nan=False))
    assert described["comparisons"][0]["outcome"] == "one seed"
    assert set(described["runs"][1]["curve"]["low"]) == {None}


def test_different_numbers_of_seeds_are_no_hindrance(low, tmp_path):
    more = make_run(tmp_path / "more", tuple(range(20, 32)), double=True)
    found = compare([low, more])
    assert [entry.seeds for entry in found.entries] == [5, 12]
    assert "double=True is better" in verdicts(found)[0]


def test_several_runs_are_each_set_against_the_first_at_a_higher_level(low, high, tmp_path):
    third = make_run(tmp_path / "third", LOW[::-1], double=False, gamma=0.9)
    found = compare([low, high, third])

    assert found.level == pytest.approx(0.975)
    assert [c.run for c in found.contrasts if c.measure == "final"] == [1, 2]
    first, second = verdicts(found)
    assert first.startswith("gamma=0.99, double=True is better than gamma=0.99, double=False")
    assert second.startswith("gamma=0.9, double=False against gamma=0.99, double=False: no difference shown")
    assert "97.5% interval" in first
    assert "2 runs are set against gamma=0.99, double=False, each at 97.5% instead of 95%" in said(found)
    assert "Bonferroni" not in said(compare([low, high]))


def test_scores_that_are_the_very_same_are_pointed_out(low, tmp_path):
    copy = make_run(tmp_path / "copy", LOW, double=True)
    found = compare([low, copy])
    assert "have the very same scores, seed by seed" in said(found)
    assert "no difference shown" in verdicts(found)[0]


# What is compared


def test_runs_of_different_lengths_are_compared_over_the_common_steps(low, tmp_path):
    late = make_run(tmp_path / "late", [lambda step, s=s: s + 1000 * (step > 100) for s in LOW], steps=400, double=True)
    found = compare([low, late])

    assert found.steps == 100
    for entry in found.entries:
        assert entry.curves is not None and entry.curves.steps[-1] == 100
    for measure in found.measures.values():
        np.testing.assert_allclose(measure.scores[1], LOW)
    ends = "double=False ended at 100; double=True ended at 400."
    assert said(found).startswith(f"Compared over the first 100 steps, to which all have come: {ends}")


def test_unfinished_runs_are_compared_as_far_as_all_have_come(low, tmp_path):
    stopped = make_run(tmp_path / "stopped", HIGH, until=50, status="interrupted", double=True)
    found = compare([low, stopped])
    assert found.steps == 50
    assert "double=True was stopped at 50 of 100." in said(found)

    failed = make_run(tmp_path / "failed", HIGH, until=60, status="failed", gamma=0.5)
    text = said(compare([low, failed]))
    assert "failed at 60 of 100" in text and "failed then is not in the scores" in text


def test_a_run_has_come_as_far_as_its_last_seed(low, tmp_path):
    folder = make_run(tmp_path / "uneven", HIGH, double=True)
    metrics.drop_after(folder, {3: 70})
    assert compare([low, folder]).steps == 70


def test_nothing_is_said_of_runs_of_one_length(low, high):
    assert said(compare([low, high])).startswith("Greedy evaluation is not compared: there is none of")


def test_the_area_and_the_end_by_hand(low, tmp_path):
    """The first episode with a return of 10 ends at step 70, from which on the curve is at 10: for 31 of 100 steps. A
    seed that falls back in the last tenth has one step less, and ends at 0."""
    rise = make_run(
        tmp_path / "rise", [lambda step: 10 * (step > 60), lambda step: 10 * (60 < step <= 90)], double=True
    )
    found = compare([low, rise])
    np.testing.assert_allclose(found.measures["area"].scores[1], [3.1, 3])
    np.testing.assert_allclose(found.measures["final"].scores[1], [10, 0])


def test_the_area_under_a_first_episode_is_its_return():
    """It ended after 3 of 4 points and was under way before; the points lie 10, 10, 10 and 20 steps apart."""
    n = np.nan
    returns = np.array([[n, n, 6.0, 1.0], [5, 5, 5, 5]])
    found = comparison.area(study.Curves(np.array([10, 20, 30, 50]), returns, (0, 1)))
    np.testing.assert_allclose(found, [(30 * 6 + 20 * 1) / 50, 5])


def test_curves_end_where_they_are_told_to():
    records = [{"seed": 0, "step": s, "episode_return": float(s)} for s in (10, 20, 40)]
    records.append({"seed": 1, "step": 40, "episode_return": 1.0})
    found = study.learning_curves(records, grid=3, until=30)
    np.testing.assert_array_equal(found.steps, [10, 20, 30])
    np.testing.assert_array_equal(found.returns, [[10, 20, 20], [np.nan] * 3])
    with pytest.raises(InvalidSetting, match="until was 0"):
        study.learning_curves(records, until=0)


def test_the_evaluation_is_preferred_where_all_have_one(low, high):
    evaluate(low, HIGH)
    text = said(compare([low, high]))
    assert f"there is none of {high} (treadle evaluate RUN)" in text and "agents that explore" in text

    evaluate(high, LOW)
    found = compare([low, high])
    assert found.by == "evaluation" and said(found) == ""
    (verdict,) = verdicts(found)
    assert verdict.startswith("double=False is better than double=True by greedy evaluation at step 100.")
    # Otherwise, when that is asked for.
    for by in ("final", "area"):
        assert "double=True is better" in verdicts(compare([low, high], by))[0]


def test_evaluations_after_different_training_decide_only_when_asked_to(low, high):
    evaluate(low, HIGH)
    evaluate(high, LOW, step=50)
    found = compare([low, high])
    assert found.by == "final"
    assert "The verdict is not by evaluation, because the evaluations are at different steps (100 and 50)" in said(
        found
    )
    assert "Mind that the evaluations are at different steps" in said(compare([low, high], "evaluation"))


def test_an_evaluation_from_before_the_run_went_on_is_not_taken(low, high):
    evaluate(low, HIGH, step=50)
    evaluate(high, LOW, step=50)
    found = compare([low, high])
    assert found.by == "final"
    assert "are at step 50, and the runs have come to 100 since" in said(found)


def test_evaluations_in_different_environments_are_not_compared(low, high):
    evaluate(low, LOW)
    evaluate(high, HIGH, environment="CartPole-v1")
    found = compare([low, high])
    assert "evaluation" not in found.measures
    assert "it was in different environments (Gymnasium's CartPole-v1, CartPole-v1)" in said(found)


def test_a_world_with_a_shaped_reward_is_compared_by_evaluation_alone(low, tmp_path):
    shaped = make_run(tmp_path / "shaped", HIGH, environment="CartPoleShaped-v1")
    with pytest.raises(TreadleError, match=r"nothing that could be compared \(evaluation: there is none of"):
        compare([low, shaped])

    evaluate(low, LOW)
    evaluate(shaped, HIGH)
    found = compare([low, shaped])
    assert list(found.measures) == ["evaluation"] and found.entries[0].curves is None
    assert "trained in different environments (CartPole-v1, CartPoleShaped-v1)" in said(found)
    assert verdicts(found)[0].startswith("environment=CartPoleShaped-v1 is better than environment=CartPole-v1")
    plot(found, tmp_path / "shaped.png")
    with pytest.raises(TreadleError, match="cannot be compared by area: the runs were trained in different"):
        compare([low, shaped], "area")


def test_returns_under_another_time_limit_are_not_compared(low, tmp_path):
    limited = make_run(tmp_path / "limited", HIGH, wrappers=Wrappers(time_limit=7), evaluated=HIGH)
    evaluate(low, LOW)
    found = compare([low, limited])
    assert list(found.measures) == ["evaluation"]
    assert "training had different time limits (own, 7)" in said(found)
    assert found.entries[1].label == "time_limit=7"


def test_rewards_changed_for_learning_leave_the_returns_comparable(low, tmp_path):
    scaled = make_run(tmp_path / "scaled", HIGH, wrappers=Wrappers(reward_scale=0.1))
    assert set(compare([low, scaled]).measures) == {"final", "area"}


def test_seeds_without_an_episode_are_not_left_out_in_silence(low, tmp_path):
    folder = make_run(tmp_path / "slow", HIGH[:4], double=True, evaluated=HIGH[:4])
    with metrics.MetricsWriter(folder, range(5)) as writer:
        writer.write([{"seed": 4, "step": 100, "time": 0.0, "loss": 1.0}])
    info = json.loads((folder / "run.json").read_text())
    info["config"]["seeds"] = 5
    (folder / "run.json").write_text(json.dumps(info))
    evaluate(folder, HIGH)
    evaluate(low, LOW)

    found = compare([low, folder])
    assert list(found.measures) == ["evaluation"]
    assert "not every seed of double=True has finished an episode" in said(found)
    plot(found, tmp_path / "slow.png")


# Labels


def labels(*folders: Path) -> list[str]:
    return [entry.label for entry in compare(folders).entries]


def test_runs_are_called_by_what_tells_them_apart(low, high, tmp_path):
    rate = make_run(tmp_path / "rate", double=True, learning_rate=5e-4)
    assert labels(low, high) == ["double=False", "double=True"]
    assert labels(high, rate) == ["learning_rate=0.001", "learning_rate=0.0005"]

    again = make_run(tmp_path / "again", double=True)
    assert labels(low, high, again) == ["double=False", "high", "again"]
    nested = make_run(tmp_path / "x" / "high", double=True)
    assert labels(high, nested) == [str(high), str(nested)]

    wordy = make_run(tmp_path / "wordy", double=True, learning_rate=5e-4, gamma=0.9, batch_size=7, hidden_sizes=(8, 8))
    assert labels(low, wordy) == ["low", "wordy"]


def test_algorithms_are_told_apart_before_their_settings(tmp_path):
    runs = [
        make_run(tmp_path / "a", algorithm="q-learning", environment="Maze"),
        make_run(tmp_path / "b", algorithm="sarsa", environment="Maze"),
        make_run(tmp_path / "c", algorithm="sarsa", environment="Maze", gamma=0.5),
    ]
    assert labels(*runs[:2]) == ["q-learning", "sarsa"]
    first, second, third = labels(*runs)
    assert (first, third) == ("q-learning", "sarsa, gamma=0.5") and second.startswith("sarsa, gamma=0.")


# Refusals


def test_too_few_runs_and_the_same_one_twice_are_refused(low):
    with pytest.raises(TreadleError, match="needs at least two runs, and none was given"):
        compare([])
    with pytest.raises(TreadleError, match=f"only {low} was given: treadle compare RUN RUN"):
        compare([low])
    with pytest.raises(TreadleError, match="is given twice"):
        compare([low, low / ".." / low.name])


def test_a_folder_without_a_run_or_without_metrics_is_refused(low, tmp_path):
    with pytest.raises(TreadleError, match=r"is not a run's folder: it has no run\.json"):
        compare([low, tmp_path])
    Run.create("dqn", "CartPole-v1", settings.make("dqn", {}), RunConfig(out=str(tmp_path / "new")))
    with pytest.raises(TreadleError, match="new has no metrics of every seed yet"):
        compare([low, tmp_path / "new"])


def test_runs_of_different_tasks_are_refused(low, tmp_path):
    other = make_run(tmp_path / "other", environment="Acrobot-v1")
    with pytest.raises(TreadleError, match=r"of different tasks \(.*low in CartPole-v1, .*other in Acrobot-v1\)"):
        compare([low, other])


def test_an_unknown_measure_and_one_that_is_missing_are_refused(low, high):
    with pytest.raises(InvalidSetting, match="'speed'; it must be one of evaluation, final, area"):
        compare([low, high], "speed")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TreadleError, match="cannot be compared by evaluation: there is none of"):
        compare([low, high], "evaluation")


@pytest.mark.parametrize("content", ["{", "[]", '{"per_seed": [1, 2]}', '{"per_seed": [1, 2, 3, 4, NaN], "step": 1}'])
def test_a_damaged_evaluation_is_told(low, high, content):
    evaluate(low, LOW)
    (high / "evaluation.json").write_text(content)
    with pytest.raises(TreadleError, match=r"evaluation\.json is damaged .*Make it anew: treadle evaluate"):
        compare([low, high])


# What is shown


def test_the_report_shows_tables_sentences_a_figure_and_the_numbers(low, high, tmp_path, capsys):
    report([low, high], json_file=tmp_path / "numbers" / "all.json")
    shown = capsys.readouterr().out

    for part in ("end of training", "area under", "difference of", "probability of", "3.00", "13.0", "10.0", "0.0079"):
        assert part in shown, part
    assert "double=True is better than double=False" in shown
    picture = low / "figures" / "comparison.png"
    assert f"Figure: {picture}" in shown and picture.exists()

    numbers = json.loads((tmp_path / "numbers" / "all.json").read_text())
    assert numbers["steps"] == 100 and numbers["by"] == "final" and numbers["level"] == pytest.approx(0.95)
    assert [run["label"] for run in numbers["runs"]] == ["double=False", "double=True"]
    assert numbers["runs"][1]["scores"]["area"]["per_seed"] == list(HIGH)
    assert numbers["runs"][1]["scores"]["final"]["iqm"] == 13
    assert numbers["runs"][0]["curve"]["iqm"][-1] == 3
    final, area = numbers["comparisons"]
    assert final["difference_of_iqms"]["value"] == 10 and final["verdict"].startswith("double=True is better")
    assert area["outcome"] == "better" and area["verdict"] is None, "the verdict is by one measure"


def test_brackets_in_a_label_are_shown_as_they_are(low, tmp_path, capsys):
    report([low, make_run(tmp_path / "wide", HIGH, hidden_sizes=(8, 8))])
    assert "hidden_sizes=[8, 8]" in capsys.readouterr().out


def test_the_figure_has_every_run_in_a_colour_of_its_own(low, high, tmp_path):
    third = make_run(tmp_path / "third", (6.0, 7.0, 8.0), gamma=0.9)
    path = plot(compare([low, high, third]), tmp_path / "figures" / "three.png")
    with Image.open(path) as image:
        assert image.width >= 1000
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or ()}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)} <= colours
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def drawn(monkeypatch) -> list[Any]:
    """Each figure, kept on its way to the file."""
    from matplotlib.figure import Figure

    kept: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (kept.append(self), path.write_text("")))
    return kept


def test_the_legend_is_whole_however_long_the_labels(low, tmp_path, drawn):
    shaped = make_run(tmp_path / "shaped", HIGH, environment="CartPoleShaped-v1", evaluated=HIGH)
    evaluate(low, LOW)
    plot(compare([low, shaped]), tmp_path / "x.png")
    long = make_run(tmp_path / "long", HIGH, learning_rate=0.000123, target_update_period=12345)
    plot(compare([low, long, make_run(tmp_path / "a", HIGH, gamma=0.123)]), tmp_path / "x.png")
    for figure in drawn:
        figure.draw_without_rendering()
        inside, whole = figure.legends[0].get_window_extent(), figure.bbox
        assert whole.x0 <= inside.x0 and inside.x1 <= whole.x1 and whole.y0 <= inside.y0


def test_more_runs_than_colours_are_told_apart_by_dashes(tmp_path, drawn):
    plot(
        compare([make_run(tmp_path / str(i), (float(i), i + 1.0), gamma=0.1 * i) for i in range(7)]), tmp_path / "x.png"
    )
    lines = drawn[0].axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 7
    assert lines[0].get_label() == "gamma=0 (2 seeds)"


def test_a_figure_or_numbers_that_cannot_be_written_are_told(low, high, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TreadleError, match=r"three.docx: end the name in"):
        report([low, high], out=tmp_path / "three.docx")
    with pytest.raises(TreadleError, match="cannot be written"):
        report([low, high], json_file=tmp_path / "file" / "all.json")


def test_runs_that_were_really_trained_are_compared(tmp_path, capsys):
    """In the maze, with little exploration and with nothing else: measured, +0.83 and -0.91 over the steps."""
    for name, epsilon in (("little", 0.05), ("all", 1.0)):
        flags = f"--preset none --learning-rate 0.5 --epsilon {epsilon} --total-timesteps 2000 --seeds 6"
        assert main(["train", "q-learning", "Maze", *flags.split(), "--out", str(tmp_path / name)]) == 0
    found = report([tmp_path / "little", tmp_path / "all"], by="area")

    assert found.steps == 2000 and set(found.measures) == {"final", "area"}
    assert "epsilon=0.05 is better than epsilon=1 by area under the learning curve" in capsys.readouterr().out
