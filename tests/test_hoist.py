"""Drawing before the loop changes nothing but where the drawing is done."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle import hoist

KEYS = jax.random.split(jax.random.key(0), 6)


def _assert_same(given: Any, wanted: Any, exact: bool = True) -> None:
    """Integers, Booleans and keys are always equal to the bit."""
    assert jax.tree.structure(given) == jax.tree.structure(wanted)
    for leaf, other in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
        assert leaf.dtype == other.dtype
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf, other = jax.random.key_data(leaf), jax.random.key_data(other)
        if exact or not jnp.issubdtype(leaf.dtype, jnp.floating):
            np.testing.assert_array_equal(leaf, other)
        else:
            np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6)


def _equations(jaxpr: Any, loops: int = 0) -> Iterator[tuple[str, int]]:
    """The name of every primitive, however deep, and how many scans it lies in."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        yield name, loops
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _equations(inner, loops + (name == "scan"))


def _draws(function: Any, *args: Any) -> tuple[int, int]:
    """How many primitives that touch keys or draw from them lie outside of all scans, and how many within one."""
    found = [loops for name, loops in _equations(jax.make_jaxpr(function)(*args).jaxpr) if name.startswith("random_")]
    return found.count(0), len(found) - found.count(0)


def _all_kinds_of_draws(loops):
    """A body that uses its key in many ways. Like all below, it is made anew from a module with `scan` and `cond`,
    so that no trace of one is taken for the other's."""

    def body(total, key):
        first, second, third = jax.random.split(key, 3)
        normal = jax.random.normal(first, (3,))
        draws = {
            "normal": normal,
            "uniform": jax.random.uniform(jax.random.fold_in(key, 7)),
            "integer": jax.random.randint(second, (2,), 0, 1_000),
            "coin": jax.random.bernoulli(third, 0.3),
            "key": second,
        }
        return total * 0.9 + normal @ jnp.arange(3.0), draws

    return body


def _nested(loops):
    def inner(total, key):
        draw = jax.random.normal(key)
        return total * 0.5 + draw, draw

    return lambda total, key: loops.scan(inner, total, jax.random.split(key, 4))


def _branching(loops):
    def step(total, key):
        draw = jax.random.normal(key)
        return total + draw, draw

    return lambda total, key: loops.cond(total < 0.3, step, lambda total, key: (total - 1.0, 0.0), total, key)


def _branching_on_a_nested_scan(loops):
    """The shape of DQN's update: act, then learn for several steps or not at all."""

    def body(total, key):
        act_key, learn_key = jax.random.split(key)
        action = jax.random.randint(act_key, (), 0, 10)
        wait = lambda total, key: (total, jnp.zeros(4))  # noqa: E731
        total, draws = loops.cond(action > 4, _nested(loops), wait, total, learn_key)
        return total, (action, draws)

    return body


BODIES = pytest.mark.parametrize("make", [_all_kinds_of_draws, _branching, _branching_on_a_nested_scan])


def _program(make, loops):
    return lambda total, keys: loops.scan(make(loops), total, keys)


@BODIES
def test_it_is_lax_scan(make):
    """Every random number to the bit; what is computed with them closely, since it is compiled otherwise."""
    (total, draws), (expected, expected_draws) = (
        jax.jit(_program(make, loops))(jnp.float32(0.25), KEYS) for loops in (hoist, jax.lax)
    )
    _assert_same(draws, expected_draws)
    _assert_same(total, expected, exact=False)


@BODIES
def test_no_draw_stays_in_the_loop(make):
    outside, inside = _draws(_program(make, jax.lax), jnp.float32(0.0), KEYS)
    assert outside == 0 and inside > 0, "the test counts the right thing"
    outside, inside = _draws(_program(make, hoist), jnp.float32(0.0), KEYS)
    assert outside > 0 and inside == 0


def test_vmap_over_seeds():
    program = _program(_branching, hoist)
    seeds = jnp.stack([KEYS, KEYS[::-1]])
    starts = jnp.array([0.0, 0.5])
    together, alone = jax.jit(jax.vmap(program))(starts, seeds), jax.jit(program)
    for i in range(2):
        _assert_same(jax.tree.map(lambda x, i=i: x[i], together), alone(starts[i], seeds[i]), exact=False)
    for make in (_branching, _branching_on_a_nested_scan):
        assert _draws(jax.vmap(_program(make, hoist)), starts, seeds)[1] == 0


def test_gradients_go_through_and_to_what_is_closed_over():
    def loss(loops, weight, start, keys):
        def shrink(x, key):
            return x - jax.random.uniform(key)

        def body(x, key):
            noise = jax.random.normal(key, (2,))
            x = loops.cond(x[0] > 0, shrink, lambda x, key: x * 1.1, x, key)
            x = jnp.tanh(weight @ x + 0.3 * noise)
            return x, x.sum()

        last, sums = loops.scan(body, start, keys)
        return last.sum() + (sums**2).mean()

    arguments = jnp.array([[0.5, -0.2], [0.1, 0.9]]), jnp.array([0.3, -0.4]), KEYS
    given, expected = (
        jax.jit(jax.value_and_grad(functools.partial(loss, loops), argnums=(0, 1)))(*arguments)
        for loops in (hoist, jax.lax)
    )
    _assert_same(given, expected, exact=False)
    assert np.abs(given[1][0]).min() > 1e-3


def test_tracers_and_keys_closed_over_under_an_outer_jit():
    """A closed-over key is no argument of the body: its draws stay where they are, and are right."""

    def program(loops, scale, other_key, keys):
        def body(total, key):
            common, own = jax.random.normal(other_key), jax.random.normal(key)
            return total + scale * own + common, (common, own)

        return loops.scan(body, jnp.zeros(()), keys)

    (total, draws), (expected, expected_draws) = (
        jax.jit(functools.partial(program, loops))(jnp.float32(2.0), jax.random.key(9), KEYS)
        for loops in (hoist, jax.lax)
    )
    _assert_same(draws, expected_draws)
    _assert_same(total, expected, exact=False)


class Walker(NamedTuple):
    place: dict[str, jax.Array]
    key: jax.Array
    steps: jax.Array


def test_trees_several_keys_and_keys_that_the_carry_holds():
    """Draws from the carry's own key, or from a key mixed with the carry, depend on the step before: they stay."""

    def body(walker, x):
        own, draw_key = jax.random.split(walker.key)
        mixed = jax.random.fold_in(x["keys"][0], walker.steps)
        push = jax.random.normal(x["keys"][1], (2,)) * x["scale"]
        place = {"xy": walker.place["xy"] + push + jax.random.normal(draw_key, (2,)) + jax.random.uniform(mixed)}
        noise = jax.random.normal(x["keys"][0]), jax.random.uniform(x["more"][1], (2,)), jax.random.uniform(mixed)
        order = jax.random.permutation(x["more"][0], 5)
        return Walker(place, own, walker.steps + 1), {"noise": noise, "order": order, "keys": x["keys"], "none": None}

    start = Walker({"xy": jnp.zeros(2)}, jax.random.key(3), jnp.int32(0))
    others = jax.random.split(jax.random.key(5), (6, 2))
    xs = {"keys": (KEYS, jax.random.split(jax.random.key(4), 6)), "scale": jnp.arange(6.0), "more": others}
    programs = [functools.partial(loops.scan, body) for loops in (hoist, jax.lax)]
    (walker, draws), (expected, expected_draws) = (jax.jit(program)(start, xs) for program in programs)
    _assert_same(draws, expected_draws)
    _assert_same(walker, expected, exact=False)
    (before, within), (_, within_lax) = (_draws(program, start, xs) for program in programs)
    assert before > 0 and 0 < within < within_lax


def test_side_effects_stay_in_the_loop_and_see_the_draws():
    told = []

    def body(total, key):
        draw = jax.random.randint(key, (), 0, 10**6)
        jax.debug.callback(lambda step, draw: told.append((int(step), int(draw))), total, draw, ordered=True)
        return total + 1, draw

    _, draws = jax.jit(lambda keys: hoist.scan(body, jnp.int32(0), keys))(KEYS)
    jax.effects_barrier()
    assert told == list(enumerate(draws.tolist()))


def test_a_side_effect_of_a_branch_not_taken_does_not_happen():
    told = []

    def tell(total, key):
        draw = jax.random.uniform(key)
        jax.debug.callback(told.append, draw)
        return total + draw

    def body(step, key):
        return step + 1, hoist.cond(step % 2 == 0, tell, lambda total, key: total, 0.0, key)

    _, draws = jax.jit(lambda keys: hoist.scan(body, jnp.int32(0), keys))(KEYS)
    jax.effects_barrier()
    assert sorted(float(x) for x in told) == sorted(draws[::2].tolist())


def _add(total, x):
    return total + x, total * x


def _add_draw(total, key):
    return total + jax.random.normal(key), total


@pytest.mark.parametrize(
    ("body", "init", "xs"),
    [
        (_add, jnp.float32(0.0), jnp.arange(5.0)),
        (_add, jnp.zeros(2), np.arange(6, dtype=np.float32).reshape(3, 2)),
        (_add, jnp.float32(0.0), jnp.zeros(0)),
        (lambda key, x: (jax.random.split(key)[0], jax.random.uniform(key) * x), jax.random.key(0), jnp.arange(4.0)),
        (lambda total, key: (total + 1, key), jnp.int32(0), KEYS),
        (_add_draw, 0.0, KEYS),
        (_add_draw, 0, KEYS),
        (lambda total, key: (total * 2 + jax.random.normal(key), total), 1, KEYS),
        (_add_draw, jnp.float32(0.0), KEYS[:0]),
        (_add_draw, jnp.float32(0.0), KEYS[:1]),
        (lambda total, key: (jax.random.normal(key), jax.random.normal(key)), jnp.float32(0.0), KEYS),
    ],
    ids=[
        "no keys",
        "numpy",
        "no keys, no steps",
        "a key in the carry only",
        "a key passed through",
        "a Python float",
        "a Python integer to be promoted",
        "an integer to be promoted, traced as one",
        "no steps",
        "one step",
        "draws alone",
    ],
)
def test_whatever_lax_scan_takes(body, init, xs):
    _assert_same(hoist.scan(body, init, xs), jax.lax.scan(body, init, xs), exact=False)


@pytest.mark.parametrize(
    ("body", "init"),
    [
        (lambda c, key: ((c[0] + jax.random.normal(key), c[1]), ()), [0.0, 1.0]),
        (lambda c, key: (c[0] + jax.random.normal(key), ()), (0.0, 1.0)),
        (lambda c, key: (jnp.stack([c, jax.random.normal(key)]), ()), jnp.float32(0.0)),
        (lambda c, key: c + jax.random.normal(key), jnp.float32(0.0)),
    ],
    ids=["another container", "fewer leaves", "another shape", "no outputs"],
)
def test_whatever_lax_scan_refuses_in_its_own_words(body, init):
    with pytest.raises(TypeError) as expected:
        jax.lax.scan(body, init, KEYS)
    with pytest.raises(TypeError) as given:
        hoist.scan(body, init, KEYS)
    assert str(given.value) == str(expected.value)


@pytest.mark.parametrize("predicate", [True, False])
def test_cond_is_lax_cond(predicate):
    """Keys among the operands, in a tree, beside arrays and Python numbers; both branches draw."""

    def if_true(tree, number):
        return {"x": tree["x"] + number, "draw": jax.random.normal(tree["key"], (3,)), "key": tree["key"]}

    def if_false(tree, number):
        return {"x": tree["x"] * number, "draw": jax.random.uniform(tree["key"], (3,)), "key": tree["key"]}

    tree = {"x": jnp.arange(2.0), "key": jax.random.key(5)}
    under_jit = (jax.jit(lambda p, t, f=f: f(p, if_true, if_false, t, 3)) for f in (hoist.cond, jax.lax.cond))
    results = [cond(jnp.array(predicate), tree) for cond in under_jit]
    _assert_same(*results)
    _assert_same(hoist.cond(jnp.array(predicate), if_true, if_false, tree, 3), results[1], exact=False)


def test_cond_without_keys_or_operands():
    for predicate in (jnp.array(True), jnp.array(False)):
        assert hoist.cond(predicate, lambda x: x + 1.0, lambda x: x - 1.0, 5.0) == (6.0 if predicate else 4.0)
        assert hoist.cond(predicate, lambda: 1.0, lambda: 2.0) == (1.0 if predicate else 2.0)


def test_cond_stays_a_branch_and_draws_before_it():
    """With a predicate that `vmap` does not batch; and only what is drawn from keys alone is done beforehand."""

    def program(predicate, x, keys):
        def heavy(x, key):
            return jnp.sort(x) + jax.random.normal(key)

        return jax.vmap(lambda x, key: hoist.cond(predicate, heavy, lambda x, key: x, x, key))(x, keys)

    jaxpr = jax.make_jaxpr(program)(jnp.array(True), jnp.ones((6, 3)), KEYS).jaxpr
    top = [equation.primitive.name for equation in jaxpr.eqns]
    assert "cond" in top and "sort" not in top and "select_n" not in top
    (branches,) = [equation.params["branches"] for equation in jaxpr.eqns if equation.primitive.name == "cond"]
    within = [name for branch in branches for name, _ in _equations(branch.jaxpr)]
    assert "sort" in within and not [name for name in within if name.startswith("random_")]
