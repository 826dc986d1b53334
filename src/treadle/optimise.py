"""Gradient steps: Optax's optimisers, with clipping in front and the learning rate applied behind.

The learning rate is an argument of the step and not of the optimiser, so that it can be a leaf of the algorithm
(changing it compiles nothing anew) and can follow environment steps rather than gradient steps.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

Optimiser = Literal["adam", "rmsprop", "sgd"]

T = TypeVar("T")


def make(
    name: Optimiser,
    max_grad_norm: float | Array | None = None,
    max_grad_value: float | Array | None = None,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """An optimiser of unit learning rate behind clipping by global norm (over all parameters together, Pascanu et al.
    2013) and by value (each element), whichever are given.

    `adam`: Kingma and Ba (2015). `rmsprop`: Tieleman and Hinton (2012), decay 0.99. `sgd`: the gradient itself.
    """
    parts = []
    if max_grad_norm is not None:
        parts.append(clip_by_global_norm(max_grad_norm))
    if max_grad_value is not None:
        parts.append(optax.clip(max_grad_value))  # pyright: ignore[reportArgumentType]
    rules = {
        "adam": lambda: optax.scale_by_adam(eps=eps),
        "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=eps),
        "sgd": optax.identity,
    }
    return optax.chain(*parts, rules[name]())


def clip_by_global_norm(max_norm: float | Array) -> optax.GradientTransformation:
    """Scale gradients down to a global norm of `max_norm`; shorter ones stay as they are.

    What `optax.clip_by_global_norm` does, as one factor that the compiler merges into the step behind it: dividing
    every element instead took a tenth of a small network's whole training step.
    """

    def clip(gradients: PyTree, _: PyTree) -> PyTree:
        norm = optax.tree.norm(gradients)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda g: factor * g, gradients)

    return optax.stateless(clip)


def start(optimiser: optax.GradientTransformation, parameters: PyTree) -> optax.OptState:
    """The optimiser's state before the first step."""
    return optimiser.init(parameters)


def descend(
    optimiser: optax.GradientTransformation,
    parameters: T,
    opt_state: optax.OptState,
    gradients: PyTree,
    learning_rate: PyTree,
) -> tuple[T, optax.OptState]:
    """One step against the gradients. `learning_rate` is one number, or a tree of them, one for each part of the
    parameters."""
    updates, opt_state = optimiser.update(gradients, opt_state, parameters)  # pyright: ignore[reportArgumentType]
    stepped = jax.tree.map(
        lambda rate, part, by: jax.tree.map(lambda p, u: p - rate * u, part, by), learning_rate, parameters, updates
    )
    return stepped, opt_state
