"""Networks for images: the convolution in its forms, the published networks, and what learns with them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle import DQN, Box
from treadle.algorithms.a2c import A2C
from treadle.algorithms.a3c import A3C
from treadle.algorithms.actor_critic import ActorCritic
from treadle.algorithms.ppo import PPO
from treadle.algorithms.reinforce import Reinforce
from treadle.convolution import (
    ARCHITECTURES,
    ImageFeatures,
    as_products,
    by_library,
    check_features,
    features_for,
    features_size,
    resolve,
)
from treadle.errors import InvalidSetting, UnsupportedSpace
from treadle.networks import DuelingQNetwork, Features, SharedValue, ValueNetwork, ravel
from treadle.registry import as_float32
from treadle.spaces import Discrete, Space
from treadle.types import Transition, space_spec

pytestmark = pytest.mark.least_optimised

ACTIONS = Discrete(6)
STACK = Box(0, 255, (4, 84, 84), np.uint8)
SMALL = Box(0, 255, (2, 22, 25), np.uint8)
"""Fits the network of 2013 only."""


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def by_loops(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """The convolution by its definition, window by window."""
    size = kernel.shape[1]
    rows, columns = ((n - size) // stride + 1 for n in x.shape[:2])
    out = np.zeros((rows, columns, len(kernel)))
    for i in range(rows):
        for j in range(columns):
            window = x[i * stride : i * stride + size, j * stride : j * stride + size]
            out[i, j] = np.tensordot(kernel, window, 3)
    return out


LAYERS = sorted({layer for a in ARCHITECTURES.values() for layer in a.layers})


@pytest.mark.parametrize("form", [as_products, by_library])
@pytest.mark.parametrize(("height", "width"), [(20, 20), (19, 26), (13, 10), (8, 8)])
@pytest.mark.parametrize(("size", "stride", "filters"), LAYERS, ids=str)
def test_each_form_is_the_sum_over_windows(form, height, width, size, stride, filters):
    rng = np.random.default_rng(height)
    x, kernel = rng.normal(size=(height, width, 3)), rng.normal(size=(filters, size, size, 3))
    found = form(jnp.float32(x), jnp.float32(kernel), stride)
    np.testing.assert_allclose(found, by_loops(x, kernel, stride), atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(20, 21), (17, 14)])
@pytest.mark.parametrize(("size", "stride", "filters"), LAYERS, ids=str)
def test_the_forms_have_the_same_gradients(height, width, size, stride, filters):
    """With respect to the picture and to the kernel, for a batch."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (5, height, width, 2))
    kernel = jax.random.normal(keys[1], (filters, size, size, 2))
    rows, columns = ((n - size) // stride + 1 for n in (height, width))
    cotangent = jax.random.normal(keys[2], (5, rows, columns, filters))

    def gradients(form):
        def total(x, kernel):
            return jnp.sum(cotangent * jax.vmap(lambda x: form(x, kernel, stride))(x))

        return jax.jit(jax.grad(total, (0, 1)))(x, kernel)

    for ours, theirs in zip(gradients(as_products), gradients(by_library), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_of_a_batch_a_convolution_is_one_product():
    """And its gradient by the kernel another: a product for each picture would take many times as long."""
    x, kernel = jnp.zeros((32, 20, 20, 32)), jnp.zeros((64, 4, 4, 32))

    def total(kernel):
        return jnp.sum(jax.vmap(lambda x: as_products(x, kernel, 2))(x) ** 2)

    jaxpr = jax.make_jaxpr(jax.grad(total))(kernel)
    products = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 2
    for product in products:
        _, (left, right) = product.params["dimension_numbers"]
        assert left == right == (), "no batch dimensions"


@pytest.mark.parametrize(
    ("name", "space", "dueling", "parameters"),
    [
        # 8 * 8 * 4 * 32 + 32, 4 * 4 * 32 * 64 + 64, 3 * 3 * 64 * 64 + 64, 7 * 7 * 64 * 512 + 512, 512 * 6 + 6
        ("nature", STACK, False, 8_224 + 32_832 + 36_928 + 1_606_144 + 3_078),
        ("nature", STACK, True, 1_687_206 + 513),
        # 8 * 8 * 4 * 16 + 16, 4 * 4 * 16 * 32 + 32, 9 * 9 * 32 * 256 + 256, 256 * 6 + 6
        ("dqn2013", STACK, False, 4_112 + 8_224 + 663_808 + 1_542),
        # Of 2 frames, and 4 x 5 and 1 x 1 windows, as 22 = 8 + 3 * 4 + 2 and 25 = 8 + 4 * 4 + 1.
        ("dqn2013", SMALL, False, (8 * 8 * 2 * 16 + 16) + 8_224 + (32 * 256 + 256) + 1_542),
        # Colours are channels of the first layer: 8 * 8 * (4 * 3) * 32.
        ("nature", Box(0, 255, (4, 84, 84, 3), np.uint8), False, 1_687_206 + 8 * 8 * 8 * 32),
    ],
)
def test_the_networks_have_as_many_parameters_as_published(name, space, dueling, parameters):
    algorithm = DQN(features=name, dueling=dueling)
    network = jax.eval_shape(lambda: ravel(algorithm.build_network(jax.random.key(0), space_spec(space, ACTIONS))))
    assert sum(x.size for x in jax.tree.leaves(network)) == parameters


def test_the_nature_network_has_1_687_206_parameters():
    network = jax.eval_shape(lambda: ravel(DQN().build_network(jax.random.key(0), space_spec(STACK, ACTIONS))))
    assert sum(x.size for x in jax.tree.leaves(network)) == 1_687_206


def reference(features: ImageFeatures, picture: np.ndarray) -> np.ndarray:
    """The outputs for one picture `[H, W, C]` by the definition, in float64."""
    x = picture.astype(np.float64) / 255
    for layer in features.layers:
        x = np.maximum(by_loops(x, np.asarray(layer.kernel, np.float64), layer.stride) + np.asarray(layer.bias), 0)
    return np.maximum(x.ravel() @ np.asarray(features.dense.weight, np.float64) + np.asarray(features.dense.bias), 0)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_the_features_of_a_stack_are_those_of_its_frames_as_channels(name, frames):
    space = Box(0, 255, (frames, 41, 38), np.uint8)
    features: Any = features_for(jax.random.key(0), name, space, "scaled")
    stacks = images(2, frames, 41, 38)
    found = jax.jit(jax.vmap(features))(stacks)
    assert found.shape == (2, features.size) and features.size == features_size(name, space)
    for obs, row in zip(stacks, found, strict=True):
        np.testing.assert_allclose(row, reference(features, np.moveaxis(obs, 0, -1)), atol=1e-5)
    assert float(jnp.abs(found[0] - found[1]).max()) > 1e-3


def test_colours_are_channels_of_their_frame():
    space = Box(0, 255, (2, 40, 37, 3), np.uint8)
    features: Any = features_for(jax.random.key(0), "nature", space, "scaled")
    obs = images(2, 40, 37, 3)
    channels = np.concatenate([obs[0], obs[1]], axis=-1)
    np.testing.assert_allclose(features(obs), reference(features, channels), atol=1e-5)


def test_one_picture_may_have_its_channels_last():
    space = Box(0, 255, (40, 37, 3), np.uint8)
    assert resolve("auto", space) == "nature"
    features: Any = features_for(jax.random.key(0), "nature", space, "scaled")
    obs = images(40, 37, 3)
    np.testing.assert_allclose(features(obs), reference(features, obs), atol=1e-5)


def test_first_weights_are_orthogonal_or_within_the_bounds_of_pytorch():
    for name, layer in (("orthogonal", 0), ("scaled", 1)):
        features: Any = jax.jit(lambda name=name: features_for(jax.random.key(0), "dqn2013", SMALL, name))()
        layers = [*((c.kernel, c.bias) for c in features.layers), (features.dense.weight.T, features.dense.bias)]
        for weights, bias in layers:
            matrix = np.asarray(weights).reshape(len(weights), -1).T
            if layer == 0:
                gram = matrix.T @ matrix if len(matrix) >= len(matrix.T) else matrix @ matrix.T
                np.testing.assert_allclose(gram, 2 * np.eye(len(gram)), atol=1e-5)
                assert not np.any(bias)
            else:
                bound = 1 / math.sqrt(len(matrix))
                assert 0.9 * bound < np.abs(matrix).max() <= bound and np.abs(bias).max() <= bound


def test_no_two_layers_start_from_the_same_numbers():
    """Features and what follows them are made of one key."""
    keys = []
    network: Any = DQN(features="dqn2013", initialisation="scaled").build_network(
        jax.random.key(0), space_spec(SMALL, ACTIONS)
    )
    for weights in (*(c.kernel for c in network.features.layers), network.features.dense.weight):
        keys.append(np.asarray(weights).ravel()[:64] / np.abs(weights).max())
    keys.append(np.asarray(network.mlp.layers[0].weight).ravel()[:64] / np.abs(network.mlp.layers[0].weight).max())
    for i, a in enumerate(keys):
        for b in keys[:i]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.6


@pytest.mark.parametrize(
    ("space", "chosen"),
    [
        (STACK, "nature"),
        (Box(0, 255, (1, 36, 36), np.uint8), "nature"),
        (Box(0, 255, (4, 35, 84), np.uint8), "flat"),
        (Box(0, 1, (4, 84, 84)), "flat"),
        (Box(0, 255, (84, 84), np.uint8), "flat"),
        (Box(0, 255, (4,), np.uint8), "flat"),
        (Box(-1, 1, (3,)), "flat"),
        (Discrete(5), "flat"),
    ],
    ids=str,
)
def test_auto_takes_the_nature_network_for_images_that_it_fits(space: Space, chosen):
    assert resolve("auto", space) == chosen
    check_features("auto", space)
    if chosen == "flat":
        assert type(features_for(jax.random.key(0), "auto", space, "scaled")) is Features


def test_the_least_sizes_give_one_window():
    assert {name: a.least_size for name, a in ARCHITECTURES.items()} == {"nature": 36, "dqn2013": 20}
    for a in ARCHITECTURES.values():
        assert a.fit(a.least_size, a.least_size) == (1, 1) and min(a.fit(a.least_size - 1, 84)) < 1


@pytest.mark.parametrize("algorithm", [DQN, PPO, A2C], ids=lambda a: a.name)
@pytest.mark.parametrize(
    ("name", "space", "sentence"),
    [
        ("nature", Box(0, 255, (4, 35, 84), np.uint8), "at least 36 x 36 pixels.*35 x 84.*--features dqn2013"),
        ("dqn2013", Box(0, 255, (4, 19, 84), np.uint8), "at least 20 x 20 pixels.*19 x 84.*leave features out"),
        ("nature", Box(0, 1, (4, 84, 84)), "images of bytes.*of float32"),
        ("nature", Box(0, 255, (84, 84), np.uint8), r"stacks of frames \[k, H, W\].*\(84, 84\)"),
        ("dqn2013", Discrete(7), r"images of bytes.*Discrete\(7\)"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_observations_that_a_network_cannot_take_are_refused_in_a_sentence(algorithm, name, space, sentence):
    with pytest.raises(UnsupportedSpace, match=f"features.*was {name}.*{sentence}"):
        algorithm(features=name).check(space_spec(space, ACTIONS))


def test_a_name_of_no_network_is_refused():
    with pytest.raises(InvalidSetting, match=r"features.*must be one of auto, nature, dqn2013, flat"):
        DQN(features="resnet").check()  # pyright: ignore[reportArgumentType]


def rollout(algorithm: Any, spec: Any, state: Any, steps: int) -> Transition:
    """Random stacks, and what the algorithm does there."""
    shape = (steps + 1, spec.num_envs, *spec.observation_space.shape)
    obs = jnp.asarray(images(*shape))
    acted = [algorithm.act(state, (), obs[t], jax.random.key(t)) for t in range(steps)]
    action, extras = (jax.tree.map(lambda *x: jnp.stack(x), *[a[i] for a in acted]) for i in (0, 2))
    reward = jnp.asarray(np.random.default_rng(1).normal(size=(steps, spec.num_envs)), jnp.float32)
    never = jnp.zeros(reward.shape, jnp.bool_)
    return Transition(obs[:-1], action, reward, obs[1:], never, never, None, extras)


IMAGES: dict[str, Any] = {"features": "dqn2013", "initialisation": "scaled", "num_envs": 2}
SPEC = space_spec(SMALL, ACTIONS, num_envs=2)


@pytest.mark.parametrize("dueling", [False, True])
def test_dqn_learns_from_images(dueling):
    """Rewards that are random by the picture: the loss falls, and every layer has a part in it."""
    replay = {"batch_size": 8, "capacity": 16, "learning_starts": 0, "gamma": 0.0}
    algorithm: Any = as_float32(DQN(**IMAGES, **replay, dueling=dueling, train_frequency=8))
    algorithm.check(SPEC)
    state = jax.jit(lambda key: algorithm.init(key, SPEC))(jax.random.key(0))
    rows = rollout(algorithm, SPEC, state, 8)
    update = jax.jit(algorithm.update)
    first, losses = state.network.module, []
    assert isinstance(first, DuelingQNetwork) == dueling
    for i in range(40):
        state, told = update(state, rows, jax.random.key(i))
        losses.append(float(told["loss"].total))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(state.network.module), strict=True):
        assert float(jnp.abs(a - b).max()) > 1e-4


POLICY_GRADIENTS = {
    "ppo": PPO(**IMAGES, rollout_length=4, num_minibatches=2),
    "a2c": A2C(**IMAGES, rollout_length=4),
    "a3c": A3C(**IMAGES, rollout_length=4),
    "actor-critic": ActorCritic(**IMAGES),
    "reinforce": Reinforce(**IMAGES, baseline=True, max_episode_length=4),
}


@pytest.mark.parametrize(("name", "share"), [*((name, True) for name in POLICY_GRADIENTS), ("ppo", False)])
def test_policies_and_values_learn_from_images(name, share):
    algorithm: Any = as_float32(dataclasses.replace(POLICY_GRADIENTS[name], share_features=share))
    algorithm.check(SPEC)
    state = jax.jit(lambda key: algorithm.init(key, SPEC))(jax.random.key(0))
    rows = rollout(algorithm, SPEC, state, algorithm.num_steps)
    if name == "reinforce":
        rows = rows._replace(terminated=jnp.ones_like(rows.terminated))
    after, told = jax.jit(algorithm.update)(state, rows, jax.random.key(1))
    assert np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves(told)])).all()
    before, after = (getattr(s, "learner", s).networks for s in (state, after))
    assert isinstance(before.value.module, SharedValue) == share
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert float(jnp.abs(a - b).max()) > 1e-6
    seen = algorithm.inspect(state, rows.obs[0, 0])
    np.testing.assert_allclose(seen["value"], before.both(rows.obs[0, 0])[1], rtol=1e-5)


def test_values_that_share_features_read_them_off_the_policy():
    algorithm: Any = PPO(**IMAGES)
    networks = algorithm.start(jax.random.key(0), SPEC).networks
    assert networks.value.vector.shape == (256 + 1,), "a weight for each feature, and a bias"
    obs = jnp.asarray(images(3, *SMALL.shape))
    pi, v = jax.vmap(networks.both)(obs)
    features = jax.vmap(networks.policy.module.features)(obs)
    np.testing.assert_allclose(pi.logits, jax.vmap(networks.policy)(obs).logits, atol=1e-6)
    np.testing.assert_allclose(v, jax.vmap(networks.value)(features), atol=1e-6)
    np.testing.assert_allclose(v, jax.vmap(networks.value_of)(obs), atol=1e-6)


def test_features_that_are_shared_follow_both_gradients():
    """What the values teach them and what the policy does add up, and both go through one pass."""
    algorithm: Any = PPO(**IMAGES)
    networks = algorithm.start(jax.random.key(0), SPEC).networks
    obs = jnp.asarray(images(3, *SMALL.shape))

    def loss(networks, of_policy, of_value):
        pi, v = jax.vmap(networks.both)(obs)
        return of_policy * jnp.mean(pi.entropy()) + of_value * jnp.mean(v**2)

    gradient = jax.grad(loss)
    both, policy, value = (gradient(networks, *weights) for weights in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0)))
    assert float(jnp.abs(value.policy.vector).max()) > 0
    np.testing.assert_allclose(both.policy.vector, policy.policy.vector + value.policy.vector, atol=1e-6)
    text = str(jax.make_jaxpr(gradient)(networks, 1.0, 1.0))
    # Two convolutions and the dense layer forward, and by their weights and inputs but for the first layer's input;
    # two heads three times each.
    assert text.count("dot_general[") == (3 + 3 + 2) + 2 * 3


def test_networks_for_vectors_have_values_of_their_own():
    networks = PPO().start(jax.random.key(0), space_spec(Box(-1, 1, (3,)), ACTIONS)).networks
    assert networks.value is not None and isinstance(networks.value.module, ValueNetwork)
