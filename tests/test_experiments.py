"""Experiments bear out what they claim, and `treadle reproduce` keeps what it found."""

from __future__ import annotations

import json

import numpy as np
import pytest

from treadle import experiment, registry
from treadle.errors import InvalidSetting, TreadleError, UnknownName
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

NAMES = list(experiment.experiments())
QUICK = {"baird": 5, "dyna-q": 5, "traces": 1, "treasure-line": 30}
"""Experiments that take a few seconds with so many seeds; the others run with all of theirs in the slow tests."""


def lengths(figure, outcomes):
    figure.subplots().plot(outcomes["learner"].lengths.T)


TINY = Experiment(
    about="a tiny one",
    source="this test",
    trials=(
        Trial("learner", "q-learning", "TreasureLine", {"gamma": 0.9}, episodes=3, observe=common.q_table),
        Trial("once", "q-learning", "TreasureLine", {"gamma": 0.9}, episodes=2, seeds=1),
    ),
    draw=lengths,
    claims=(
        Claim("episodes take five steps or more", lambda o: Verdict(o["learner"].lengths.min() >= 5, "it did")),
        Claim("episodes take one step", lambda o: Verdict(bool(o["learner"].lengths.max() == 1), "they do not")),
    ),
    seeds=4,
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(experiment, "experiments", lambda: {"tiny": TINY})


def test_a_run_is_a_folder_with_figure_claims_and_data(tiny, tmp_path):
    told = []
    judged = experiment.reproduce("tiny", tmp_path / "out", seed=1, command="treadle reproduce tiny", tell=told.append)
    assert told == ["learner", "once"]
    assert [(j.holds, j.figures) for j in judged] == [(True, "it did"), (False, "they do not")]
    assert (tmp_path / "out/figures/tiny.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((tmp_path / "out/experiment.json").read_text())
    assert kept["seeds"] == 4 and kept["seed"] == 1 and kept["command"] == "treadle reproduce tiny"
    assert [c["holds"] for c in kept["claims"]] == [True, False]
    assert kept["trials"][0]["settings"] == {"gamma": 0.9}
    data = np.load(tmp_path / "out/data.npz")
    assert data["learner/lengths"].shape == (4, 3)
    assert data["once/lengths"].shape == (1, 2)
    np.testing.assert_array_equal(data["learner/returns"], 1.0)


def test_the_same_seeds_give_the_same_outcome(tiny):
    trial = TINY.trials[0]
    once, again, other = trial.run(0, 2), trial.run(0, 3), trial.run(1, 2)
    np.testing.assert_array_equal(once.observed, again.observed[:2])
    assert not np.array_equal(once.lengths, other.lengths)


def test_mistakes_are_told_in_sentences(tmp_path):
    with pytest.raises(UnknownName, match=r"no experiment 'cliff-wlking'\. Did you mean 'cliff-walking'\?"):
        experiment.reproduce("cliff-wlking", tmp_path)
    with pytest.raises(InvalidSetting, match="seeds"):
        experiment.reproduce("treasure-line", tmp_path, seeds=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(TreadleError, match="cannot be made"):
        experiment.reproduce("treasure-line", tmp_path / "file" / "out")


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_declared_whole(name):
    declared = experiment.find(name)
    labels = [trial.label for trial in declared.trials]
    assert len(set(labels)) == len(labels), "outcomes are known by their labels"
    assert declared.about and declared.source and declared.claims
    assert all((t.episodes is None) != (t.updates is None) for t in declared.trials)


@pytest.mark.parametrize("name", sorted(QUICK))
def test_a_quick_experiment_bears_out_its_claims(name, tmp_path):
    judged = experiment.reproduce(name, tmp_path, seeds=QUICK[name])
    assert all(j.holds for j in judged), judged


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_bears_out_its_claims(name, tmp_path):
    judged = experiment.reproduce(name, tmp_path)
    assert all(j.holds for j in judged), judged


def test_a_path_is_optimal_only_if_no_tie_leads_astray():
    world = registry.environments.make("TreasureLine")
    right = np.zeros((6, 2))
    right[:5, 1] = 1
    undecided, wrong = right.copy(), right.copy()
    undecided[2] = 0
    wrong[0] = (1, 0)
    found = common.paths_are_optimal(world, np.stack([right, undecided, wrong]), 0.9)
    assert found.tolist() == [True, False, False]
