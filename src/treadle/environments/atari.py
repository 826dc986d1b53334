"""Atari 2600 games as ale-py emulates them, many side by side, with the preprocessing of Mnih et al. (2015).

Frames are skipped with the maximum of the last two, shrunk and made grey, and stacked; an episode begins with a random
number of no-ops and, where the game waits for it, with a press of fire. All of it happens in ale-py's own code, on as
many threads as there are cores. What is set about it are the fields of `AtariOptions`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from treadle.algorithms.base import require
from treadle.errors import InvalidSetting, UnknownName
from treadle.spaces import Box, Discrete

FRAMES_PER_SECOND = 60
SCREEN = 210, 160
"""Rows and columns of what a game draws."""
NO_LIMIT = 2**31 - 1
"""The greatest number of frames that ale-py counts to."""
MOST_FRAMES = 108_000
"""Of an episode, unless its id says otherwise: half an hour (Machado et al. 2018)."""


class Game(NamedTuple):
    """What a Gymnasium id says of an Atari game."""

    rom: str
    sticky_actions: float
    frame_skip: int
    full_action_space: bool
    most_frames: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtariOptions:
    """How a game is shown and played. `None` is as its id says, or as Mnih et al. (2015) have it."""

    frame_skip: int | None = None
    """Atari: frames that an action lasts, of which the maximum of the last two is seen; 4 unless given."""
    frame_stack: int | None = None
    """Atari: frames in an observation, the last so many; 4 unless given."""
    frame_size: int | None = None
    """Atari: rows and columns of a frame; 84 unless given."""
    grey: bool = True
    """Atari: frames in grey, `[stack, size, size]`; else in colour, `[stack, size, size, 3]`."""
    sticky_actions: float | None = None
    """Atari: probability that the emulator repeats the former action instead, in each frame (Machado et al. 2018); as
    the id says unless given: 0.25 for ALE/NAME-v5, 0 for NAMENoFrameskip-v4."""
    noop_max: int | None = None
    """Atari: an episode begins with up to so many no-ops, at random; 30 unless given."""
    lost_life_terminates: bool = True
    """Atari: for learning, the loss of a life is terminal, though the game goes on."""

    def check_atari(self) -> None:
        """Raise `InvalidSetting` for a value outside its range."""
        for name, least, most in (
            ("frame_skip", 1, 60),
            ("frame_stack", 1, 16),
            ("frame_size", 8, 210),
            ("noop_max", 0, 1_000),
        ):
            value = getattr(self, name)
            fits = value is None or (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most)
            require(fits, name, repr(value), f"a whole number between {least} and {most}, or None")
        sticky = self.sticky_actions
        fits = sticky is None or (isinstance(sticky, (int, float)) and 0 <= sticky < 1)
        require(fits, "sticky_actions", repr(sticky), "at least 0 and less than 1, or None")

    @property
    def atari_setting(self) -> str | None:
        """One that is not as usual, if there is one."""
        own = {field.name: field.default for field in dataclasses.fields(AtariOptions)}
        return next((name for name, default in own.items() if getattr(self, name) != default), None)

    def refuse_atari(self, name: str) -> None:
        """Raise `InvalidSetting` where something is set and the environment, `name`, is no Atari game."""
        option = self.atari_setting
        if option is not None:
            raise InvalidSetting(
                f"{option} (--{option.replace('_', '-')}) was {getattr(self, option)}; it is for Atari games, and "
                f"{name} is none that Treadle makes by its name. Leave it out."
            )


def game_of(name: str) -> Game | None:
    """What an id such as `PongNoFrameskip-v4` or `ALE/Pong-v5` says; `None` for what is no Atari game on the screen
    (Gymnasium makes games that show their memory, `-ram`, like any other environment).

    Raises `UnknownName` for an Atari id where ale-py is not installed, for one without a version, and for games with a
    random frame skip.
    """
    import gymnasium

    name = name.removeprefix("ale_py:")
    if name not in gymnasium.registry and not register_games():
        if name.startswith("ALE/") or "NoFrameskip-v" in name or "Deterministic-v" in name:
            raise UnknownName(
                f"'{name}' is an Atari game, and these come with ale-py, which is not installed: "
                "pip install 'treadle[atari]'."
            )
        return None
    spec = gymnasium.registry.get(name)
    versions = [] if spec else [f"{name}-v{n}" for n in range(6) if f"{name}-v{n}" in gymnasium.registry]
    if versions and str(gymnasium.registry[versions[-1]].entry_point).startswith("ale_py"):
        raise UnknownName(f"'{name}' lacks a version. There is: {', '.join(versions)}.")
    if spec is None or not str(spec.entry_point).startswith("ale_py") or spec.kwargs.get("obs_type") == "ram":
        return None
    skip = spec.kwargs.get("frameskip", 4)
    if not isinstance(skip, int):
        title = name.partition("-")[0]
        raise UnknownName(
            f"'{name}' skips from {skip[0]} to {skip[1] - 1} frames at random, which is not served. Take "
            f"{title}NoFrameskip-v4, or ALE/{title}-v5."
        )
    return Game(
        rom=spec.kwargs["game"],
        sticky_actions=float(spec.kwargs.get("repeat_action_probability", 0.25)),
        frame_skip=4 if skip == 1 else skip,
        full_action_space=bool(spec.kwargs.get("full_action_space", False)),
        most_frames=spec.kwargs.get("max_num_frames_per_episode") or MOST_FRAMES,
    )


def register_games() -> bool:
    """Make Gymnasium know ale-py's ids; false where ale-py is not installed."""
    try:
        import ale_py  # noqa: F401 - registers them
    except ImportError:
        return False
    return True


class AtariGames:
    """`num_envs` copies of a game, stepped by ale-py's threads, in next-step autoreset: `GymnasiumEnvironments` has
    them where it is given a game's id.

    Observations are `[num_envs, stack, size, size]` uint8, oldest frame first, zeros before an episode's first frame.
    Rewards are the game's own. Of `max_episode_steps` the no-ops of the beginning count as part.
    """

    autoreset = "next_step"

    def __init__(
        self, game: Game, num_envs: int, options: AtariOptions, max_episode_steps: int | None, renders: bool = False
    ):
        """Games that are to be drawn (`renders`) are played twice: once more in colour and in full size."""
        size = 84 if options.frame_size is None else options.frame_size
        self.num_envs = num_envs
        self.frame_skip = game.frame_skip if options.frame_skip is None else options.frame_skip
        self.frame_stack = 4 if options.frame_stack is None else options.frame_stack
        self.steps_per_second = FRAMES_PER_SECOND / self.frame_skip
        most_frames = min(max_episode_steps or NO_LIMIT, NO_LIMIT // self.frame_skip) * self.frame_skip
        common = {
            "num_envs": num_envs,
            "frameskip": self.frame_skip,
            "repeat_action_probability": (
                game.sticky_actions if options.sticky_actions is None else options.sticky_actions
            ),
            "noop_max": 30 if options.noop_max is None else options.noop_max,
            "max_num_frames_per_episode": most_frames,
            "full_action_space": game.full_action_space,
            "reward_clipping": False,
        }
        shown = {"img_height": size, "img_width": size, "stack_num": self.frame_stack, "grayscale": options.grey}
        self._games = _vector(game.rom, **common, **shown)
        whole = {"img_height": SCREEN[0], "img_width": SCREEN[1], "stack_num": 1, "grayscale": False}
        self._screens = _vector(game.rom, **common, **whole) if renders else None
        shape = self._games.single_observation_space.shape
        self.observation_space = Box(0.0, 255.0, tuple(shape), np.uint8)
        self.action_space = Discrete(int(self._games.single_action_space.n))
        self._lives = np.zeros(num_envs, np.int32)
        self._picture: np.ndarray | None = None
        self._is_stepping = False

    def reset(self, seeds: list[int]) -> np.ndarray:
        """The first observations of new episodes. ale-py counts on from the first of the seeds."""
        self._drain()
        obs, info = self._games.reset(seed=seeds[0])
        self._lives = np.array(info["lives"])
        if self._screens is not None:
            self._picture = np.array(self._screens.reset(seed=seeds[0])[0])
        return np.array(obs)

    def lives(self) -> int:
        """With how many a game begins; the games begin anew. 0 where there is no such thing."""
        self.reset(list(range(self.num_envs)))
        return int(self._lives.max())

    def send(self, actions: np.ndarray) -> None:
        """Let the emulators begin a step; `receive` waits for its end."""
        self._is_stepping = True
        self._games.send(actions)
        if self._screens is not None:
            self._screens.send(actions)

    def receive(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observations, rewards, game over, time is up, and whether a life was lost, each `[num_envs, ...]`."""
        obs, reward, terminated, truncated, info = self._games.recv()
        self._is_stepping = False
        if self._screens is not None:
            self._picture = np.array(self._screens.recv()[0])
        lives = np.array(info["lives"])
        lost, self._lives = lives < self._lives, lives
        # Of its own: ale-py makes these arrays anew for each step.
        return np.asarray(obs), np.array(reward, np.float32), np.array(terminated), np.array(truncated), lost

    def render(self) -> Sequence[np.ndarray]:
        """The screens, `[210, 160, 3]` uint8; none unless they were asked for when this was made."""
        return () if self._picture is None else tuple(self._picture[:, 0])

    def close(self) -> None:
        """Wait for a step that has begun, so that no emulator is at work when its memory goes."""
        self._drain()

    def _drain(self) -> None:
        if self._is_stepping:
            self.receive()


def _vector(rom: str, **options: Any) -> Any:
    from ale_py.vector_env import AtariVectorEnv

    return AtariVectorEnv(rom, **options)
