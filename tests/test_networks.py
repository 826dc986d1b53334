"""Networks: their first weights, the function they compute, and the one vector they are trained as."""

from __future__ import annotations

import functools
import math
import re
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle.errors import InvalidSetting
from treadle.networks import MLP, Features, Linear, QNetwork, Raveled, TanhGaussianPolicy, orthogonal, ravel
from treadle.spaces import Box, Discrete

pytestmark = pytest.mark.least_optimised


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (33, 33), (1, 1)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.01, math.sqrt(2)])
def test_orthogonal_matrices_are_orthonormal(shape, scale):
    matrix = np.asarray(jax.jit(orthogonal, static_argnums=1)(jax.random.key(0), shape, scale), np.float64)
    assert matrix.shape == shape
    gram = matrix.T @ matrix if shape[0] >= shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(gram / scale**2, np.eye(min(shape)), atol=2e-6)


def test_orthogonal_stays_exact_for_wide_layers():
    """One pass of Gram-Schmidt in float32 would lose orthogonality where a square Gaussian is ill-conditioned."""
    for seed in range(3):
        matrix = np.asarray(jax.jit(orthogonal, static_argnums=1)(jax.random.key(seed), (256, 256)), np.float64)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(256), atol=3e-6)


def test_orthogonal_matrices_are_uniformly_distributed():
    """Moments of the Haar measure, with margins of five standard deviations. A QR whose signs are not fixed fails:
    its diagonals lean to one side."""
    count = 4_000
    keys = jax.random.split(jax.random.key(0), count)
    matrices = np.asarray(jax.jit(jax.vmap(lambda key: orthogonal(key, (3, 3))))(keys))
    five = 5 / math.sqrt(count)
    assert np.abs(matrices.mean(0)).max() < five * math.sqrt(1 / 3)
    assert np.abs((matrices > 0).mean(0) - 0.5).max() < five * 0.5
    # Each entry squared is Beta(1/2, 1): mean 1/3, variance 4/45.
    assert np.abs((matrices**2).mean(0) - 1 / 3).max() < five * math.sqrt(4 / 45)
    assert abs((np.linalg.det(matrices) > 0).mean() - 0.5) < five * 0.5
    # The trace of a uniform rotation or reflection of space: mean 0, variance 1, fourth moment 3.
    trace = np.trace(matrices, axis1=1, axis2=2)
    assert abs(trace.mean()) < five
    assert abs((trace**2).mean() - 1) < five * math.sqrt(2)


MANY_SEEDS = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from treadle.networks import MLP

sharding = NamedSharding(Mesh(np.asarray(jax.devices()), ("seeds",)), PartitionSpec("seeds"))
seeds = jax.device_put(jax.random.split(jax.random.key(0), 8), sharding)
many = jax.jit(jax.vmap(lambda key: MLP(key, (4, 32, 32, 32, 2))))
for _ in range(30):
    jax.block_until_ready(many(seeds))
print(len(jax.devices()), "devices")
"""


def test_many_seeds_are_initialised_without_waiting_for_each_other():
    """Several QR calls in one program once waited for each other's threads for ever. In a process of its own, which
    the limit ends if it hangs."""
    done = subprocess.run([sys.executable, "-c", MANY_SEEDS], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 devices\n"


def test_initialisation_calls_no_lapack():
    """The test for the same trap that cannot miss it by luck."""

    def targets(function) -> list[str]:
        program = jax.jit(jax.vmap(function)).lower(jax.random.split(jax.random.key(0), 2))
        return re.findall(r'custom_call_target="(\w*lapack\w*)"', str(program.compile().as_text()))

    assert "lapack_sgeqrf_ffi" in targets(lambda key: jnp.linalg.qr(jax.random.normal(key, (4, 4)))[0])
    assert targets(lambda key: MLP(key, (4, 5, 2))) == []


def test_orthogonal_layers_are_scaled_and_without_bias():
    mlp = jax.jit(lambda key: MLP(key, (8, 16, 4), output_scale=0.01))(jax.random.key(0))
    hidden, last = (np.asarray(layer.weight) for layer in mlp.layers)
    np.testing.assert_allclose(hidden @ hidden.T, 2.0 * np.eye(8), atol=1e-5)
    np.testing.assert_allclose(last.T @ last, 1e-4 * np.eye(4), atol=1e-9)
    assert not any(layer.bias.any() for layer in mlp.layers)


def test_scaled_layers_are_uniform_within_their_bound():
    """1/sqrt(64) = 0.125 for 64 inputs, for the biases too; a uniform number's deviation is its bound / sqrt(3)."""
    layer = Linear(jax.random.key(0), 64, 500, "scaled", 1.0)
    for values in (np.asarray(layer.weight), np.asarray(layer.bias)):
        assert 0.98 * 0.125 < np.abs(values).max() <= 0.125
        assert abs(values.mean()) < 5 * 0.125 / math.sqrt(3 * values.size)
        assert values.std() == pytest.approx(0.125 / math.sqrt(3), rel=0.1)


def test_layers_start_different():
    for initialisation in ("orthogonal", "scaled"):
        init = jax.jit(functools.partial(MLP, sizes=(5, 5, 5, 5), initialisation=initialisation))
        first, second, _ = init(jax.random.key(0)).layers
        assert not np.allclose(first.weight, second.weight, atol=0.1)


@pytest.mark.parametrize(("sizes", "shapes"), [((4, 2), [(4, 2)]), ((1, 3, 5, 7), [(1, 3), (3, 5), (5, 7)])], ids=str)
def test_shapes(sizes, shapes):
    mlp = jax.eval_shape(lambda key: MLP(key, sizes), jax.random.key(0))
    assert [layer.weight.shape for layer in mlp.layers] == shapes
    assert jax.eval_shape(lambda mlp, x: mlp(x), mlp, jnp.ones(sizes[0])).shape == (sizes[-1],)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("relu", lambda x: max(x, 0.0)),
        ("relu6", lambda x: min(max(x, 0.0), 6.0)),
        ("tanh", math.tanh),
        ("gelu", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("elu", lambda x: x if x > 0 else math.exp(x) - 1),
        ("identity", lambda x: x),
    ],
)
def test_an_mlp_worked_by_hand(activation, formula):
    """(1, 2) gives the hidden units 2 and -1 before the activation; the output is 3 f(2) - 5 f(-1) + 0.5, linear.
    (4, 5) gives 8, where relu6 is cut, and -2.5."""
    mlp = MLP(jax.random.key(0), (2, 2, 1), activation, "scaled")
    parameters = [jnp.array([[1.0, -1.0], [1.0, 0.5]]), jnp.array([-1.0, -1.0]), jnp.array([[3.0], [-5.0]]), 0.5]
    leaves = [jnp.broadcast_to(p, leaf.shape) for p, leaf in zip(parameters, jax.tree.leaves(mlp), strict=True)]
    mlp = jax.tree.unflatten(jax.tree.structure(mlp), leaves)
    assert mlp(jnp.array([1.0, 2.0]))[0] == pytest.approx(3 * formula(2.0) - 5 * formula(-1.0) + 0.5, rel=1e-5)
    assert mlp(jnp.array([4.0, 5.0]))[0] == pytest.approx(3 * formula(8.0) - 5 * formula(-2.5) + 0.5, rel=1e-5)


def test_a_tanh_gaussian_policy_worked_by_hand():
    """Outputs 0.5, -20, 0 and 3 are two means, then two deviations: ln 2 is the softplus of 0."""
    policy = TanhGaussianPolicy(Features(Box(-1.0, 1.0, (1,))), MLP(jax.random.key(0), (1, 4)))
    parameters = [jnp.zeros((1, 4)), jnp.array([0.5, -20.0, 0.0, 3.0])]
    policy = jax.tree.unflatten(jax.tree.structure(policy), parameters)
    distribution = policy(jnp.array([0.7]))
    np.testing.assert_allclose(distribution.mean, [math.tanh(0.5), -1.0], rtol=1e-6)
    np.testing.assert_allclose(distribution.std, [math.log(2) + 1e-4, math.log1p(math.exp(3.0)) + 1e-4], rtol=1e-6)


def test_its_deviation_never_vanishes():
    """Softplus of -200 is 0 in float32; the log-probability of what was drawn stays a number all the same."""
    policy = TanhGaussianPolicy(Features(Box(-1.0, 1.0, (1,))), MLP(jax.random.key(0), (1, 2)))
    policy = jax.tree.unflatten(jax.tree.structure(policy), [jnp.zeros((1, 2)), jnp.array([0.0, -200.0])])
    distribution = policy(jnp.array([0.7]))
    np.testing.assert_allclose(distribution.std, [1e-4], rtol=1e-6)
    assert distribution.log_prob(jnp.array([0.0])) == pytest.approx(-math.log(1e-4 * math.sqrt(2 * math.pi)), rel=1e-5)


def test_features_of_a_discrete_observation_are_one_hot_from_its_start():
    features = Features(Discrete(4, start=10))
    assert features.size == 4
    np.testing.assert_array_equal(features(jnp.array(10)), [1.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(features(jnp.array(13)), [0.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(Features(Discrete(2))(jnp.array(1)), [0.0, 1.0])


def test_features_of_a_box_are_its_numbers_in_a_row():
    features = Features(Box(0.0, 255.0, (2, 3), jnp.uint8))
    assert features.size == 6
    vector = features(jnp.array([[1, 2, 3], [250, 251, 252]], jnp.uint8))
    assert vector.dtype == jnp.float32
    np.testing.assert_array_equal(vector, [1, 2, 3, 250, 251, 252])
    scalar = Features(Box(-1.0, 1.0, ()))
    assert scalar.size == 1 and scalar(jnp.array(0.5)).shape == (1,)


@functools.cache
def _q_network(seed: int = 0) -> QNetwork:
    features = Features(Box((-1.0, -2.0, -3.0), (1.0, 2.0, 3.0), (3,)))
    return QNetwork(features, MLP(jax.random.key(seed), (features.size, 8, 2), "tanh", "scaled"))


@functools.cache
def _users_own(seed: int = 0) -> eqx.nn.MLP:
    """A network whose activation is a leaf, which plain `jit` refuses."""
    return eqx.nn.MLP(3, 2, 8, 1, jnp.tanh, key=jax.random.key(seed))


NETWORKS = pytest.mark.parametrize("make", [_q_network, _users_own], ids=["own", "equinox"])
OBS = jnp.array([0.3, -1.2, 2.0])


@NETWORKS
def test_a_raveled_network_is_one_leaf_and_the_same_function(make):
    network: Any = make()
    raveled = ravel(network)
    (vector,) = jax.tree.leaves(raveled)
    assert vector.shape == (3 * 8 + 8 + 8 * 2 + 2,)
    np.testing.assert_allclose(raveled(OBS), network(OBS), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda n, x: n(x))(raveled, OBS), network(OBS), rtol=1e-5)


@NETWORKS
def test_its_gradient_is_the_networks(make):
    network: Any = make()
    expected = eqx.filter_grad(lambda n: jnp.sum(n(OBS) ** 2))(network)
    gradient = jax.grad(lambda n: jnp.sum(n(OBS) ** 2))(ravel(network))
    assert isinstance(gradient, Raveled)
    leaves = [leaf for leaf in jax.tree.leaves(gradient.module) if eqx.is_array(leaf)]
    for given, wanted in zip(leaves, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-6)
        assert np.asarray(given).any()


@NETWORKS
def test_raveling_loses_nothing_and_happens_once(make):
    network: Any = make()
    raveled = ravel(network)
    assert ravel(raveled) is raveled
    assert jax.tree.structure(raveled.module) == jax.tree.structure(network)
    for given, wanted in zip(jax.tree.leaves(raveled.module), jax.tree.leaves(network), strict=True):
        if eqx.is_array(wanted):
            np.testing.assert_array_equal(given, wanted)
            assert given.shape == wanted.shape
        else:
            assert given is wanted


@NETWORKS
def test_another_network_of_the_same_shape_compiles_nothing_anew(make):
    traces = []

    @jax.jit
    def act(network, obs):
        traces.append(obs)
        return network(obs)

    outputs = [act(ravel(make(seed)), OBS) for seed in range(3)]
    assert len(traces) == 1
    assert not np.allclose(outputs[0], outputs[1])
    one, other = (jax.tree.structure(ravel(make(seed))) for seed in (0, 1))
    assert one == other and hash(one) == hash(other)


def test_networks_that_differ_in_their_activation_alone_are_told_apart():
    act = jax.jit(lambda network, obs: network(obs))
    by_tanh, by_relu = (ravel(eqx.nn.MLP(3, 2, 8, 1, f, key=jax.random.key(0))) for f in (jnp.tanh, jax.nn.relu))
    np.testing.assert_array_equal(by_tanh.vector, by_relu.vector)
    assert jax.tree.structure(by_tanh) != jax.tree.structure(by_relu)
    assert not np.allclose(act(by_tanh, OBS), act(by_relu, OBS))


def test_a_stack_of_raveled_networks_is_mapped_over():
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[ravel(_q_network(seed)) for seed in range(3)])
    outputs = jax.vmap(lambda network: network(OBS))(stacked)
    for seed in range(3):
        np.testing.assert_allclose(outputs[seed], _q_network(seed)(OBS), rtol=1e-5)


def test_numpy_parameters_and_scalars_are_parameters():
    raveled = ravel({"gain": np.array([2.0, 3.0], np.float32), "offset": jnp.float32(0.5), "none": jnp.zeros((0, 4))})
    np.testing.assert_array_equal(raveled.vector, [2.0, 3.0, 0.5])
    module: Any = raveled.module
    assert module["offset"].shape == () and module["none"].shape == (0, 4)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float16, jnp.bool_, np.float64])
def test_arrays_that_are_not_float32_are_refused(dtype):
    network = {"weight": jnp.ones((2, 2)), "other": np.zeros((3, 1), dtype)}
    with pytest.raises(InvalidSetting, match=rf"dtype {np.dtype(dtype).name} and shape \(3, 1\).*float32 arrays only"):
        ravel(network)


def test_a_network_without_parameters_is_refused():
    with pytest.raises(InvalidSetting, match="has no parameters: no array was found in it"):
        ravel(lambda obs: obs)
