"""What a world is: pure `reset` and `step` over an explicit state."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Array

from treadle import registry
from treadle.spaces import Space
from treadle.types import Action, EnvState, Obs, Step


@runtime_checkable
class Environment(Protocol):
    """A world in JAX: a frozen dataclass (made so by `register`) whose physical constants are its fields.

    `step` returns the true successor, also where an episode ends; neither resets nor counts steps: both belong to
    the rollout. `max_episode_steps` is the time limit that the rollout applies, `None` for no limit. Both methods
    are for one environment; loops `vmap` them.

    A world may also offer

    - `transitions()`: the exact table of a small world;
    - `evaluated_as`: the name of the task behind a shaped reward, in which agents are evaluated;
    - `is_success(state)`: whether an episode that ends in this state has reached what the task is about;
    - `scene(state)`: a drawing as data, from a state and a world of plain numbers;
    - `action_names`: what its discrete actions, or the numbers of a continuous one, are called;
    - `keys`: what a person does by the arrow keys, from their names (`ArrowLeft`, `ArrowUp`, ...) to actions. Of
      several keys held, continuous actions add up, and of discrete ones it is the last;
    - `move(state, handle, to)`: the state in which a person has moved a handle of the scene to a point, or as near to
      it as may be, from NumPy to NumPy; with it `observe(state)`, the observation there.
    """

    @property
    def max_episode_steps(self) -> int | None: ...

    @property
    def observation_space(self) -> Space: ...

    @property
    def action_space(self) -> Space: ...

    def reset(self, key: Array) -> tuple[EnvState, Obs]: ...

    def step(self, state: EnvState, action: Action, key: Array) -> tuple[EnvState, Step]: ...


register = registry.environments.register
