"""Networks: callable trees, `obs -> output`, for one example each (`jax.vmap` makes them serve a batch)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from treadle.distributions import Categorical, Gaussian
from treadle.errors import InvalidSetting
from treadle.spaces import Discrete, Space

Activation = Literal["relu", "relu6", "tanh", "gelu", "silu", "elu", "identity"]
Initialisation = Literal["orthogonal", "scaled"]

Network = TypeVar("Network", bound=Callable[..., Any])

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "identity": lambda x: x,
}


def orthogonal(key: Array, shape: tuple[int, int], scale: float = 1.0) -> Float[Array, "n m"]:
    """A matrix with orthonormal rows or columns (whichever are fewer), uniformly distributed, times `scale`.

    Saxe et al. (2014). Gram-Schmidt, each vector twice, which is as accurate as Householder reflections and, unlike
    `jnp.linalg.qr`, calls no LAPACK: several QR calls inside one compiled program can wait for each other's threads
    for ever on a machine with few cores.
    """
    rows, columns = max(shape), min(shape)
    gaussian = jax.random.normal(key, (columns, rows))

    def orthonormalise(i, basis):
        vector = basis[i]
        earlier = jnp.where(jnp.arange(columns)[:, None] < i, basis, 0.0)
        for _ in range(2):
            vector = vector - (earlier @ vector) @ earlier
        return basis.at[i].set(vector / jnp.linalg.norm(vector))

    basis = jax.lax.fori_loop(0, columns, orthonormalise, gaussian)
    return scale * (basis if shape[0] < shape[1] else basis.T)


class Linear(eqx.Module):
    """`x @ weight + bias`: `[n] -> [m]`."""

    weight: Float[Array, "n m"]
    bias: Float[Array, " m"]

    def __init__(self, key: Array, inputs: int, outputs: int, initialisation: Initialisation, scale: float):
        """`orthogonal`: orthogonal weights times `scale`, zero biases. `scaled`: weights and biases uniform within
        1/sqrt(inputs), the default of PyTorch's `Linear`, which the tutorials and RL Zoo use."""
        if initialisation == "orthogonal":
            self.weight = orthogonal(key, (inputs, outputs), scale)
            self.bias = jnp.zeros(outputs)
        else:
            bound = 1 / math.sqrt(inputs)
            weight_key, bias_key = jax.random.split(key)
            self.weight = jax.random.uniform(weight_key, (inputs, outputs), minval=-bound, maxval=bound)
            self.bias = jax.random.uniform(bias_key, (outputs,), minval=-bound, maxval=bound)

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        return x @ self.weight + self.bias


class MLP(eqx.Module):
    """A multi-layer perceptron: `sizes[0]` inputs, `sizes[-1]` linear outputs, an activation between."""

    layers: tuple[Linear, ...]
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        key: Array,
        sizes: Sequence[int],
        activation: Activation = "relu",
        initialisation: Initialisation = "orthogonal",
        output_scale: float = 1.0,
    ):
        """Hidden layers are scaled by sqrt(2) and the last by `output_scale` when orthogonal."""
        keys = jax.random.split(key, len(sizes) - 1)
        scales = [math.sqrt(2.0)] * (len(sizes) - 2) + [output_scale]
        self.layers = tuple(
            Linear(k, n, m, initialisation, scale)
            for k, n, m, scale in zip(keys, sizes[:-1], sizes[1:], scales, strict=True)
        )
        self.activation = activation

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        for layer in self.layers[:-1]:
            x = _ACTIVATIONS[self.activation](layer(x))
        return self.layers[-1](x)


LARGEST_ONE_HOT = 1_000_000
"""Discrete observations that the built-in networks take."""


class Features(eqx.Module):
    """Observations of a space as a flat float vector: one-hot for `Discrete`, raveled for `Box`."""

    space: Space = eqx.field(static=True)

    @property
    def size(self) -> int:
        return self.space.n if isinstance(self.space, Discrete) else math.prod(self.space.shape)

    def __call__(self, obs: Array) -> Float[Array, " n"]:
        if isinstance(self.space, Discrete):
            return jax.nn.one_hot(obs - self.space.start, self.space.n)
        return jnp.ravel(obs).astype(jnp.float32)


class ActionScaling(eqx.Module):
    """What a policy draws as actions of a space: `n` numbers in units of half a bounded `Box`'s width, cut at its
    bounds; discrete actions as they are."""

    space: Space = eqx.field(static=True)

    def __call__(self, drawn: Array) -> Array:
        return drawn if isinstance(self.space, Discrete) else self.space.from_unit(drawn)

    def inverse(self, action: Array) -> Array:
        """What would have been drawn for an action."""
        return action if isinstance(self.space, Discrete) else self.space.to_unit(action)

    def deviation(self, drawn: Array) -> Array:
        """What a deviation of what is drawn is in the action's own units."""
        return drawn if isinstance(self.space, Discrete) else drawn.reshape(self.space.shape) * self.space.half_width


class QNetwork(eqx.Module):
    """The values of all actions for one observation: `obs -> [A]`."""

    features: Features
    mlp: MLP

    def __call__(self, obs: Array) -> Float[Array, " A"]:
        return self.mlp(self.features(obs))


class DuelingQNetwork(eqx.Module):
    """The same from the value of the state and the advantages of the actions, `Q = V + A - mean(A)` (Wang et al. 2016,
    equation 9). The last layer has an output for the value, then one for each advantage."""

    features: Features
    mlp: MLP

    def __call__(self, obs: Array) -> Float[Array, " A"]:
        outputs = self.mlp(self.features(obs))
        value, advantage = outputs[0], outputs[1:]
        return value + advantage - jnp.mean(advantage)


class ValueNetwork(eqx.Module):
    """The value of one observation: `obs -> []`."""

    features: Features
    mlp: MLP

    def __call__(self, obs: Array) -> Float[Array, ""]:
        return self.mlp(self.features(obs))[0]


class SharedValue(eqx.Module):
    """The value of one observation, from features that another network computes: `features -> []`."""

    mlp: MLP

    def __call__(self, features: Float[Array, " n"]) -> Float[Array, ""]:
        return self.mlp(features)[0]


class CategoricalPolicy(eqx.Module):
    """The probabilities of discrete actions for one observation, from an output for each."""

    features: Features
    mlp: MLP

    def __call__(self, obs: Array) -> Categorical:
        return Categorical(self.mlp(self.features(obs)))


class GaussianPolicy(eqx.Module):
    """A normal distribution of `n` numbers for one observation: an output for each mean, beside deviations that no
    observation changes, `exp(log_std)`."""

    features: Features
    mlp: MLP
    log_std: Float[Array, " n"]

    def __call__(self, obs: Array) -> Gaussian:
        mean = self.mlp(self.features(obs))
        return Gaussian(mean, jnp.broadcast_to(jnp.exp(self.log_std), mean.shape))


class TanhGaussianPolicy(eqx.Module):
    """The same with means that are kept in (-1, 1) by tanh, and deviations that the observation changes, from as many
    more outputs by softplus (Mnih et al. 2016, section 9)."""

    features: Features
    mlp: MLP

    def __call__(self, obs: Array) -> Gaussian:
        mean, spread = jnp.split(self.mlp(self.features(obs)), 2)
        return Gaussian(jnp.tanh(mean), jax.nn.softplus(spread) + SMALLEST_STD)


SMALLEST_STD = 1e-4


class DeterministicPolicy(eqx.Module):
    """One action for one observation, `n` numbers in (-1, 1): `obs -> [n]`."""

    features: Features
    mlp: MLP

    def __call__(self, obs: Array) -> Float[Array, " n"]:
        return jnp.tanh(self.mlp(self.features(obs)))


class ActionValueNetwork(eqx.Module):
    """The value of one observation and an action of `n` numbers: `obs, action -> []`."""

    features: Features
    mlp: MLP

    def __call__(self, obs: Array, action: Float[Array, " n"]) -> Float[Array, ""]:
        return self.mlp(jnp.concatenate([self.features(obs), action]))[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Raveled(Generic[Network]):
    """A network whose parameters are one vector, but for those of very large layers: the same function, few leaves.

    An optimiser step on one array takes a CPU two thirds of the time that it takes on the arrays of three layers, and
    a compiled call is dispatched faster the fewer leaves it takes. To cut a layer of millions of weights out of a
    vector costs more than that.
    """

    vector: Float[Array, " n"]
    treedef: Any = field(metadata={"static": True})
    leaves: tuple[Any, ...] = field(metadata={"static": True})
    """For each leaf of the network its shape, or, where it is no array (an activation), the leaf itself."""
    apart: tuple[Array, ...] = ()
    """The arrays of more than `LARGEST_IN_VECTOR` elements."""

    @property
    def module(self) -> Network:
        """The network with its parameters in their own shapes."""
        shapes = [leaf for leaf in self.leaves if isinstance(leaf, _Shape) and not leaf.is_apart]
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1].tolist()
        parts, apart = iter(jnp.split(self.vector, ends)), iter(self.apart)

        def restored(leaf: Any) -> Any:
            if not isinstance(leaf, _Shape):
                return leaf
            return next(apart) if leaf.is_apart else next(parts).reshape(leaf)

        return jax.tree.unflatten(self.treedef, [restored(leaf) for leaf in self.leaves])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


LARGEST_IN_VECTOR = 1 << 18


class _Shape(tuple):
    """A shape among leaves that are kept as they are."""

    @property
    def is_apart(self) -> bool:
        return math.prod(self) > LARGEST_IN_VECTOR


def ravel(network: PyTree) -> Raveled:
    """A network with its parameters in one vector; one that is raveled already is returned as it is.

    Raises `InvalidSetting` for arrays that are not float32: they would lose precision or their meaning.
    """
    if isinstance(network, Raveled):
        return network
    leaves, treedef = jax.tree.flatten(network)
    arrays = [leaf for leaf in leaves if eqx.is_array(leaf) or isinstance(leaf, np.ndarray)]
    for leaf in arrays:
        if leaf.dtype != jnp.float32:
            raise InvalidSetting(
                f"the network has an array of dtype {leaf.dtype} and shape {leaf.shape}; "
                "trainable networks here hold float32 arrays only. Keep constants as Python numbers or static fields."
            )
    if not arrays:
        raise InvalidSetting(f"the network {network!r} has no parameters: no array was found in it.")
    kept = tuple(_Shape(x.shape) if eqx.is_array(x) or isinstance(x, np.ndarray) else x for x in leaves)
    small = [jnp.ravel(x) for x in arrays if not _Shape(x.shape).is_apart]
    apart = tuple(jnp.asarray(x) for x in arrays if _Shape(x.shape).is_apart)
    return Raveled(jnp.concatenate(small) if small else jnp.zeros(0), treedef, kept, apart)


def unraveled(tree: PyTree) -> PyTree:
    """The tree with every network's parameters in their own shapes: for a loop that calls networks and does not change
    them, which would else cut the vector up in each of its steps."""
    return jax.tree.map(
        lambda x: x.module if isinstance(x, Raveled) else x, tree, is_leaf=lambda x: isinstance(x, Raveled)
    )
