"""What is said about several seeds is true of them, and no more than that."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from treadle import study
from treadle.errors import InvalidSetting, TreadleError

scores = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=24)
several = st.lists(st.integers(-1000, 1000), min_size=2, max_size=12)


def episode(seed, step, episode_return, **more):
    return {"seed": seed, "step": step, "time": 0.0, "episode_return": episode_return, "episode_length": 1, **more}


def curves(returns):
    returns = np.asarray(returns, np.float64)
    return study.Curves(10 * np.arange(1, returns.shape[1] + 1), returns, tuple(range(len(returns))))


def bounds(values, *args, **settings):
    """The two ends of an interval that there is."""
    found = study.interval(values, *args, **settings)
    assert found.low is not None
    assert found.high is not None
    assert found.reason is None
    return found.low, found.high


# The interquartile mean


@pytest.mark.parametrize(
    ("given_scores", "expected"),
    [
        ([7], 7),
        ([1, 5], 3),
        ([0, 1, 8], 3),
        ([100, 1, 2, -50], 1.5),
        ([9, 1, 2, 3, -80], 2),
        ([10, 1, 2, 3, 6, -80], 3),
        ([1000, 1, 2, 3, 4, 5, 6, -1000], 3.5),
    ],
)
def test_the_iqm_cuts_a_quarter_of_whole_scores_at_each_end(given_scores, expected):
    assert study.iqm(given_scores) == pytest.approx(expected)


def test_the_iqm_of_curves_is_over_seeds():
    returns = np.array([[0, 10], [1, 11], [3, 13], [100, -100]])
    np.testing.assert_allclose(study.iqm(returns), [2, 10.5])
    np.testing.assert_allclose(study.iqm(returns.T, axis=1), [2, 10.5])


def test_a_nan_is_not_cut_off_with_the_highest_quarter():
    assert np.isnan(study.iqm([1, 2, 3, np.nan]))
    np.testing.assert_array_equal(study.iqm([[1, 1], [2, 2], [3, 3], [np.nan, 4]]), [np.nan, 2.5])


@given(scores)
def test_the_iqm_lies_between_the_lowest_and_the_highest(values):
    rounding = 1e-12 * max(map(abs, values))
    assert min(values) - rounding <= study.iqm(values) <= max(values) + rounding


@given(scores, st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_does_not_matter_to_the_iqm(values, random):
    shuffled = random.sample(values, len(values))
    assert study.iqm(shuffled) == pytest.approx(study.iqm(values), rel=1e-9, abs=1e-6)


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.floats(-1e6, 1e6), min_size=4 * n, max_size=4 * n)))
def test_with_seeds_in_fours_the_iqm_is_the_mean_of_the_middle_half(values):
    quarter = len(values) // 4
    middle = sorted(values)[quarter : 3 * quarter]
    assert study.iqm(values) == pytest.approx(np.mean(middle), rel=1e-9, abs=1e-6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=24))
def test_one_lucky_seed_moves_the_iqm_no_further_than_a_slightly_better_one(values):
    ordered = sorted(values)
    lucky = [*ordered[:-1], 1e9]
    assert study.iqm(lucky) == pytest.approx(study.iqm(ordered), rel=1e-9, abs=1e-6)


# Intervals


def test_an_interval_can_be_checked_by_hand_for_two_seeds():
    """Of two scores 0 and 1, resamples are 00, 01, 10, 11: the mean is 0 and 1 a quarter of the time each."""
    assert bounds([0, 1]) == (0, 1)
    assert bounds([0, 1], confidence=0.4) == (0.5, 0.5)


def test_the_same_scores_give_the_same_interval_and_the_seed_only_its_last_digits():
    values = np.random.default_rng(0).normal(100, 10, 12)

    assert bounds(values) == bounds(values)
    assert bounds(values, seed=1) != bounds(values)
    np.testing.assert_allclose(bounds(values, seed=1), bounds(values), atol=0.5)


def test_one_seed_has_no_interval_and_is_told_why():
    low, high, reason = study.interval([3.0])
    assert low is None
    assert high is None
    assert reason is not None
    assert "at least two" in reason


def test_seeds_that_all_score_the_same_have_an_interval_of_no_width():
    assert bounds([500.0] * 8) == (500, 500)
    low, high = bounds([0.1] * 5)
    assert low == high == pytest.approx(0.1)


def test_more_confidence_is_a_wider_interval():
    values = np.random.default_rng(0).normal(size=12)
    narrow, wide = bounds(values, confidence=0.5), bounds(values, confidence=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_interval_is_that_of_the_statistic_that_was_asked_for():
    values = [0.0] * 15 + [1e6]
    assert bounds(values) == (0, 0)
    assert bounds(values, np.mean) == pytest.approx((0, 3e6 / 16))
    assert bounds(values, np.max) == (0, 1e6)


@given(several)
def test_an_interval_is_in_order_and_within_the_scores(values):
    low, high = bounds(values)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


@given(several, st.integers(-1000, 1000), st.integers(1, 100))
def test_other_units_give_the_same_interval_in_those_units(values, shift, factor):
    low, high = bounds(values)
    after = bounds([factor * v + shift for v in values])
    assert after == pytest.approx((factor * low + shift, factor * high + shift), abs=1e-6)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """The IQM of the exponential distribution is 0.738 (its mean is 1).

    Eight repetitions of these 400 experiments with 20 seeds covered it in 92% to 96% of cases, with a standard
    deviation of 1.3%, and the mean in 74% to 81%.
    """
    low_quartile, high_quartile = np.log(4 / 3), np.log(4)
    truth = 2 * (0.75 * (low_quartile + 1) - 0.25 * (high_quartile + 1))
    draws = np.random.default_rng(0).exponential(size=(20, 400))

    _, low, high = study.band(curves(draws))

    assert 0.89 < np.mean((low <= truth) & (truth <= high)) < 0.99
    assert np.mean((low <= 1) & (high >= 1)) < 0.86, "so wide an interval would cover anything"


@pytest.mark.parametrize("wrong", [[], [[1.0, 2.0]], [1.0, np.nan], [np.inf]])
def test_scores_that_are_not_one_number_a_seed_are_refused(wrong):
    with pytest.raises(TreadleError, match="one finite number for each seed"):
        study.interval(wrong)
    with pytest.raises(TreadleError, match="one finite number for each seed"):
        study.summarise(wrong)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_is_a_probability(confidence):
    with pytest.raises(InvalidSetting, match=f"confidence was {confidence}"):
        study.interval([1, 2], confidence=confidence)


# Summaries and tables


def test_a_summary_is_a_sentence():
    summary = study.summarise([0, 500, 500, 500, 500, 500, 500, 420])

    assert summary._replace(low=None, high=None) == (500, None, None, 427.5, 0, 500, 8)
    assert summary.high == 500
    assert summary._replace(low=420.0).sentence() == (
        "IQM 500.0 (95% bootstrap interval 420.0 to 500.0) over 8 seeds; mean 427.5, from 0 to 500.0."
    )


def test_the_summary_of_one_seed_claims_nothing_about_others():
    summary = study.summarise([12_345.6])

    assert summary == (12_345.6, None, None, 12_345.6, 12_345.6, 12_345.6, 1)
    assert summary.sentence().startswith("Score 12,346 with one seed")
    assert "interval" not in summary.sentence()


def shown(table):
    from rich.console import Console

    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_table_ends_with_the_iqm_and_its_interval():
    rows = [{"seed": i, "mean": m, "sd": 0.25} for i, m in enumerate((100.0, 300.0, 200.0, 1000.0))]

    text = shown(study.table(rows, study.Summary(250, 150.5, 650, 400, 100, 1000, 4), title="20 [greedy] episodes"))

    assert "20 [greedy] episodes" in text
    for seed, mean in enumerate(("100.0", "300.0", "200.0", "1,000.0")):
        assert any(line.split("│")[1:4] == [f"{seed:>18} ", f"{mean:>23} ", " 0.25 "] for line in text.splitlines())
    last = text.splitlines()[-2]
    assert "IQM, 95% interval" in last
    assert "250.0 (150.5 to 650.0)" in last


def test_the_table_works_its_summary_out_where_none_is_given():
    rows = [{"seed": i, "mean": 7.0} for i in range(3)]
    assert "7.00 (7.00 to 7.00)" in shown(study.table(rows))
    assert "interval" not in shown(study.table(rows[:1]))
    with pytest.raises(TreadleError, match="evaluate at least one seed"):
        study.table([])


# Learning curves


def test_a_curve_is_the_mean_of_each_bin_carried_forward_and_unknown_before_the_first_episode():
    records = [
        episode(0, 5, 1.0),
        episode(0, 10, 3.0),
        episode(0, 11, 8.0),
        episode(0, 40, 6.0),
        episode(1, 25, 4.0),
        {"seed": 1, "step": 40, "time": 0.0, "loss": 0.5},
    ]

    found = study.learning_curves(records, grid=4)

    np.testing.assert_array_equal(found.steps, [10, 20, 30, 40])
    np.testing.assert_array_equal(found.returns, [[2, 8, 8, 6], [np.nan, np.nan, 4, 4]])
    assert found.seeds == (0, 1)


def test_the_grid_reaches_to_the_last_step_even_where_no_episode_ended_there():
    found = study.learning_curves([episode(3, 1, 5.0), {"seed": 3, "step": 1000, "time": 0.0, "loss": 1.0}])
    assert len(found.steps) == 100
    assert found.steps[-1] == 1000
    assert found.seeds == (3,)
    np.testing.assert_array_equal(found.returns, np.full((1, 100), 5.0))


def test_a_wider_window_smooths():
    records = [episode(0, 10 * (i + 1), float(r)) for i, r in enumerate((0, 6, 3, 9))]

    found = study.learning_curves(records, grid=4, window=20)

    np.testing.assert_array_equal(found.returns, [[0, 3, 4.5, 6]])


def test_a_record_of_several_episodes_weighs_as_many():
    found = study.learning_curves([episode(0, 5, 10.0, episodes=3), episode(0, 10, 2.0)], grid=1)
    np.testing.assert_array_equal(found.returns, [[8.0]])


def test_there_are_never_more_points_than_steps():
    found = study.learning_curves([episode(0, 3, 1.0)])
    np.testing.assert_array_equal(found.steps, [1, 2, 3])


def test_a_seed_without_an_episode_is_there_and_unknown():
    found = study.learning_curves([episode(0, 10, 1.0), {"seed": 1, "step": 10, "time": 0.0}], grid=2)
    np.testing.assert_array_equal(found.returns, [[np.nan, 1], [np.nan, np.nan]])


def test_episodes_without_a_return_are_no_episodes():
    with pytest.raises(TreadleError, match="no episode has ended yet"):
        study.learning_curves([episode(0, 10, None), {"seed": 1, "step": 10, "time": 0.0}])


@pytest.mark.parametrize("setting", ["grid", "window"])
def test_a_grid_and_a_window_are_positive(setting):
    with pytest.raises(InvalidSetting, match=f"{setting} was 0"):
        study.learning_curves([episode(0, 10, 1.0)], **{setting: 0})


episodes_of_seeds = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 60), st.integers(-5, 5)), min_size=1, max_size=40
)


@given(episodes_of_seeds, st.integers(1, 70), st.one_of(st.none(), st.integers(1, 70)))
def test_each_point_is_the_mean_of_what_ended_in_its_window(episodes, grid, window):
    """Against the definition, point by point, in whatever order the records come."""
    found = study.learning_curves([episode(*e) for e in episodes], grid, window)

    assert np.all(np.diff(found.steps) > 0)
    for row, seed in zip(found.returns, found.seeds, strict=True):
        before, expected = 0, np.nan
        for step, value in zip(found.steps, row, strict=True):
            start = before if window is None else step - window
            inside = [r for s, at, r in episodes if s == seed and start < at <= step]
            expected = np.mean(inside) if inside else expected
            np.testing.assert_allclose(value, expected)
            before = step


# Bands


def test_the_band_is_the_interval_at_each_point():
    returns = np.random.default_rng(0).normal(100, 10, (10, 3))

    middle, low, high = study.band(curves(returns))

    for p in range(3):
        assert middle[p] == pytest.approx(study.iqm(returns[:, p]))
        np.testing.assert_allclose([low[p], high[p]], bounds(returns[:, p]), atol=1.0)


def test_a_seed_counts_from_its_first_episode_on():
    n = np.nan
    returns = [[n, 2, 2, 2, 2], [n, n, 4, 4, 4], [n, n, n, 6, 6], [n, n, n, n, 800]]

    middle, low, high = study.band(curves(returns))

    np.testing.assert_allclose(middle, [n, 2, 3, 4, 5])
    np.testing.assert_allclose(low, [n, n, 2, 2, 2])
    np.testing.assert_array_equal(np.isnan(high), [True, True, False, False, False])
    assert (high[2], high[3]) == (4, 6)


def test_a_point_says_the_same_whatever_points_are_beside_it():
    returns = np.random.default_rng(1).normal(size=(6, 5))
    np.testing.assert_allclose(study.band(curves(returns[:, :1]))[1], study.band(curves(returns))[1][:1])


# The figure


@pytest.fixture
def some_curves():
    rng = np.random.default_rng(0)
    rise = 500 / (1 + np.exp(-np.linspace(-5, 5, 50)))
    returns = np.clip(rise + rng.normal(0, 40, (5, 50)), 0, 500)
    returns[2, :4] = np.nan
    return study.Curves(1000 * np.arange(1, 51), returns, (0, 1, 2, 3, 4))


def test_the_figure_is_drawn_and_nothing_else_is_left(some_curves, tmp_path):
    path = tmp_path / "figures" / "curve.png"

    assert study.plot_learning_curve(some_curves, path, "dqn in CartPole-v1 for $5", threshold=475) == path

    with Image.open(path) as image:
        assert image.width >= 1000
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or ()}
    assert (0x00, 0x72, 0xB2) in colours, "the IQM should be there"
    assert (0xD5, 0x5E, 0x00) in colours, "the threshold should be there"
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def drawn(monkeypatch):
    """The axes of each figure, kept on their way to the file."""
    from matplotlib.figure import Figure

    kept = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        kept.append(self.axes[0])
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_figure_says_what_it_shows(some_curves, tmp_path, drawn):
    study.plot_learning_curve(some_curves, tmp_path / "a.svg", "dqn", threshold=475)

    axes = drawn[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("environment steps", "episode return")
    assert axes.get_title(loc="left") == "dqn"
    assert legend(axes) == ["IQM over seeds", "95% bootstrap interval", "each of 5 seeds", "threshold 475"]
    middle = axes.get_lines()[0].get_ydata()
    np.testing.assert_allclose(middle, study.band(some_curves)[0])


def test_one_seed_is_drawn_without_a_band(some_curves, tmp_path, drawn):
    one = study.Curves(some_curves.steps, some_curves.returns[3:4], (3,))
    study.plot_learning_curve(one, tmp_path / "a.png", "one")

    assert legend(drawn[0]) == ["seed 3"]
    assert not drawn[0].collections


def test_a_single_point_can_be_seen(tmp_path, drawn):
    study.plot_learning_curve(study.Curves(np.array([10]), np.array([[5.0]]), (0,)), tmp_path / "a.png", "short")
    assert drawn[0].get_lines()[0].get_marker() == "o"


def test_a_figure_that_cannot_be_written_is_told(some_curves, tmp_path):
    with pytest.raises(TreadleError, match=r"curve.docx: end the name in .png"):
        study.plot_learning_curve(some_curves, tmp_path / "curve.docx", "")
    (tmp_path / "file").write_text("")
    with pytest.raises(TreadleError, match="cannot be written"):
        study.plot_learning_curve(some_curves, tmp_path / "file" / "curve.png", "")


def test_a_failed_drawing_leaves_the_old_one(some_curves, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "curve.png"
    path.write_bytes(b"the old one")

    def full_disk(self, target, **_):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(TreadleError, match="No space left"):
        study.plot_learning_curve(some_curves, path, "")

    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_importing_treadles_statistics_imports_nothing_heavy():
    story = """
import sys
from treadle import metrics, study
heavy = {"scipy", "matplotlib", "rich", "tensorboardX", "tensorboard"} & set(sys.modules)
print(*heavy)
"""
    done = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
