"""How host environments are stepped: one by one, as a vector, or by themselves; a step says the same of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from treadle.environments.atari import AtariGames
from treadle.errors import InvalidSetting, TreadleError
from treadle.spaces import Discrete, Grid, Space

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import VectorEnv

Autoreset = Literal["same_step", "next_step", "disabled"]
MODES: dict[str, Autoreset] = {"SameStep": "same_step", "NextStep": "next_step", "Disabled": "disabled"}


class HostStep(NamedTuple):
    """One step of `B` host environments. Nothing here is a view of an environment's own buffers.

    `next_obs` is the true successor, also at an episode's end; `obs` is what to act on next, the first observation of
    a new episode where one has just ended (elsewhere the same array as `next_obs`, when no episode ended at all).
    An episode that terminates in the step of its time limit counts as terminated only. `valid` is false for rows in
    which the environment ignored the action and reset itself; `None` says that there are no such rows in this mode.
    Where a life is lost, in Atari games, and that is to be terminal for learning, `lost_life` is true though the
    episode goes on; `None` where no life can be lost.
    """

    next_obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray | None
    obs: np.ndarray
    lost_life: np.ndarray | None = None

    @property
    def terminal(self) -> np.ndarray:
        """Where learning must not look beyond the step."""
        return self.terminated if self.lost_life is None else self.terminated | self.lost_life


class Described(Protocol):
    """What a stepper asks of those whose environments it steps."""

    name: str
    observation_space: Space
    action_space: Space


class Stepper(Protocol):
    """How the environments are stepped; actions and observations are those of `GymnasiumEnvironments`."""

    num_envs: int
    autoreset: Autoreset

    def reset(self, seeds: list[int], space_seeds: list[int]) -> np.ndarray: ...

    def owned(self, obs: Any) -> np.ndarray: ...

    def send(self, actions: np.ndarray) -> None: ...

    def receive(self) -> HostStep: ...

    def render(self) -> Sequence[Any]: ...

    def close(self) -> None: ...


class _Arrays:
    """Conversion between Treadle's arrays and Gymnasium's."""

    def __init__(self, spaces: Described, num_envs: int, action_dtype: Any):
        self.num_envs = num_envs
        self._obs_dtype = np.dtype(spaces.observation_space.dtype)
        self._obs_shape = (num_envs, *spaces.observation_space.shape)
        self._action_dtype = np.dtype(action_dtype)
        self._action_start = spaces.action_space.start if isinstance(spaces.action_space, Discrete) else 0
        self._grid = spaces.action_space if isinstance(spaces.action_space, Grid) else None

    def owned(self, obs: Any) -> np.ndarray:
        return np.array(obs, self._obs_dtype, order="C")

    def send(self, actions: np.ndarray) -> None:
        """Environments that run in this thread are stepped when the step is received."""
        self._sent = self.actions(actions)

    def actions(self, actions: np.ndarray) -> np.ndarray:
        """A copy, because what JAX computed is read-only and environments may write to their action."""
        taken = actions if self._grid is None else self._grid.take(actions)
        converted = np.array(taken, self._action_dtype)
        return converted + self._action_start if self._action_start else converted


class Separate(_Arrays):
    """Environments stepped one by one, without the cost of a vector environment's bookkeeping."""

    autoreset: Autoreset = "same_step"

    def __init__(self, envs: Sequence[gymnasium.Env], spaces: Described):
        super().__init__(spaces, len(envs), envs[0].action_space.dtype)
        self._envs = list(envs)

    def wrap_first(self, wrap: Callable[[Any], Any]) -> Any:
        self._envs[0] = wrap(self._envs[0])
        return self._envs[0]

    def reset(self, seeds: list[int], space_seeds: list[int]) -> np.ndarray:
        _seed_spaces(self._envs, space_seeds)
        return np.stack([np.array(env.reset(seed=s)[0]) for env, s in zip(self._envs, seeds, strict=True)])

    def receive(self) -> HostStep:
        actions = self._sent
        next_obs = np.empty(self._obs_shape, self._obs_dtype)
        reward = np.empty(self.num_envs, np.float32)
        terminated = np.zeros(self.num_envs, np.bool_)
        truncated = np.zeros(self.num_envs, np.bool_)
        ended = []
        for i, env in enumerate(self._envs):
            next_obs[i], reward[i], terminal, time_is_up, _ = env.step(actions[i])
            if terminal or time_is_up:
                terminated[i], truncated[i] = terminal, not terminal
                ended.append(i)
        if not ended:
            return HostStep(next_obs, reward, terminated, truncated, None, next_obs)
        obs = next_obs.copy()
        for i in ended:
            obs[i] = self._envs[i].reset()[0]
        return HostStep(next_obs, reward, terminated, truncated, None, obs)

    def render(self) -> Sequence[Any]:
        return [env.render() for env in self._envs]

    def close(self) -> None:
        for env in self._envs:
            env.close()


class Vector(_Arrays):
    """A vector environment in any autoreset mode."""

    def __init__(self, vector: VectorEnv, spaces: Described):
        super().__init__(spaces, vector.num_envs, vector.single_action_space.dtype)
        self._vector = vector
        self._name = spaces.name
        self.autoreset: Autoreset = _mode(vector, spaces.name)
        self._ended = np.zeros(self.num_envs, np.bool_)

    def reset(self, seeds: list[int], space_seeds: list[int]) -> np.ndarray:
        from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

        _seed_spaces([self._vector], space_seeds)
        _seed_spaces(getattr(self._vector.unwrapped, "envs", []), space_seeds)
        takes_a_list = isinstance(self._vector.unwrapped, (AsyncVectorEnv, SyncVectorEnv))
        seed: Any = seeds if takes_a_list else seeds[0]
        self._ended = np.zeros(self.num_envs, np.bool_)
        return np.array(self._vector.reset(seed=seed)[0])

    def receive(self) -> HostStep:
        observed, reward, terminated, truncated, info = self._vector.step(self._sent)
        obs, reward = self.owned(observed), np.array(reward, np.float32)
        terminated = np.array(terminated, np.bool_)
        truncated = np.array(truncated, np.bool_) & ~terminated
        ended = terminated | truncated
        if self.autoreset == "next_step":
            valid, self._ended = ~self._ended, ended
            return HostStep(obs, reward, terminated, truncated, valid, obs)
        if not ended.any():
            return HostStep(obs, reward, terminated, truncated, None, obs)
        next_obs = obs.copy()
        if self.autoreset == "same_step":
            final = self._final_observations(info)
            for i in np.flatnonzero(ended):
                next_obs[i] = final[i]
        else:
            first, _ = self._vector.reset(options={"reset_mask": ended.copy()})
            obs[ended] = self.owned(first)[ended]
        return HostStep(next_obs, reward, terminated, truncated, None, obs)

    def _final_observations(self, info: dict[str, Any]) -> Any:
        if "final_obs" not in info:
            raise TreadleError(
                f"{self._name} resets in the same step, but gives no final observation. A vector environment in this "
                'mode must put it into info["final_obs"]; next-step mode needs none.'
            )
        return info["final_obs"]

    def render(self) -> Sequence[Any]:
        return tuple(self._vector.render() or ())

    def close(self) -> None:
        self._vector.close()


class Atari(_Arrays):
    """ale-py's games, which step in threads of their own."""

    autoreset: Autoreset = "next_step"

    def __init__(self, games: AtariGames, spaces: Described, ends_with_life: bool):
        """With `ends_with_life` a lost life is told of, as terminal for learning."""
        super().__init__(spaces, games.num_envs, np.int32)
        self._games, self._ends_with_life = games, ends_with_life
        self._ended = np.zeros(self.num_envs, np.bool_)

    @property
    def ends_lives(self) -> bool:
        """Whether a lost life can be told of. The games begin anew by it."""
        return self._ends_with_life and self._games.lives() > 0

    def reset(self, seeds: list[int], space_seeds: list[int]) -> np.ndarray:
        self._ended = np.zeros(self.num_envs, np.bool_)
        return self._games.reset(seeds)

    def send(self, actions: np.ndarray) -> None:
        self._games.send(self.actions(actions))

    def receive(self) -> HostStep:
        obs, reward, terminated, truncated, lost = self._games.receive()
        truncated &= ~terminated
        valid, self._ended = ~self._ended, terminated | truncated
        return HostStep(obs, reward, terminated, truncated, valid, obs, lost if self._ends_with_life else None)

    def render(self) -> Sequence[Any]:
        return self._games.render()

    def close(self) -> None:
        self._games.close()


def stepper_of(made: list[gymnasium.Env] | VectorEnv, autoreset: Autoreset, spaces: Described) -> Stepper:
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    if isinstance(made, list):
        if autoreset == "same_step":
            return Separate(made, spaces)
        mode = next(AutoresetMode(theirs) for theirs, ours in MODES.items() if ours == autoreset)
        return Vector(SyncVectorEnv([lambda e=e: e for e in made], autoreset_mode=mode), spaces)
    # Gymnasium passes on a final observation as it is, and the reset that follows overwrites it in environments that
    # use their buffer again. Stepping the sub-environments here copies it in time.
    if type(made) is SyncVectorEnv and _mode(made, spaces.name) == "same_step":
        return Separate(made.envs, spaces)
    return Vector(made, spaces)


def _seed_spaces(envs: Sequence[Any], seeds: list[int]) -> None:
    """Some environments draw from their own spaces, and a user may draw actions from them."""
    for env, seed in zip(envs, seeds, strict=False):
        for kind in ("action_space", "observation_space", "single_action_space", "single_observation_space"):
            space = getattr(env, kind, None)
            if space is not None:
                space.seed(seed)


def _mode(vector: VectorEnv, name: str) -> Autoreset:
    mode = vector.metadata.get("autoreset_mode")
    text = getattr(mode, "value", mode)
    if text not in MODES:
        raise InvalidSetting(
            f"{name} does not say how it resets: its metadata['autoreset_mode'] is {mode!r}. Set it to a "
            "gymnasium.vector.AutoresetMode."
        )
    return MODES[text]
