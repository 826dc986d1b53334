"""Gymnasium environments, any of them, as the host loop sees them.

Whatever Gymnasium's autoreset mode, a step says the same: the true successor, whether and how the episode ended, and
the observation to act on next.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from treadle.algorithms.base import require
from treadle.environments.atari import AtariGames, Game, game_of, register_games
from treadle.environments.stepping import MODES, Atari, Autoreset, HostStep, Separate, Stepper, stepper_of
from treadle.environments.wrappers import Wrappers, with_time_limit
from treadle.errors import InvalidSetting, TreadleError, UnknownName, UnsupportedSpace, nearest
from treadle.spaces import Space, from_gymnasium

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import VectorEnv


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
        modes = list(MODES.values())
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
            self._stepper = stepper_of(made, autoreset, self)
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
        self._stepper: Stepper = Atari(games, self, self.wrappers.lost_life_terminates)
        self.autoreset = self._stepper.autoreset

    @property
    def masks_rows(self) -> bool:
        """Whether steps come with `valid` rather than `None`."""
        return self.autoreset == "next_step"

    @property
    def ends_lives(self) -> bool:
        """Whether the loss of a life is terminal for learning. Episodes of Atari games begin anew by it."""
        return isinstance(self._stepper, Atari) and self._stepper.ends_lives

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
        return isinstance(self._stepper, Atari)

    def send(self, actions: np.ndarray) -> None:
        """Begin a step; `receive` ends it. The two are `step`."""
        self._stepper.send(actions)

    def receive(self) -> HostStep:
        """What comes of the step that was begun."""
        self._receiving_since = time.monotonic()
        try:
            return self._stepper.receive()
        finally:
            self._receiving_since = None

    def render(self) -> Sequence[Any]:
        """What each environment renders."""
        return self._stepper.render()

    def wrap_first(self, wrap: Callable[[Any], Any]) -> Any:
        """Put what `wrap` makes of the first environment in its place, and return it. Raises `InvalidSetting` for a
        vector environment whose parts cannot be reached."""
        if not isinstance(self._stepper, Separate):
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
