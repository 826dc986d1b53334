"""Networks for images: the convolutional layers of the two papers on Atari, in the form that the machine is fastest at.

Observations are bytes: stacks of grey frames `[k, H, W]`, of colour frames `[k, H, W, 3]`, or one picture `[H, W, 3]`
with its channels last. Frames and colours are the channels of the first layer, and pixels are divided by 255.
"""

from __future__ import annotations

import math
import zlib
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from treadle.errors import UnsupportedSpace
from treadle.networks import Features, Initialisation, Linear
from treadle.spaces import Box, Space

FeatureName = Literal["auto", "nature", "dqn2013", "flat"]

MOST_CHANNELS_LAST = 4
"""An observation of three or four axes whose last is no longer than this has its channels there."""


class Layer(NamedTuple):
    """A convolution of `size x size` pixels, by `stride`, with `filters` outputs. The stride divides the size."""

    size: int
    stride: int
    filters: int


class Architecture(NamedTuple):
    """Convolutions, and the units of the dense layer behind them."""

    layers: tuple[Layer, ...]
    units: int

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that the last convolution gives for a picture; less than 1 where it is too small."""
        for layer in self.layers:
            height, width = ((n - layer.size) // layer.stride + 1 for n in (height, width))
        return height, width

    @property
    def least_size(self) -> int:
        """Rows, and columns, of the smallest picture that it fits."""
        size = 1
        for layer in reversed(self.layers):
            size = (size - 1) * layer.stride + layer.size
        return size


ARCHITECTURES = {
    "nature": Architecture((Layer(8, 4, 32), Layer(4, 2, 64), Layer(3, 1, 64)), 512),
    "dqn2013": Architecture((Layer(8, 4, 16), Layer(4, 2, 32)), 256),
}
"""Mnih et al. (2015), "Human-level control through deep reinforcement learning", and Mnih et al. (2013), "Playing Atari
with deep reinforcement learning"."""


class Convolution(eqx.Module):
    """A convolution without padding: `[H, W, C] -> [H', W', filters]`, with `H' = (H - size) // stride + 1`. Bytes
    stand for numbers from 0 to 1."""

    kernel: Float[Array, "filters size size C"]
    bias: Float[Array, " filters"]
    stride: int = eqx.field(static=True)

    @classmethod
    def init(cls, key: Array, layer: Layer, channels: int, initialisation: Initialisation) -> Convolution:
        """First weights as those of a `Linear` layer from one window to the filters, orthogonal ones times sqrt(2)."""
        linear = Linear(key, layer.size**2 * channels, layer.filters, initialisation, math.sqrt(2.0))
        kernel = linear.weight.T.reshape(layer.filters, layer.size, layer.size, channels)
        return cls(kernel, linear.bias, layer.stride)

    def __call__(self, x: Real[Array, "H W C"]) -> Float[Array, "H' W' filters"]:
        y = convolve(x, self.kernel, self.stride)
        return (y / 255.0 if x.dtype == jnp.uint8 else y) + self.bias


def convolve(
    x: Real[Array, "H W C"], kernel: Float[Array, "filters size size C"], stride: int
) -> Float[Array, "H' W' filters"]:
    """The convolution without padding, in the form that is fastest where it is compiled. The stride divides the size of
    the kernel.

    On a CPU XLA's own is as fast in a program by itself, and its gradient twenty times slower inside of a loop.
    """
    return (as_products if jax.default_backend() == "cpu" else by_library)(x, kernel, stride)


def by_library(
    x: Real[Array, "H W C"], kernel: Float[Array, "filters size size C"], stride: int
) -> Float[Array, "H' W' filters"]:
    """XLA's own convolution, which is cuDNN's on a GPU."""
    names, x = ("NHWC", "OHWI", "NHWC"), x.astype(kernel.dtype)
    return jax.lax.conv_general_dilated(x[None], kernel, (stride, stride), "VALID", dimension_numbers=names)[0]


def as_products(
    x: Real[Array, "H W C"], kernel: Float[Array, "filters size size C"], stride: int
) -> Float[Array, "H' W' filters"]:
    """The same as one product of matrices, which is that of a whole batch under `vmap`.

    Windows become the rows of a matrix: blocks of `stride x stride` pixels are taken for pixels with as many more
    channels, those of a window side by side are joined, then the lines of it. The kernel has a row for each filter, so
    that its gradient is a product of two matrices as they lie.
    """
    x, kernel = blocks(x, kernel, stride)
    filters, size = kernel.shape[:2]
    rows, columns = x.shape[0] - size + 1, x.shape[1] - size + 1
    lines = jnp.concatenate([x[:, j : j + columns] for j in range(size)], axis=-1)
    windows = jnp.concatenate([lines[i : i + rows] for i in range(size)], axis=-1)
    # Bytes become numbers only here: what was copied before takes a quarter of the memory.
    windows = windows.reshape(rows * columns, -1).astype(kernel.dtype)
    y = windows @ kernel.reshape(filters, -1).T
    # Of the gradient this keeps its transpose, which is a fast copy, apart from what is computed element by element.
    return jax.lax.optimization_barrier(y).reshape(rows, columns, filters)


def blocks(
    x: Real[Array, "H W C"], kernel: Float[Array, "filters size size C"], stride: int
) -> tuple[Real[Array, "h w D"], Float[Array, "filters s s D"]]:
    """A picture whose pixels are blocks of `stride x stride` pixels, and the kernel that goes over it by steps of one
    to the same effect: a stride of one has no gaps, which would make cutting windows slow."""
    filters, size, _, channels = kernel.shape
    span, depth = size // stride, stride**2 * channels
    height, width = ((n - size) // stride + span for n in x.shape[:2])
    x = x[: height * stride, : width * stride].reshape(height, stride, width, stride, channels)
    kernel = kernel.reshape(filters, span, stride, span, stride, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.transpose(0, 2, 1, 3, 4).reshape(height, width, depth), kernel.reshape(filters, span, span, depth)


class ImageFeatures(Features):
    """One observation of bytes as the outputs of convolutions and a dense layer, all rectified: `obs -> [units]`."""

    layers: tuple[Convolution, ...]
    dense: Linear

    @classmethod
    def init(cls, key: Array, name: FeatureName, space: Space, initialisation: Initialisation) -> ImageFeatures:
        """The network of that name for a space that it fits."""
        layers, units = ARCHITECTURES[name]
        *keys, dense_key = jax.random.split(key, len(layers) + 1)
        height, width, channels = channels_last(space.shape)
        inputs = [channels, *(layer.filters for layer in layers)]
        rows, columns = ARCHITECTURES[name].fit(height, width)
        return cls(
            space,
            tuple(Convolution.init(k, x, n, initialisation) for k, x, n in zip(keys, layers, inputs, strict=False)),
            Linear(dense_key, rows * columns * inputs[-1], units, initialisation, math.sqrt(2.0)),
        )

    @property
    def size(self) -> int:
        return len(self.dense.bias)

    def __call__(self, obs: Array) -> Float[Array, " units"]:
        x = as_picture(obs)
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return jax.nn.relu(self.dense(jnp.ravel(x)))


def features_for(key: Array, name: FeatureName, space: Space, initialisation: Initialisation) -> Features:
    """What turns an observation of the space into a vector, by the setting `features`."""
    chosen = resolve(name, space)
    if chosen == "flat":
        return Features(space)
    # Apart from the keys into which layers behind split the same key.
    key = jax.random.fold_in(key, zlib.crc32(b"features"))
    return ImageFeatures.init(key, chosen, space, initialisation)


def features_size(name: FeatureName, space: Space) -> int:
    """How many numbers that vector has."""
    chosen = resolve(name, space)
    return Features(space).size if chosen == "flat" else ARCHITECTURES[chosen].units


def hidden_sizes_after(features: Features, hidden_sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The hidden layers between features and outputs: none behind convolutions, whose dense layer is the last."""
    return () if isinstance(features, ImageFeatures) else hidden_sizes


def resolve(name: FeatureName, space: Space) -> Literal["nature", "dqn2013", "flat"]:
    """Which features serve a space: those named; `auto` is the network of 2015 for images that it fits, else `flat`."""
    if name != "auto":
        return name
    return "nature" if _objection("nature", space) is None else "flat"


def check_features(name: FeatureName, space: Space) -> None:
    """Raise `UnsupportedSpace` where the named network cannot take observations of the space."""
    objection = None if name in ("auto", "flat") else _objection(name, space)
    if objection is not None:
        raise UnsupportedSpace(f"features (--features) was {name}, {objection}")


def _objection(name: str, space: Space) -> str | None:
    """Why the network of that name cannot take a space, and what to do about it; `None` where it can."""
    instead = "Leave features out"
    if not isinstance(space, Box) or len(space.shape) not in (3, 4) or space.dtype != np.uint8:
        given = f"{space} of {np.dtype(space.dtype).name}" if isinstance(space, Box) else str(space)
        return (
            "a network for images of bytes (uint8): stacks of frames [k, H, W] or [k, H, W, 3], or one picture "
            f"[H, W, 3]; this environment observes {given}. {instead}, and observations are taken as flat numbers."
        )
    height, width, _ = channels_last(space.shape)
    least = ARCHITECTURES[name].least_size
    if min(height, width) >= least:
        return None
    small = [other for other, a in ARCHITECTURES.items() if min(height, width) >= a.least_size]
    smaller = f", take the smaller network (--features {small[0]})," if small else ""
    return (
        f"a network for pictures of at least {least} x {least} pixels, and this environment's are {height} x {width} "
        f"(observations of shape {space.shape}). Make the pictures larger{smaller} or leave features out, and "
        "observations are taken as flat numbers."
    )


def channels_last(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels of the picture that observations of a shape are."""
    if shape[-1] <= MOST_CHANNELS_LAST:
        *frames, height, width, colours = shape
        return height, width, math.prod(frames) * colours
    *frames, height, width = shape
    return height, width, math.prod(frames)


def as_picture(obs: Array) -> Array:
    """An observation as `[H, W, channels]`: of each pixel the frames, oldest first, and of each frame its colours."""
    if obs.shape[-1] > MOST_CHANNELS_LAST:
        obs = obs[..., None]
    frames_first = obs.reshape(-1, *obs.shape[-3:])
    return jnp.moveaxis(frames_first, 0, 2).reshape(*obs.shape[-3:-1], -1)
