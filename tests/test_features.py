"""Features and functions linear in them: by hand, at the borders, and as settings."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle import registry, settings
from treadle.algorithms.linear import Linear
from treadle.algorithms.q_learning import QLearning
from treadle.errors import InvalidSetting, TreadleError, UnsupportedSpace
from treadle.features import Active, Encoder, LinearFunction, Own, Polynomial, Table, TileCoding, add
from treadle.registry import as_float32, as_tree
from treadle.spaces import Box, Discrete
from treadle.types import space_spec

pytestmark = pytest.mark.least_optimised


def active(features: Any, *obs: float) -> list[int]:
    """Where the features of an observation are not zero."""
    found = features(jnp.asarray(obs, jnp.float32))
    assert found.values is None
    return np.asarray(found.indices).tolist()


# Tile coding


@pytest.mark.parametrize(
    ("x", "tiles"),
    [
        (0.0, [0, 0]),
        (0.49, [0, 0]),
        (0.5, [0, 1]),  # the second grid lies half a tile further to the left
        (1.0, [1, 1]),
        (3.9, [3, 4]),
        (4.0, [3, 4]),  # the border belongs to the last tile
        (-7.0, [0, 0]),  # and what is beyond to the border
        (99.0, [3, 4]),
        (math.inf, [3, 4]),
        (-math.inf, [0, 0]),
    ],
)
def test_tiles_of_one_number_by_hand(x, tiles):
    """Two grids of 4 tiles, and one more each, over [0, 4]: a tile is 1 wide, the second grid has numbers 5 to 9."""
    coding = TileCoding(low=(0.0,), high=(4.0,), tilings=2, tiles=4)
    assert coding.size == 10
    assert active(coding, x) == [tiles[0], 5 + tiles[1]]


def test_tiles_of_two_numbers_by_hand():
    """Four grids of 2 by 2 tiles, and one more each way: 9 in a grid, the first number's tile counting 1, the second's
    3. The grids are displaced by 0, 1, 2, 3 quarters in the first number, by 0, 3, 6 = 2, 9 = 1 in the second."""
    coding = TileCoding(low=(0.0, 0.0), high=(2.0, 2.0), tilings=4, tiles=2)
    assert coding.size == 36
    by_hand = [
        0 + 0 + 3 * 1,  # 0.6 and 1.3
        9 + 0 + 3 * 2,  # 0.85 and 2.05
        18 + 1 + 3 * 1,  # 1.1 and 1.8
        27 + 1 + 3 * 1,  # 1.35 and 1.55
    ]
    assert active(coding, 0.6, 1.3) == by_hand


def test_tiles_follow_the_bounds():
    coding = TileCoding(low=(-1.2, -0.07), high=(0.6, 0.07), tilings=8, tiles=8)
    unit = TileCoding(low=(0.0, 0.0), high=(1.0, 1.0), tilings=8, tiles=8)
    for x, y in ((0.01, 0.02), (0.53, 0.77), (0.98, 0.31)):
        assert active(coding, -1.2 + 1.8 * x, -0.07 + 0.14 * y) == active(unit, x, y)


@given(
    st.integers(1, 9),
    st.integers(1, 6),
    st.lists(st.sampled_from([-9.0, -1.0, 0.0, 1.0, 9.0]) | st.floats(-1.5, 1.5, width=32), min_size=1, max_size=3),
)
def test_every_point_has_one_tile_of_each_tiling(tilings, tiles, point):
    bounds = len(point) * (-1.0,), len(point) * (1.0,)
    coding = TileCoding(low=bounds[0], high=bounds[1], tilings=tilings, tiles=tiles)
    per_tiling = coding.size // tilings
    assert [i // per_tiling for i in active(coding, *point)] == list(range(tilings))


@pytest.mark.parametrize("tilings", [1, 2, 3, 4, 5, 6, 8, 15])
def test_no_two_tilings_agree_in_any_dimension(tilings):
    """On the way through one tile each tiling has its border at another place, all equally far apart."""
    coding = TileCoding(low=(0.0,) * 4, high=(3.0,) * 4, tilings=tilings, tiles=3)
    middles = 1 + (np.arange(tilings) + 0.5) / tilings
    for dimension in range(4):
        points = np.full((tilings, 4), 1.5, np.float32)
        points[:, dimension] = middles
        found = np.asarray(jax.vmap(coding)(jnp.asarray(points)).indices)
        changes = (found[1:] != found[:-1]).sum(axis=1)
        np.testing.assert_array_equal(changes, 1)


def test_tile_coding_generalises_to_what_is_near():
    coding = TileCoding(low=(0.0, 0.0), high=(1.0, 1.0), tilings=8, tiles=8)

    def shared(dx, dy):
        return len(set(active(coding, 0.5, 0.5)) & set(active(coding, 0.5 + dx, 0.5 + dy)))

    assert shared(0.0, 0.0) == 8
    assert 0 < shared(0.06, 0.0) < 8
    assert shared(0.2, 0.0) == shared(0.0, 0.2) == 0


# Polynomials, tables, and functions of one's own


def test_polynomials_by_hand():
    """Numbers 1 in [0, 4] and 0 in [-1, 1], that is a = 1/4 and b = 1/2: 1, b, b2, a, ab, ab2, a2, a2b, a2b2."""
    polynomial = Polynomial(low=(0.0, -1.0), high=(4.0, 1.0), degree=2)
    assert polynomial.size == 9
    indices, values = polynomial(jnp.array([1.0, 0.0]))
    assert indices is None
    expected = [1, 1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 16, 1 / 16, 1 / 32, 1 / 64]
    np.testing.assert_array_equal(np.asarray(values), expected)


def test_a_polynomial_ends_at_its_bounds():
    polynomial = Polynomial(low=(0.0,), high=(2.0,), degree=3)
    for x, features in ((-5.0, [1, 0, 0, 0]), (0.0, [1, 0, 0, 0]), (2.0, [1, 1, 1, 1]), (9.0, [1, 1, 1, 1])):
        np.testing.assert_array_equal(np.asarray(polynomial(jnp.array([x])).values), features)
    assert Polynomial(low=(0.0,), high=(2.0,), degree=0).size == 1


def test_a_table_counts_from_its_start():
    table = Table(size=4, start=10)
    assert np.asarray(table(jnp.array(12)).indices).tolist() == [2]


class Net(eqx.Module):
    """A callable tree with an array, and a leaf that is none."""

    matrix: Any
    activation: Any

    def __call__(self, obs):
        return self.activation(self.matrix @ obs)


@pytest.mark.parametrize("encoder", [lambda obs: jnp.tanh(np.eye(3, 2) @ obs), Net(np.eye(3, 2), jnp.tanh)])
def test_functions_of_ones_own_go_through_jit(encoder):
    """A bare function is no array, and neither is a module's activation: `jit` would refuse both."""
    obs = jnp.array([0.5, -1.0])
    own = Own.of(encoder)
    assert Own.of(own) is own
    features = Encoder(size=3, function=own)
    values = jax.jit(lambda features, obs: features(obs).values)(features, obs)
    np.testing.assert_allclose(values, np.tanh([0.5, -1.0, 0.0]), rtol=1e-6)


def test_the_arrays_of_a_function_of_ones_own_are_data():
    traced = []

    @jax.jit
    def compiled(own, obs):
        traced.append(own)
        return own(obs)

    for scale in (1.0, 2.0):
        own = Own.of(Net(scale * np.eye(3, 2, dtype=np.float32), jnp.tanh))
        np.testing.assert_allclose(compiled(own, jnp.ones(2)), np.tanh([scale, scale, 0.0]), rtol=1e-6)
    assert len(traced) == 1


# Functions linear in features

BOUNDS: dict[str, Any] = {"low": (0.0, -1.0), "high": (4.0, 1.0)}


@as_tree
class TwoOfFive:
    """Few features that are neither 0 nor 1."""

    size: int = 5

    def __call__(self, obs):
        return Active(jnp.array([3, 1]), obs)


MAPS = {
    "few": (TwoOfFive(), jnp.array([0.5, -2.0])),
    "table": (Table(size=6), jnp.array(4)),
    "tiles": (TileCoding(**BOUNDS, tilings=4, tiles=2), jnp.array([1.3, 0.4])),
    "one tiling": (TileCoding(**BOUNDS, tilings=1, tiles=2), jnp.array([1.3, 0.4])),
    "polynomial": (Polynomial(**BOUNDS, degree=2), jnp.array([1.3, 0.4])),
    "raw": (Encoder(size=2), jnp.array([1.3, 0.4])),
}


def as_vector(found: Active, size: int) -> np.ndarray:
    """The features `[n]`, zeros included."""
    indices = np.arange(size) if found.indices is None else np.asarray(found.indices)
    x = np.zeros(size, np.float32)
    x[indices] = 1.0 if found.values is None else np.asarray(found.values)
    return x


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("columns", [(), (3,)])
@pytest.mark.parametrize("name", MAPS)
def test_a_value_is_a_weighted_sum_and_a_step_adds_the_features(name, columns, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    features, obs = MAPS[name]
    x = as_vector(features(obs), features.size)
    assert x.any()
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(features.size, *columns)), jnp.float32)
    amount = jnp.asarray(rng.normal(size=columns), jnp.float32)
    function = LinearFunction(weights=weights, features=features)
    np.testing.assert_allclose(function(obs), np.tensordot(x, weights, 1), atol=1e-6)

    stepped = weights + np.multiply.outer(x, amount)
    np.testing.assert_allclose(function.add(obs, amount).weights, stepped, atol=1e-6)
    for dense in (False, True):
        np.testing.assert_allclose(add(weights, features(obs), amount, dense), stepped, atol=1e-6)


@pytest.mark.parametrize("name", MAPS)
def test_the_gradient_of_a_value_is_its_features(name):
    features, obs = MAPS[name]
    gradient = jax.grad(lambda w: LinearFunction(weights=w, features=features)(obs))(jnp.ones(features.size))
    np.testing.assert_allclose(gradient, as_vector(features(obs), features.size), atol=1e-6)


# As settings

BOX = Box((0.0, -1.0), (4.0, 1.0), (2,))


def test_bounds_are_those_of_the_space_unless_given():
    of_space = QLearning(features="tile-coding").feature_map(BOX)
    given = QLearning(features="polynomial", low=(-2.0, -2.0)).feature_map(BOX)
    of_states = QLearning(features="polynomial", degree=1).feature_map(Discrete(5, start=3))
    assert isinstance(of_space, TileCoding) and (of_space.low, of_space.high) == ((0.0, -1.0), (4.0, 1.0))
    assert isinstance(given, Polynomial) and (given.low, given.high) == ((-2.0, -2.0), (4.0, 1.0))
    assert isinstance(of_states, Polynomial) and (of_states.low, of_states.high) == ((3.0,), (7.0,))
    np.testing.assert_array_equal(np.asarray(of_states(jnp.array(4)).values), [1.0, 0.25])


def test_raw_features_are_the_observations_numbers():
    features = QLearning(features="raw").feature_map(Box(0.0, 9.0, (2, 2)))
    np.testing.assert_array_equal(np.asarray(features(jnp.arange(4).reshape(2, 2)).values), [0, 1, 2, 3])


UNBOUNDED = Box((-1.0, -math.inf), (1.0, math.inf), (2,))


@pytest.mark.parametrize(
    ("algorithm", "space", "says"),
    [
        (QLearning(), BOX, "--features tile-coding, polynomial or raw"),
        (QLearning(features="tile-coding"), UNBOUNDED, "number 1 of the observation lies between -inf and inf"),
        (QLearning(features="polynomial", low=(0.0,)), BOX, "low .* must be 2 numbers"),
        (QLearning(features="polynomial", low=(5.0, -1.0)), BOX, "number 0 of the observation lies between 5 and 4"),
        (QLearning(features="tile-coding", tiles=9_999), BOX, "fewer --tiles"),
        (QLearning(features="tile-coding", tilings=0), BOX, "--tilings"),
        (QLearning(features="polynomial", degree=-1), BOX, "--degree"),
        (QLearning(encoder=lambda obs: obs[7, 7]), BOX, r"encoder cannot take an observation of shape \(2,\)"),
        (QLearning(encoder=lambda obs: jnp.outer(obs, obs)), BOX, r"features of shape \(2, 2\); they must be a vector"),
        (QLearning(), Discrete(40_000_000), "which generalise over states"),
    ],
)
def test_mistakes_are_told_in_sentences(algorithm: Linear, space, says):
    with pytest.raises((InvalidSetting, UnsupportedSpace), match=says):
        algorithm.check(space_spec(space, Discrete(2)))


LINEAR = [name for name, (cls, _) in registry.algorithms.entries().items() if issubclass(cls, Linear)]


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize(
    "given",
    [
        {"features": "table"},
        {"features": "raw", "initial_value": 0.5},
        {"features": "polynomial", "degree": 5, "low": (0.0, -2.5)},
        {"features": "tile-coding", "tilings": 4, "tiles": 16, "low": (0.0, -1.0), "high": (1.0, 1.0)},
    ],
    ids=lambda given: given["features"],
)
def test_feature_settings_survive_a_file(name, given):
    algorithm = registry.algorithms.make(name, **given)
    described = json.loads(json.dumps(settings.describe(algorithm)))
    restored = settings.restore(algorithm.name, described)
    assert type(restored) is type(algorithm)
    assert dataclasses.asdict(restored) == dataclasses.asdict(algorithm)


def test_an_encoder_is_named_in_a_file_and_given_again():
    def encoder(obs):
        return jnp.tanh(obs)

    for algorithm in (QLearning(encoder=encoder), as_float32(QLearning(encoder=encoder).prepared())):
        described = json.loads(json.dumps(settings.describe(algorithm)))
        with pytest.raises(TreadleError, match=r"with an encoder of its maker's own .* encoder=\.\.\."):
            settings.restore("q-learning", described)
        assert settings.restore("q-learning", described, encoder=encoder).encoder is encoder
