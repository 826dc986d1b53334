"""Stored experience: the transitions of a run, or somebody else's, in a file that any reader of safetensors opens.

    Dataset(obs=..., action=..., reward=..., next_obs=..., terminated=...).save("mine.safetensors")

Rows lie in order of time, one stream (an environment of a seed) after the other, so that returns of several steps can
be found in them. A file of the same arrays that another program wrote is read too; what it does not say of itself,
such as its spaces, is taken from the environment that it is used for.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open

from treadle import checkpoint, spaces
from treadle.errors import TreadleError, nearest
from treadle.spaces import Discrete, Grid, Space
from treadle.types import Transition

FORMAT = 1
KIND = "dataset"
FIELDS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
BLOCK = 1 << 16
"""Rows that are compared at once, so that images need no second copy of them all."""


class DatasetError(TreadleError):
    """A file of transitions that cannot be read or written, or arrays that are none."""


class Dataset:
    """`N` transitions, as NumPy arrays with a leading axis of `N`.

    `reward` is the environment's own, which no wrapper has changed; actions are as the algorithm chose them, counted
    from 0 where they are discrete. `next_obs` is the true successor, also where an episode ends. `terminated` (a
    terminal state) stops bootstrapping, `truncated` (a time limit) does not.

    A row leads to the next if its `next_obs` is that row's `obs`, and it does not end its episode. `lengths` are the
    rows of each stream, one after the other: what is last of its stream does not lead to the row behind it either.

    Raises `DatasetError` for arrays that do not fit together.
    """

    def __init__(
        self,
        *,
        obs: Any,
        action: Any,
        reward: Any,
        next_obs: Any,
        terminated: Any,
        truncated: Any = None,
        lengths: Sequence[int] | None = None,
        environment: str | None = None,
        observation_space: Space | None = None,
        action_space: Space | None = None,
        made_by: Mapping[str, Any] | None = None,
    ):
        self.obs, self.action, self.next_obs = (
            _array(name, x) for name, x in (("obs", obs), ("action", action), ("next_obs", next_obs))
        )
        self.reward: Float[np.ndarray, " N"] = _array("reward", reward).astype(np.float32)
        self.terminated: Bool[np.ndarray, " N"] = _flags("terminated", terminated)
        given = np.zeros_like(self.terminated) if truncated is None else _flags("truncated", truncated)
        self._check_shapes(given)
        self.truncated: Bool[np.ndarray, " N"] = given & ~self.terminated
        self.lengths = None if lengths is None else _as_array("lengths", lengths)
        self.environment, self.made_by = environment, dict(made_by or {})
        self.observation_space, self.action_space = observation_space, action_space
        if self.lengths is not None and self.lengths.dtype.kind not in "iu":
            raise DatasetError(f"lengths, the rows of each stream, must be whole numbers; it was {lengths}.")
        if self.lengths is not None and (self.lengths.sum() != len(self) or (self.lengths < 0).any()):
            raise DatasetError(
                f"lengths, the rows of each stream, add up to {self.lengths.sum():,}; there are {len(self):,} rows."
            )

    def _check_shapes(self, truncated: np.ndarray) -> None:
        for name in FIELDS:
            x = truncated if name == "truncated" else getattr(self, name)
            if x.ndim == 0 or len(x) != len(self.obs):
                raise DatasetError(
                    f"{name} has the shape {x.shape} and obs {self.obs.shape}: each array has a leading axis, along "
                    "which all have the same number of transitions."
                )
            if name in ("reward", "terminated", "truncated") and x.ndim > 1:
                raise DatasetError(f"{name} has the shape {x.shape}; it must be {(len(x),)}, a number a transition.")
        if not len(self.obs):
            raise DatasetError("there are no transitions: the arrays are empty.")
        if self.obs.shape != self.next_obs.shape:
            raise DatasetError(
                f"next_obs has the shape {self.next_obs.shape}; it must be that of obs, {self.obs.shape}."
            )

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def transitions(self) -> Transition:
        """All of them, `[N, ...]`."""
        return Transition(*(getattr(self, name) for name in FIELDS))

    @functools.cached_property
    def episode_lengths(self) -> Int[np.ndarray, " E"]:
        """Rows of each episode, or of what there is of it, one after the other."""
        last = self.terminated | self.truncated
        last[-1] = True
        if self.lengths is not None:
            last[np.cumsum(self.lengths[self.lengths > 0]) - 1] = True
        for i in range(0, len(self) - 1, BLOCK):
            rows = slice(i, min(i + BLOCK, len(self) - 1))
            leads = self.next_obs[rows] == self.obs[rows.start + 1 : rows.stop + 1]
            last[rows] |= ~leads.reshape(len(leads), -1).all(1)
        return np.diff(np.flatnonzero(last) + 1, prepend=0)

    @property
    def episode_returns(self) -> Float[np.ndarray, " n"]:
        """Undiscounted returns of the episodes that have come to their end."""
        ends = np.cumsum(self.episode_lengths)
        returns = np.add.reduceat(self.reward.astype(np.float64), ends - self.episode_lengths)
        return returns[(self.terminated | self.truncated)[ends - 1]]

    def __repr__(self) -> str:
        returns = self.episode_returns
        ended = f", {len(returns):,} episodes of mean return {returns.mean():,.4g}" if len(returns) else ""
        where = f" in {self.environment}" if self.environment else ""
        by = f", by {self.made_by['algorithm']}" if isinstance(self.made_by.get("algorithm"), str) else ""
        return f"{len(self):,} transitions{where}{by}{ended}"

    def save(self, path: str | Path) -> Path:
        """Write them as safetensors, whole or not at all. Raises `DatasetError` where they cannot be written."""
        lengths = None if self.lengths is None else self.lengths.tolist()
        about = describe(lengths, self.environment, self.observation_space, self.action_space, self.made_by)
        write(Path(path), self.transitions, about)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Dataset:
        """The transitions in a file that `save`, a run's `--save-data` or another program wrote; nothing in it is run.

        Raises `DatasetError` where it is missing, damaged, of another kind or without arrays of these names.
        """
        path = Path(path)
        about = read_about(path)
        if about:
            check_bytes(path)
        arrays = _read_arrays(path)
        described = {name: about.get(name) for name in ("observation_space", "action_space")}
        try:
            found = {name: spaces.from_description(d) for name, d in described.items() if d is not None}
            more = {name: about.get(name) for name in ("lengths", "environment", "made_by")}
            return cls(**arrays, **found, **more)
        except DatasetError as error:
            raise DatasetError(f"{path} holds no transitions that could be used: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{path} says of itself what makes no sense ({error}). Make it anew.") from None

    def fitted(self, observation_space: Space, action_space: Space) -> Dataset:
        """The same in the dtypes of an environment's spaces.

        Raises `DatasetError` where they are of other spaces, or hold numbers that are not finite or do not fit the
        dtype; the bounds of a `Box` are not asked.
        """
        _check_space("observations", self.observation_space, observation_space)
        _check_space("actions", self.action_space, action_space)
        changed = {name: _fitted(name, getattr(self, name), observation_space) for name in ("obs", "next_obs")}
        changed["action"] = _fitted("action", self.action, action_space)
        if not np.isfinite(self.reward).all():
            row = int(np.flatnonzero(~np.isfinite(self.reward))[0])
            raise DatasetError(f"the data's reward of row {row:,} is {self.reward[row]}; it must be finite.")
        kept = {name: getattr(self, name) for name in ("reward", "terminated", "truncated", "lengths")}
        about = {"environment": self.environment, "made_by": self.made_by}
        return Dataset(**changed, **kept, **about, observation_space=observation_space, action_space=action_space)


def describe(
    lengths: list[int] | None,
    environment: str | None,
    observation_space: Space | None,
    action_space: Space | None,
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    """What a file of transitions says of itself, as JSON values."""
    return {
        "kind": KIND,
        "format": FORMAT,
        "lengths": lengths,
        "environment": environment,
        "observation_space": observation_space and observation_space.describe(),
        "action_space": action_space and action_space.describe(),
        "made_by": dict(made_by),
    }


def write(path: Path, transitions: Transition, about: Mapping[str, Any]) -> None:
    """Write transitions `[N, ...]`, NumPy arrays or what gives one when it is asked for. Raises `DatasetError`."""
    try:
        checkpoint.save(path, {name: getattr(transitions, name) for name in FIELDS}, about)
    except checkpoint.CheckpointError as error:
        raise DatasetError(str(error).replace("checkpoint", "data file")) from error


def checksum(path: Path) -> str:
    """SHA-256 of a file. Raises `DatasetError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"the data file {path} cannot be read: {error.strerror}.") from None


def read_about(path: Path) -> dict[str, Any]:
    """What a file of transitions says of itself: nothing where another program made it. Raises `DatasetError`."""
    _refuse_strangers(path)
    try:
        with safe_open(path, framework="numpy") as file:
            own = file.metadata() or {}
        if "treadle_checksum" not in own:
            return {}
        about = checkpoint.read_metadata(path)
    except checkpoint.CheckpointError as error:
        raise DatasetError(str(error).replace("an earlier checkpoint, or train", "a copy of it, or make it")) from None
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    if about.get("kind") != KIND:
        raise DatasetError(
            f"{path} holds a {about.get('kind', 'tree')}, not transitions. A file of transitions is made by treadle "
            "train ... --save-data FILE, or from arrays of your own by Dataset(...).save(FILE)."
        )
    if about.get("format") != FORMAT:
        raise DatasetError(f"{path} has data format {about.get('format')}, and this Treadle reads {FORMAT}.")
    return about


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            if missing := [name for name in FIELDS if name not in names and name != "truncated"]:
                raise DatasetError(
                    f"{path} has no array {', '.join(missing)}; it has {', '.join(sorted(names)) or 'none'}."
                    f"{nearest(missing[0], names)} Transitions are {', '.join(FIELDS)} (truncated may be left out)."
                )
            return {name: file.get_tensor(name) for name in FIELDS if name in names}
    except DatasetError:
        raise
    except Exception as error:  # of the library, which has one for each kind of trouble
        raise _damaged(path, error) from None


def _refuse_strangers(path: Path) -> None:
    """Files that are no safetensors, told by their first bytes; none is opened in a way that could run code."""
    advice = (
        "Read it yourself, with whatever wrote it, and make a file of its arrays: Dataset(obs=..., action=..., "
        'reward=..., next_obs=..., terminated=...).save("mine.safetensors").'
    )
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise DatasetError(
            f"there is no data file {path}: check the path, or make one: treadle train ... --save-data {path}."
        ) from None
    except IsADirectoryError:
        raise DatasetError(f"{path} is a folder; give the file of transitions that --save-data named.") from None
    except OSError as error:
        raise DatasetError(f"the data file {path} cannot be read: {error.strerror}.") from None
    if start[8:] == b"{":
        return
    if not start:
        raise _damaged(path, "it is empty")
    kinds = {b"PK": "a zip archive, as NumPy's .npz is", b"\x93NUMPY": "NumPy's .npy", b"\x89HDF": "HDF5"}
    kind = next((kind for magic, kind in kinds.items() if start.startswith(magic)), "no safetensors file")
    if start[:1] == b"\x80":
        kind = "a pickle, which is not opened because loading one can run code"
    raise DatasetError(f"{path} is {kind}. {advice}")


def check_bytes(path: Path) -> None:
    """Raise `DatasetError` where the header is damaged, or the tensors do not match the checksum that Treadle wrote."""
    read_about(path)
    with safe_open(path, framework="numpy") as file:
        expected = file.metadata().get("treadle_data_checksum")
    found = 0
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    if f"{found:08x}" != expected:
        raise _damaged(path, "its arrays do not match their checksum")


def _damaged(path: Path, why: Any) -> DatasetError:
    return DatasetError(
        f"{path} is damaged or was cut short: {str(why).rstrip('.')}. Use a copy of it, or make it anew."
    )


def _as_array(name: str, given: Any) -> np.ndarray:
    try:
        return np.asarray(given)
    except (TypeError, ValueError):
        raise DatasetError(f"{name} is no array: its rows are of different shapes.") from None


def _array(name: str, given: Any) -> np.ndarray:
    """In 32 bits, but bytes and bools as they are."""
    x = _as_array(name, given)
    if x.dtype.kind == "f":
        return x.astype(np.float32, copy=False)
    if x.dtype.kind in "iu" and x.dtype != np.uint8:
        if x.size and (x.min() < -(2**31) or x.max() >= 2**31):
            raise DatasetError(f"{name} holds numbers beyond 32 bits.")
        return x.astype(np.int32, copy=False)
    if x.dtype.kind not in "biu":
        raise DatasetError(f"{name} is an array of {x.dtype}; it must hold numbers.")
    return x


def _flags(name: str, given: Any) -> np.ndarray:
    x = _as_array(name, given)
    if x.dtype != np.bool_ and not np.isin(x, (0, 1)).all():
        raise DatasetError(f"{name} holds other values than true and false, 1 and 0.")
    return x.astype(np.bool_)


def _check_space(what: str, of_data: Space | None, wanted: Space) -> None:
    if of_data is None or _alike(of_data, wanted):
        return
    levels = of_data.levels if isinstance(of_data, Grid) else None
    advice = f" Its maker discretised them: --discretise-actions {levels}." if levels else ""
    if isinstance(wanted, Grid) and not levels:
        advice = " Leave --discretise-actions out: its maker did not discretise them."
    raise DatasetError(
        f"the data's {what} are {_named(of_data)}, and this environment's {_named(wanted)}. Learn in the environment "
        f"that the data is from.{advice}"
    )


def _alike(one: Space, other: Space) -> bool:
    """Equal but for the last bits of bounds, in which twins of the same world may differ."""
    if isinstance(one, Grid) or isinstance(other, Grid):
        return (
            isinstance(one, Grid)
            and isinstance(other, Grid)
            and one.levels == other.levels
            and _alike(one.box, other.box)
        )
    if isinstance(one, Discrete) or isinstance(other, Discrete):
        return one == other
    if one.shape != other.shape or np.dtype(one.dtype) != np.dtype(other.dtype):
        return False
    lows, highs = map(_bound, (one.low, other.low)), map(_bound, (one.high, other.high))
    return np.allclose(*lows, atol=1e-6) and np.allclose(*highs, atol=1e-6)


def _bound(given: Any) -> np.ndarray:
    """The largest float stands for infinity in some of Gymnasium's spaces."""
    x = np.asarray(given, np.float64)
    return np.where(np.abs(x) > 1e30, np.copysign(np.inf, x), x)


def _named(space: Space) -> str:
    return f"{space} ({space.levels} levels of {space.box})" if isinstance(space, Grid) else str(space)


def _fitted(name: str, x: np.ndarray, space: Space) -> np.ndarray:
    if x.shape[1:] != tuple(space.shape):
        raise DatasetError(
            f"the data's {name} has the shape {x.shape}; for this environment's {space} it must be "
            f"{('N', *space.shape)}, N transitions."
        )
    if isinstance(space, Discrete):
        first = 0 if name == "action" else space.start
        if x.dtype.kind not in "iu":
            _refuse(name, x, x != np.floor(x) if x.dtype.kind == "f" else np.ones(x.shape, np.bool_), "a whole number")
        counted = ", counted from 0" if name == "action" and space.start else ""
        _refuse(name, x, (x < first) | (x >= first + space.n), f"from {first} to {first + space.n - 1}{counted}")
    elif np.issubdtype(space.dtype, np.integer):
        info = np.iinfo(space.dtype)
        fits = (x == np.floor(x)) & (x >= info.min) & (x <= info.max)
        _refuse(name, x, ~fits, f"whole numbers from {info.min} to {info.max}")
    elif x.dtype.kind == "f":
        _refuse(name, x, ~np.isfinite(x), "finite")
    return x.astype(space.dtype, copy=False)


def _refuse(name: str, x: np.ndarray, is_wrong: np.ndarray, expected: str) -> None:
    if is_wrong.any():
        row = int(np.argwhere(is_wrong)[0][0])
        raise DatasetError(f"the data's {name} of row {row:,} is {x[row]}; it must be {expected}.")
