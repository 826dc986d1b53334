"""`scan` and `cond` that draw their random numbers beforehand.

One small threefry call inside a compiled loop costs a CPU about a microsecond, a whole step of DQN on CartPole only
thirty: the half dozen that it takes are worth avoiding. What a step computes from its keys alone does not depend on
the carry, so it can be computed for all steps at once, before the loop. The numbers are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jaxtyping import Array, PyTree

C = TypeVar("C")
T = TypeVar("T")


def scan(body: Callable[[C, Any], tuple[C, Any]], init: C, xs: PyTree) -> tuple[C, Any]:
    """`jax.lax.scan(body, init, xs)` with the work that depends only on the PRNG keys in `xs` done before the loop.

    Returns what `jax.lax.scan` returns, and refuses what it refuses.
    """
    if not any(is_key(x) and x.size for x in jax.tree.leaves(xs)):
        return jax.lax.scan(body, init, xs)
    first = jax.tree.map(lambda x: jax.eval_shape(lambda y: y[0], x), xs)
    closed, out_shape = jax.make_jaxpr(body, return_shape=True)(init, first)
    out_tree = jax.tree.structure(out_shape)
    flat_init, flat_xs = jax.tree.leaves(init), jax.tree.leaves(xs)
    carry_tree = jax.tree.structure(init)
    num_carry = len(flat_init)

    early, late, frontier = _split(closed.jaxpr, closed.jaxpr.invars[num_carry:])
    if not frontier or not _carries_on(init, closed, out_shape):
        return jax.lax.scan(body, init, xs)
    keys = [i for i, x in enumerate(flat_xs) if is_key(x)]
    drawn = jax.vmap(_function(closed.jaxpr, early, [closed.jaxpr.invars[num_carry + i] for i in keys], frontier))(
        *[flat_xs[i] for i in keys]
    )
    step = _function(
        closed.jaxpr, late, [*closed.jaxpr.constvars, *closed.jaxpr.invars, *frontier], closed.jaxpr.outvars
    )

    def flat_body(carry, x):
        outputs = step(*closed.consts, *carry, *x)
        new_carry, y = jax.tree.unflatten(out_tree, outputs)
        return tuple(jax.tree.leaves(new_carry)), y

    final, ys = jax.lax.scan(flat_body, tuple(flat_init), (*flat_xs, *drawn))
    return jax.tree.unflatten(carry_tree, final), ys


def cond(predicate: Array, if_true: Callable[..., T], if_false: Callable[..., T], *operands: Any) -> T:
    """`jax.lax.cond` with the work of `if_true` that depends only on PRNG keys among `operands` done outside, where a
    surrounding `scan` of this module can take it further out."""
    closed, out_shape = jax.make_jaxpr(if_true, return_shape=True)(*operands)
    flat = jax.tree.leaves(operands)
    keys = [i for i, x in enumerate(flat) if is_key(x)]
    invars = closed.jaxpr.invars
    early, late, frontier = _split(closed.jaxpr, [invars[i] for i in keys])
    if not frontier:
        return jax.lax.cond(predicate, if_true, if_false, *operands)
    drawn = _function(closed.jaxpr, early, [invars[i] for i in keys], frontier)(*[flat[i] for i in keys])
    rest = _function(closed.jaxpr, late, [*closed.jaxpr.constvars, *invars, *frontier], closed.jaxpr.outvars)
    out_tree = jax.tree.structure(out_shape)

    return jax.lax.cond(
        predicate,
        lambda flat, drawn: jax.tree.unflatten(out_tree, rest(*closed.consts, *flat, *drawn)),
        lambda flat, drawn: if_false(*operands),
        flat,
        drawn,
    )


def split(function: Callable[..., T], key: Any, *args: Any) -> tuple[Callable[[Any], tuple], Callable[..., T]]:
    """`draw` and `rest` with `rest(draw(key), *args) == function(key, *args)`, where `draw` is the work that depends
    on the key alone. `key` and `args` give shapes and dtypes only."""
    closed, out_shape = jax.make_jaxpr(function, return_shape=True)(key, *args)
    jaxpr, out_tree = closed.jaxpr, jax.tree.structure(out_shape)
    key_var = jaxpr.invars[0]
    early, late, frontier = _split(jaxpr, [key_var])
    if any(v is key_var for v in [*(v for equation in late for v in equation.invars), *jaxpr.outvars]):
        frontier = [key_var, *frontier]
    draw = _function(jaxpr, early, [key_var], frontier)
    rest = _function(jaxpr, late, [*jaxpr.constvars, *frontier, *jaxpr.invars[1:]], jaxpr.outvars)

    def rest_of(drawn: tuple, *args: Any) -> T:
        return jax.tree.unflatten(out_tree, rest(*closed.consts, *drawn, *jax.tree.leaves(args)))

    return lambda key: tuple(draw(key)), rest_of


def _split(jaxpr, x_vars) -> tuple[list, list, list]:
    """The equations that follow from the keys among `x_vars` alone, the others, and what the others need of them."""
    known = {v for v in x_vars if is_key(v.aval)}
    sources = set(known)
    early, late = [], []
    for equation in jaxpr.eqns:
        inputs = [v for v in equation.invars if not isinstance(v, jex_core.Literal)]
        if inputs and not equation.effects and all(v in known for v in inputs):
            early.append(equation)
            known.update(equation.outvars)
        else:
            late.append(equation)
    needed = [v for equation in late for v in equation.invars] + list(jaxpr.outvars)
    frontier = [v for v in dict.fromkeys(n for n in needed if not isinstance(n, jex_core.Literal)) if v in known]
    return early, late, [v for v in frontier if v not in sources]


def _function(jaxpr, equations, inputs, outputs):
    """The given equations of a jaxpr as a function of `inputs`."""
    part = jaxpr.replace(
        constvars=[], invars=inputs, outvars=outputs, eqns=equations, debug_info=jaxpr.debug_info.with_unknown_names()
    )
    return jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(part, []))


def _carries_on(init: PyTree, closed: jex_core.ClosedJaxpr, out_shape: Any) -> bool:
    """Whether a scan's body returns a carry like the one it took. Where not, `jax.lax.scan` can promote the first
    carry or say what is wrong; the traced body cannot."""
    if not isinstance(out_shape, tuple) or len(out_shape) != 2:
        return False
    if jax.tree.structure(out_shape[0]) != jax.tree.structure(init):
        return False
    num_carry = len(jax.tree.leaves(init))
    types = [[(x.shape, x.dtype) for x in avals[:num_carry]] for avals in (closed.in_avals, closed.out_avals)]
    return types[0] == types[1]


def is_key(x: Any) -> bool:
    """Whether it is an array of typed PRNG keys, or the shape of one."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
