"""Gymnasium environments, any of them, as the host loop sees them.

Whatever Gymnasium's autoreset mode, a step says the same: the true successor, whether and how the episode ended, and
the observation to act on next.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from treadle.algorithms.base import require
from treadle.environments.atari import AtariGames, Game, game_of, register_games
from treadle.environments.wrappers import Wrappers, with_time_limit
from treadle.errors import InvalidSetting, TreadleError, UnknownName, UnsupportedSpace, nearest
from treadle.spaces import Discrete, Grid, Space, from_gymnasium

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import VectorEnv

Autoreset = Literal["same_step", "next_step", "disabled"]
_MODES: dict[str, Autoreset] = {"SameStep": "same_step", "NextStep": "next_step", "Disabled": "disabled"}


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


class GymnasiumEnvironments:
    """`num_envs` Gymnasium environments side by side, reset as their episodes end.

    `env` is an id (`"CartPole-v1"`, `"my_package:MyEnv-v0"`), a callable that makes an environment, an environment
    (one), or a ready `gymnasium.vector.VectorEnv`, which brings its own `num_envs` and autoreset mode. `render_mode`
    and `make_options` go to `gymnasium.make` or to the callable. Of the `wrappers`, those of actions and of the time
    limit are applied here; `step` gives the environment's own reward. Atari games by their ids are ale-py's many games
    at once (`treadle.environments.atari`), set up as the wrappers say, always in next-step mode.

    Raises `UnknownName` for an id that Gymnasium cannot make, `UnsupportedSpace` for spaces that Treadle does not
    serve. What a user's environment raises passes through.
    """

    name: str
    num_envs: int
    observation_space: Space
    action_space: Space
    max_episode_steps: int | None
    frame_stack: int = 0
    """As in `treadle.types.Spec`."""
    steps_per_second: float | None = None
    """At which it is meant to be watched, where it says so."""
    keeps_last_frame: bool = False
    """Whether `render` after an episode's end shows that end."""
    _receiving_since: float | None = None

    def __init__(
        self,
        env: str | Callable[..., gymnasium.Env] | gymnasium.Env | VectorEnv,
        num_envs: int = 1,
        autoreset: Autoreset = "same_step",
        render_mode: str | None = None,
        wrappers: Wrappers | None = None,
        **make_options: Any,
    ):
        require(num_envs >= 1, "num_envs", num_envs, "at least 1")
        modes = list(_MODES.values())
        require(autoreset in modes, "autoreset", f"'{autoreset}'", f"one of {', '.join(modes)}")
        options = make_options if render_mode is None else {"render_mode": render_mode, **make_options}

        self.wrappers = wrappers or Wrappers()
        game = game_of(env) if isinstance(env, str) else None
        if game is not None:
            if make_options:
                raise InvalidSetting(
                    f"{', '.join(make_options)} cannot be passed on to the Atari game {env}. What can be set about it "
                    "are the fields of treadle.environments.atari.AtariOptions, by treadle.wrap(...)."
                )
            self._begin_atari(str(env), game, num_envs, render_mode)
            return
        self.wrappers.refuse_atari(env if isinstance(env, str) else "an environment that you bring yourself")
        made = _make(env, num_envs, options)
        first = made[0] if isinstance(made, list) else made
        self.name = env if isinstance(env, str) else _name(first)
        self.max_episode_steps = self.wrappers.max_episode_steps(_time_limit(first))
        self.steps_per_second = (getattr(first, "metadata", None) or {}).get("render_fps")
        try:
            if self.wrappers.time_limit != "own":
                if not isinstance(made, list) or made[0] is env:
                    raise InvalidSetting(
                        f"time_limit (--time-limit) was {self.wrappers.time_limit}, and {self.name} is made already. "
                        "Set the limit where it is made, or give an id or a function that makes it."
                    )
                made = [with_time_limit(each, self.max_episode_steps) for each in made]
            self.observation_space, own_actions = _spaces(first, self.name)
            self.action_space = self.wrappers.action_space(own_actions)
            self._stepper = _stepper(made, autoreset, self)
        except TreadleError:
            for opened in made if isinstance(made, list) else [made]:
                opened.close()
            raise
        self.autoreset = self._stepper.autoreset
        self.num_envs = self._stepper.num_envs

    def _begin_atari(self, name: str, game: Game, num_envs: int, render_mode: str | None) -> None:
        if self.wrappers.clip_rewards is None:
            self.wrappers = dataclasses.replace(self.wrappers, clip_rewards=True)
        skip = self.wrappers.frame_skip or game.frame_skip
        self.name, self.num_envs = name, num_envs
        self.max_episode_steps = self.wrappers.max_episode_steps(-(-game.most_frames // skip))
        games = AtariGames(game, num_envs, self.wrappers, self.max_episode_steps, render_mode is not None)
        self.frame_stack, self.steps_per_second = games.frame_stack, games.steps_per_second
        self.keeps_last_frame = True
        self.observation_space = games.observation_space
        self.action_space = self.wrappers.action_space(games.action_space)
        self._stepper = _Atari(games, self)
        self.autoreset = self._stepper.autoreset

    @property
    def masks_rows(self) -> bool:
        """Whether steps come with `valid` rather than `None`."""
        return self.autoreset == "next_step"

    def reset(self, seed: int) -> np.ndarray:
        """The first observations `[B, ...]`. Environments and their spaces are each seeded differently."""
        base = int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1)
        seeds = [base + i for i in range(2 * self.num_envs)]
        obs = self._stepper.reset(seeds[: self.num_envs], seeds[self.num_envs :])
        expected = (self.num_envs, *self.observation_space.shape)
        if obs.shape != expected:
            raise TreadleError(
                f"{self.name} returned observations of shape {obs.shape[1:]}, but its observation space says "
                f"{expected[1:]}. Correct one of them."
            )
        return self._stepper.owned(obs)

    def step(self, actions: np.ndarray) -> HostStep:
        """One step of every environment with `actions` `[B]` counted from 0 (`Discrete`) or `[B, ...]` (`Box`)."""
        self.send(actions)
        return self.receive()

    @property
    def stepping(self) -> float | None:
        """Seconds since the step began that is being received, if one is: asked by other threads, of which one steps.
        An environment may hang."""
        since = self._receiving_since
        return None if since is None else time.monotonic() - since

    @property
    def steps_by_itself(self) -> bool:
        """Whether a step that has begun goes on in other threads, and something else can be done meanwhile."""
        return isinstance(self._stepper, _Atari)

    def send(self, actions: np.ndarray) -> None:
        """Begin a step; `receive` ends it. The two are `step`."""
        self._stepper.send(actions)

    def receive(self) -> HostStep:
        """What comes of the step that was begun."""
        self._receiving_since = time.monotonic()
        step = self._stepper.receive()
        self._receiving_since = None
        return step

    def render(self) -> Sequence[Any]:
        """What each environment renders."""
        return self._stepper.render()

    def wrap_first(self, wrap: Callable[[Any], Any]) -> Any:
        """Put what `wrap` makes of the first environment in its place, and return it. Raises `InvalidSetting` for a
        vector environment whose parts cannot be reached."""
        if not isinstance(self._stepper, _Separate):
            raise InvalidSetting(
                f"{self.name} is a vector environment, whose parts cannot be reached one by one. Give an id, or a "
                "function that makes one environment."
            )
        return self._stepper.wrap_first(wrap)

    def close(self) -> None:
        self._stepper.close()


def counterpart(name: str) -> str | None:
    """The Gymnasium id of a world of this name, `None` where Gymnasium has none. Raises `UnknownName` for an Atari game
    where ale-py is not installed."""
    import gymnasium

    return name if name in gymnasium.registry or game_of(name) else None


def known_ids() -> list[str]:
    """The ids that Gymnasium knows at the moment, for suggestions."""
    import gymnasium

    register_games()
    return sorted(gymnasium.registry)


class _Stepper(Protocol):
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

    def __init__(self, spaces: GymnasiumEnvironments, num_envs: int, action_dtype: Any):
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


class _Separate(_Arrays):
    """Environments stepped one by one, without the cost of a vector environment's bookkeeping."""

    autoreset: Autoreset = "same_step"

    def __init__(self, envs: Sequence[gymnasium.Env], spaces: GymnasiumEnvironments):
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


class _Vector(_Arrays):
    """A vector environment in any autoreset mode."""

    def __init__(self, vector: VectorEnv, spaces: GymnasiumEnvironments):
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


class _Atari(_Arrays):
    """ale-py's games, which step in threads of their own."""

    autoreset: Autoreset = "next_step"

    def __init__(self, games: AtariGames, spaces: GymnasiumEnvironments):
        super().__init__(spaces, games.num_envs, np.int32)
        self._games, self._ends_with_life = games, spaces.wrappers.lost_life_terminates
        self._ended = np.zeros(self.num_envs, np.bool_)

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


def _stepper(made: list[gymnasium.Env] | VectorEnv, autoreset: Autoreset, spaces: GymnasiumEnvironments) -> _Stepper:
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    if isinstance(made, list):
        if autoreset == "same_step":
            return _Separate(made, spaces)
        mode = next(AutoresetMode(theirs) for theirs, ours in _MODES.items() if ours == autoreset)
        return _Vector(SyncVectorEnv([lambda e=e: e for e in made], autoreset_mode=mode), spaces)
    # Gymnasium passes on a final observation as it is, and the reset that follows overwrites it in environments that
    # use their buffer again. Stepping the sub-environments here copies it in time.
    if type(made) is SyncVectorEnv and _mode(made, spaces.name) == "same_step":
        return _Separate(made.envs, spaces)
    return _Vector(made, spaces)


def _make(env: Any, num_envs: int, options: dict[str, Any]) -> list[gymnasium.Env] | VectorEnv:
    import gymnasium
    from gymnasium.vector import VectorEnv

    if isinstance(env, str):
        return _make_by_id(env, num_envs, options)
    if isinstance(env, (VectorEnv, gymnasium.Env)):
        if options:
            raise InvalidSetting(
                f"{_name(env)} is made already, so {', '.join(options)} would have no effect. Set this where it is "
                "made, or pass an id or a callable instead."
            )
        if isinstance(env, VectorEnv):
            return env
        require(num_envs == 1, "num_envs", num_envs, "1 for an environment that is made already (or pass a callable)")
        return [env]
    if not callable(env):
        raise InvalidSetting(
            f"the environment was {env!r}; it must be a Gymnasium id, a callable that makes a gymnasium.Env, or a "
            "gymnasium.vector.VectorEnv."
        )
    envs: list[Any] = [env(**options) for _ in range(num_envs)]
    if not isinstance(envs[0], gymnasium.Env):
        raise InvalidSetting(
            f"the callable that makes the environment returned {envs[0]!r}; it must return a gymnasium.Env."
        )
    return envs


def _make_by_id(env_id: str, num_envs: int, options: dict[str, Any]) -> list[gymnasium.Env]:
    import gymnasium
    from gymnasium import error

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*is out of date", DeprecationWarning)
            return [gymnasium.make(env_id, disable_env_checker=True, **options) for _ in range(num_envs)]
    except error.Error as problem:
        if isinstance(problem, (error.NamespaceNotFound, error.DependencyNotInstalled)):
            raise UnknownName(f"Gymnasium cannot make '{env_id}': {_sentence(problem)}") from problem
        if isinstance(problem, (error.UnregisteredEnv, error.DeprecatedEnv)) or type(problem) is error.Error:
            suggestion = nearest(env_id.rpartition(":")[2], known_ids()) or f" Gymnasium says: {_sentence(problem)}"
            raise UnknownName(
                f"Gymnasium has no environment '{env_id}'.{suggestion} One of your own is found as 'module:Id-v0', "
                "or after --import FILE.py has registered it."
            ) from problem
        raise
    except ImportError as problem:
        raise UnknownName(f"Gymnasium cannot make '{env_id}': {_sentence(problem)}") from problem


def _sentence(problem: Exception) -> str:
    text = str(problem).strip()
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _spaces(env: Any, name: str) -> tuple[Space, Space]:
    """Observation and action space of one environment, also where `env` is a vector of them."""
    found = []
    for kind in ("observation_space", "action_space"):
        space = getattr(env, f"single_{kind}", None) or getattr(env, kind)
        try:
            found.append(from_gymnasium(space))
        except UnsupportedSpace as problem:
            raise UnsupportedSpace(f"{name} does not fit by its {kind.replace('_', ' ')}: {problem}") from problem
    return found[0], found[1]


def _seed_spaces(envs: Sequence[Any], seeds: list[int]) -> None:
    """Some environments draw from their own spaces, and a user may draw actions from them."""
    for env, seed in zip(envs, seeds, strict=False):
        for kind in ("action_space", "observation_space", "single_action_space", "single_observation_space"):
            space = getattr(env, kind, None)
            if space is not None:
                space.seed(seed)


def _name(env: Any) -> str:
    spec = _spec(env)
    return type(env.unwrapped).__name__ if spec is None else spec.id


def _time_limit(env: Any) -> int | None:
    spec = _spec(env)
    return None if spec is None else spec.kwargs.get("max_episode_steps", spec.max_episode_steps)


def _spec(env: Any) -> Any:
    """The specification of an environment; a vector environment made by hand has only those of its parts."""
    parts = getattr(env.unwrapped, "envs", None)
    return parts[0].spec if parts else env.spec


def _mode(vector: VectorEnv, name: str) -> Autoreset:
    mode = vector.metadata.get("autoreset_mode")
    text = getattr(mode, "value", mode)
    if text not in _MODES:
        raise InvalidSetting(
            f"{name} does not say how it resets: its metadata['autoreset_mode'] is {mode!r}. Set it to a "
            "gymnasium.vector.AutoresetMode."
        )
    return _MODES[text]
