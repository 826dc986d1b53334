"""Spaces: taken from Gymnasium, sampled, written to a file's metadata and read back."""

from __future__ import annotations

import json
import math

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import TreadleError, UnsupportedSpace
from treadle.spaces import Box, Discrete, Grid, from_description, from_gymnasium

SPACES = [
    Discrete(4),
    Discrete(3, start=-1),
    Box(-1.0, 1.0, (2,)),
    Box((0.0, -math.inf), (1.0, math.inf), (2,)),
    Box(((0.0, 1.0), (2.0, 3.0)), 4.0, (2, 2)),
    Box(0.0, 255.0, (2, 2), np.uint8),
    Grid(9, box=Box((-1.0, 0.0), 1.0, (2,)), levels=3),
]


def test_a_discrete_space_keeps_its_start():
    assert from_gymnasium(gymnasium.spaces.Discrete(5, start=2)) == Discrete(5, start=2)


def test_a_box_with_equal_bounds_says_them_once():
    box = from_gymnasium(gymnasium.spaces.Box(-2.0, 2.0, (3,), np.float32))
    assert box == Box(-2.0, 2.0, (3,), np.float32)


def test_a_box_keeps_the_bounds_of_each_number():
    box = from_gymnasium(gymnasium.spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, 5], np.float32)))
    assert isinstance(box, Box)
    assert box.low == (-1.0, -math.inf)
    assert box.high == (1.0, 5.0)


def test_double_precision_becomes_single_and_bytes_stay_bytes():
    double = from_gymnasium(gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64))
    image = from_gymnasium(gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8))
    assert np.dtype(double.dtype) == np.float32
    assert np.dtype(image.dtype) == np.uint8


@pytest.mark.parametrize(
    ("space", "advice"),
    [
        (gymnasium.spaces.Dict({"a": gymnasium.spaces.Discrete(2)}), "FlattenObservation"),
        (gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2)]), "FlattenObservation"),
        (gymnasium.spaces.MultiDiscrete([2, 3]), "one Discrete"),
        (gymnasium.spaces.MultiBinary(3), "FlattenObservation"),
        (gymnasium.spaces.Text(3), "Gymnasium wrapper"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_other_spaces_are_refused_with_advice(space, advice):
    with pytest.raises(UnsupportedSpace, match=advice) as refusal:
        from_gymnasium(space)
    assert str(space) in str(refusal.value)
    assert isinstance(refusal.value, TreadleError)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_description_survives_a_file(space):
    """Sampled and compared field by field: what reads it back must not notice that it came from JSON."""
    read = from_description(json.loads(json.dumps(space.describe())))
    assert type(read) is type(space)
    assert read.shape == space.shape
    assert np.dtype(read.dtype) == np.dtype(space.dtype)
    key = jax.random.key(0)
    np.testing.assert_array_equal(read.sample(key), space.sample(key))
    assert read.describe() == space.describe()


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_can_be_part_of_a_compiled_program(space):
    """Programs are kept by what they depend on, so a space must be hashable and equal to its like."""
    read = from_description(space.describe())
    again = from_description(space.describe())
    assert hash(read) == hash(again)
    assert read == again


@given(n=st.integers(1, 20), start=st.integers(-5, 5), seed=st.integers(0, 1000))
def test_discrete_samples_count_from_zero(n, start, seed):
    samples = np.asarray(Discrete(n, start).sample(jax.random.key(seed), (64,)))
    assert samples.dtype == np.int32
    assert samples.min() >= 0
    assert samples.max() < n


def test_discrete_samples_reach_every_action_about_equally():
    counts = np.bincount(Discrete(4, start=7).sample(jax.random.key(0), (8000,)), minlength=4)
    # Four standard deviations of a binomial count.
    np.testing.assert_allclose(counts, 2000, atol=4 * math.sqrt(8000 * 0.25 * 0.75))


@given(low=st.floats(-100, 100), width=st.floats(0.125, 100), seed=st.integers(0, 1000))
def test_bounded_samples_stay_in_bounds(low, width, seed):
    box = Box(low, low + width, (3,))
    samples = np.asarray(box.sample(jax.random.key(seed), (32,)))
    assert samples.shape == (32, 3)
    assert samples.dtype == np.float32
    rounding = 1e-6 * (abs(low) + width)
    assert samples.min() >= low - rounding
    assert samples.max() <= low + width + rounding


def test_unbounded_numbers_are_drawn_from_a_normal_distribution():
    box = Box((0.0, -math.inf), (1.0, math.inf), (2,))
    samples = np.asarray(box.sample(jax.random.key(0), (4000,)))
    assert samples[:, 0].min() >= 0
    assert samples[:, 0].max() <= 1
    np.testing.assert_allclose(samples[:, 1].std(), 1.0, atol=0.06)
    np.testing.assert_allclose(samples[:, 1].mean(), 0.0, atol=0.08)


BOXES = [Box(-2.0, 2.0, (1,)), Box((0.0, -3.0), (1.0, 5.0), (2,)), Box(((0.0, 1.0), (2.0, 3.0)), 4.0, (2, 2))]


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_units_run_from_one_bound_to_the_other(box):
    size = math.prod(box.shape)
    low, high = (np.broadcast_to(np.asarray(b, np.float32), box.shape) for b in (box.low, box.high))
    for unit, expected in ((-1.0, low), (0.0, (low + high) / 2), (1.0, high), (-7.0, low), (7.0, high)):
        np.testing.assert_array_equal(box.from_unit(jnp.full(size, unit)), expected)


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_an_action_comes_back_as_the_units_it_was_made_of(box):
    unit = jax.random.uniform(jax.random.key(0), (7, 5, math.prod(box.shape)), minval=-1.0, maxval=1.0)
    made = box.from_unit(unit)
    assert made.shape == (7, 5, *box.shape)
    np.testing.assert_allclose(box.to_unit(made), unit, atol=1e-5)


def test_a_number_with_one_value_only_has_a_place_in_units():
    box = Box((0.0, 3.0), (1.0, 3.0), (2,))
    np.testing.assert_array_equal(box.from_unit(jnp.array([0.0, 0.5])), [0.5, 3.0])
    np.testing.assert_array_equal(box.to_unit(jnp.array([0.5, 3.0])), [0.0, -1.0])


@pytest.mark.parametrize(
    ("low", "high", "bounded"),
    [
        (0.0, 1.0, True),
        (-math.inf, 1.0, False),
        (0.0, (1.0, math.inf), False),
        (-3e38, 3e38, False),
        (-1e40, 1e40, False),
    ],
)
def test_bounded_means_on_either_side_of_every_number(low, high, bounded):
    assert Box(low, high, (2,)).is_bounded is bounded
