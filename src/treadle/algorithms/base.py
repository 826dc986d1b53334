"""What an algorithm is: three pure functions over one explicit state."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from jaxtyping import Array

from treadle import registry
from treadle.errors import InvalidSetting, UnsupportedSpace
from treadle.spaces import Discrete, Space
from treadle.types import Action, Carry, Metrics, Obs, PyTree, Spec, Transition

register = registry.algorithms.register


class Survey(NamedTuple):
    """Where a method stands among the others, by the axes of the usual survey."""

    model: Literal["model-free", "model-based"]
    learns: Literal["values", "policy", "values and policy"]
    updates: Literal["step", "episode"]
    """Whether it learns while an episode goes on, or at its end."""
    policy: Literal["on-policy", "off-policy"]
    """Whether it learns about the policy that acts, or can learn about another."""


ActionKind = Literal["discrete", "continuous"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Algorithm:
    """The shallow base of every method: a frozen dataclass (made so by `register`) that is also a JAX tree.

    The configuration *is* the algorithm. Float and tree-valued fields are leaves, all others are static. Whatever
    changes while it learns (networks, optimiser state, memory, schedules, counters) lives in the state that `init`
    makes and `update` returns.
    """

    name: ClassVar[str]
    survey: ClassVar[Survey | None] = None
    actions: ClassVar[tuple[ActionKind, ...]] = ("discrete", "continuous")
    """Among which it learns to choose; none for methods that only predict."""

    workers: ClassVar[Literal["gradients", "rollouts"] | None] = None
    """What many workers send to one learner: gradients, which it applies as they come (`gradients` and `apply`), or
    rollouts of its current policy, from `num_envs` environments together (`update`). `None` for methods that learn
    from the steps of one stream."""

    num_envs: int = 1
    """Environments side by side for each seed."""

    @property
    def corrects_staleness(self) -> bool:
        """Whether `update` may be given rollouts of a policy that is some updates old."""
        return False

    @property
    def needs_same_environments(self) -> bool:
        """Whether the columns of every rollout must be the same environments in the same order."""
        return False

    @property
    def num_steps(self) -> int:
        """Steps of each environment between two updates: the length `T` of a rollout."""
        return 1

    def check(self, spec: Spec | None = None) -> None:
        """Raise `InvalidSetting` or `UnsupportedSpace` for settings that make no sense; called where a user's values
        come in. Without a `spec` only the settings themselves are checked."""
        hints = typing.get_type_hints(type(self))
        for field in fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if registry.is_static(hint) or hint in (float, float | None):
                require(_is_a(value, hint), field.name, repr(value), _named(hint))
        require(self.num_envs >= 1, "num_envs", self.num_envs, "at least 1")
        if spec is not None and self.actions:
            _check_actions(spec.action_space, self)

    def prepared(self) -> Self:
        """This algorithm with whatever it was given made fit for compilation; called where a user's values come in."""
        return self

    def init(self, key: Array, spec: Spec) -> PyTree:
        """The state at the start, for one seed."""
        raise NotImplementedError

    def init_carry(self, spec: Spec) -> Carry:
        """What acting remembers for each environment between steps, as it is at an episode's start; `()` for
        nothing. Leaves have a leading axis of `spec.num_envs`; the loop clears rows at an episode's end."""
        return ()

    def act(
        self, state: PyTree, carry: Carry, obs: Obs, key: Array, *, explore: bool = True
    ) -> tuple[Action, Carry, PyTree]:
        """Actions for `obs` `[B, ...]`, the next carry, and extras for `update`. Greedy unless `explore`.

        A loop may hand over the state with networks that were `Raveled` as they are otherwise: call them, and rely on
        nothing else of them."""
        raise NotImplementedError

    def update(self, state: PyTree, rollout: Transition, key: Array) -> tuple[PyTree, Metrics]:
        """Learn from a rollout `[T, B, ...]`."""
        raise NotImplementedError

    def shared(self, state: PyTree) -> PyTree:
        """The part of the state that workers need: to act, and to compute `gradients` if those are what they send."""
        return state

    def gradients(self, state: PyTree, rollout: Transition, key: Array) -> tuple[PyTree, Metrics]:
        """What a rollout `[T, B, ...]` teaches, by a state or what is `shared` of it: for `apply`, at once or later."""
        raise NotImplementedError

    def apply(self, state: PyTree, gradients: PyTree) -> PyTree:
        """Learn what `gradients` found, perhaps by an earlier state than this."""
        raise NotImplementedError

    def begin_episodes(self, state: PyTree) -> PyTree:
        """The state where the episodes at hand were cut off and others begin, as when a run in host environments
        resumes: without what those have left there, such as traces, or steps that wait for the end."""
        return state

    def inspect(self, state: PyTree, obs: Obs) -> dict[str, Array]:
        """What the learner thinks of one observation, for whoever watches it: of `value` (a number), `q_values` and
        `probabilities` (one for each action), `mean` and `std` (of a continuous action, in its own units) those that it
        has."""
        return {}

    def policy(self, state: PyTree) -> PyTree:
        """The part of the state that acting greedily needs: what the lean artefact keeps. The whole state unless
        a method knows better; `act(policy, ..., explore=False)` must accept it."""
        return state


def require(condition: bool, setting: str, given: Any, expected: str) -> None:
    """Raise `InvalidSetting` unless the condition holds."""
    if not condition:
        flag = "--" + setting.replace("_", "-")
        raise InvalidSetting(f"{setting} ({flag}) was {given}; it must be {expected}.")


def _check_actions(space: Space, algorithm: Algorithm) -> None:
    """Raise `UnsupportedSpace` for actions among which it does not choose, naming the methods that do."""
    kind: ActionKind = "discrete" if isinstance(space, Discrete) else "continuous"
    if kind in algorithm.actions:
        return
    fitting = [name for name, (cls, _) in registry.algorithms.entries().items() if kind in cls.actions]
    instead = " Or make these discrete: --discretise-actions 11." if kind == "continuous" else ""
    raise UnsupportedSpace(
        f"{algorithm.name} learns to choose among {algorithm.actions[0]} actions, and this environment has {space}. "
        f"For {kind} ones there are {', '.join(fitting)}.{instead}"
    )


def _is_a(value: Any, annotation: Any) -> bool:
    """Whether a value is what the annotation of a static field says."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_a(v, arguments[0]) for v in value)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, a) for a in arguments)
    if annotation is float:
        return isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0
    if annotation is int:
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return isinstance(value, annotation)


def _named(annotation: Any) -> str:
    """What a value of this annotation is, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return "a tuple, such as (64, 64)"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_named(a) for a in arguments)
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", type(None): "None"}
    return words.get(annotation, str(annotation))
