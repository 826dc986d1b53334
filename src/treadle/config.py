"""What a run is, apart from the algorithm's own settings, and how that is read again."""

from __future__ import annotations

import dataclasses
from typing import Any

from treadle.algorithms.base import require
from treadle.errors import InvalidSetting
from treadle.loops.choose import LayoutName, LoopName
from treadle.loops.crew import Crew


@dataclasses.dataclass(frozen=True)
class _Basics:
    total_timesteps: int = 50_000
    """Environment steps of each seed, over all its environments."""
    seeds: int = 1
    """How many seeds to train: every result is a distribution."""
    seed: int = 0
    """Base of the seeds; another base shares no randomness with this one."""
    loop: LoopName = "auto"
    """`auto`: fused where the world is in JAX, else host. `host` forces Gymnasium's own environment."""
    layout: LayoutName = "auto"
    """How a device trains several seeds. `in-turn`: each is to the last bit what it would be alone. `together`: a tenth
    faster on a CPU where rounding may differ. `auto`: in turn on a CPU, together on an accelerator. Fused loop only."""
    devices: int = 1
    """Devices that share the work of each seed: its environments and batches are split among them, and gradients
    averaged. On a CPU every core is one; it pays for large batches and networks, and else more seeds are the better use
    of cores. Fused loop only."""
    overlap: bool = True
    """Environments that step by themselves, which Atari games do, take a step while a learner learns to which former
    policies may act, as to DQN: the first action of each round is then chosen by the parameters from before its update.
    `--no-overlap` waits, for other results. Host loop only."""
    out: str | None = None
    """The run's folder; runs/ALGORITHM-ENVIRONMENT-TIME unless given."""
    overwrite: bool = False
    """Replace the run in the folder, if there is one, and the file of --save-data."""
    checkpoint_period: int | None = None
    """Environment steps between two checkpoints; every 30 seconds unless given. There is always one at the end."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept, the newest; 0 keeps all. Each holds the whole state, replay memory included."""
    save_data: str | None = None
    """A file, such as cartpole.safetensors, for every transition of the run, to be learned from with --data."""
    data: str | None = None
    """A file of transitions to learn from, of --save-data or of your own, instead of acting; a step is a row of it."""


@dataclasses.dataclass(frozen=True)
class RunConfig(Crew, _Basics):
    """What a run is, apart from the algorithm's own settings."""

    def check(self) -> None:
        """Raise `InvalidSetting` for a value outside its range."""
        super().check()
        last = 2**31 - 1
        require(1 <= self.total_timesteps <= last, "total_timesteps", self.total_timesteps, "between 1 and 2^31 - 1")
        require(self.seeds >= 1, "seeds", self.seeds, "at least 1")
        require(0 <= self.seed <= last, "seed", self.seed, "between 0 and 2^31 - 1")
        require(self.devices >= 1, "devices", self.devices, "at least 1")
        period = self.checkpoint_period
        require(period is None or period >= 1, "checkpoint_period", period, "at least 1")
        require(self.keep_checkpoints >= 0, "keep_checkpoints", self.keep_checkpoints, "at least 0")
        if self.data is not None and self.save_data is not None:
            raise InvalidSetting(
                "--save-data keeps what a run sees in its environment, and with --data it does not act there. Leave "
                "one of them out."
            )
        is_study = self.engine == "ray" and self.seeds > 1
        for flag, file in (("--save-data", None if is_study else self.save_data), ("--data", self.data)):
            if file is not None and self.engine_is_given:
                raise InvalidSetting(f"{flag} is for one loop without workers. Leave out {flag}, or the workers.")


def read(written: dict[str, Any]) -> RunConfig:
    """The configuration that a run's file holds; of what it says nothing of, because it is from before there was such
    a setting, the default. Raises `InvalidSetting` for one that is damaged."""
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    for name, value in written.items():
        if name not in fields or not isinstance(value, _KINDS[str(fields[name].type)]):
            raise InvalidSetting(f"'{name}' in its config is {value!r}")
    missing = [name for name in _FIRST if name not in written]
    if missing:
        raise InvalidSetting(f"'{missing[0]}' in its config is None")
    config = RunConfig(**written)
    try:
        config.check()
    except InvalidSetting as error:
        raise InvalidSetting(f"its config makes no sense ({error})") from None
    return config


_FIRST = ("total_timesteps", "seeds", "seed", "loop")
"""What every run's file says."""
_KINDS: dict[str, Any] = {
    "int": int,
    "bool": bool,
    "float": (int, float),
    "LoopName": str,
    "LayoutName": str,
    "EngineName": str,
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
    "float | None": (int, float, type(None)),
}
