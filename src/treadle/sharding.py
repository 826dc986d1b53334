"""Rows split over devices: where a program is compiled for several, what each of them computes.

A data-parallel program is the program of one device, compiled for a mesh of them with an axis named "data". What
learns is whole on each; environments, and the rows of a batch, are split along the axis. XLA's partitioner then puts in
what sums gradients over the devices. So an algorithm says of a batch that it drew no more than `split_rows(batch)`.
Without such a mesh both functions here return what they are given, and a program is the same to the last bit.
"""

from __future__ import annotations

from typing import TypeVar

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

T = TypeVar("T")

DATA = "data"
"""The axis of a mesh along which rows are split."""


def split_rows(rows: T) -> T:
    """A tree of arrays `[N, ...]`, each device with its part of the rows.

    Where the devices do not divide `N`, the last ones have fewer.
    """
    return _constrained(rows, P(DATA))


def whole(tree: T) -> T:
    """The same tree, all of it on every device: what learns, and rows that are learned from one after the other."""
    return _constrained(tree, P())


def _constrained(tree: T, spec: P) -> T:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get(DATA) is not AxisType.Auto:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)
