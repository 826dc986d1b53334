"""The agent that meets the world: learn, predict, evaluate, save, load."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from treadle import checkpoint, records, registry, settings, spaces
from treadle.algorithms.base import Algorithm
from treadle.dataset import Dataset
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.environments.wrappers import Task, Wrappers, wrap
from treadle.errors import InvalidSetting, TreadleError, UnsupportedSpace
from treadle.loops import evaluate as evaluation
from treadle.loops.choose import (
    LoopName,
    Trainer,
    check_timesteps,
    evaluation_environment,
    is_made,
    make_offline_trainer,
    make_trainer,
)
from treadle.loops.chunks import Chunks
from treadle.loops.crew import Crew, CrewSeeds
from treadle.loops.evaluate import Evaluation
from treadle.loops.execution import compile_small
from treadle.loops.host import HostSeeds
from treadle.loops.offline import OfflineSeeds
from treadle.loops.seeding import purpose, seed_key
from treadle.registry import as_float32
from treadle.spaces import Discrete, Grid, Space
from treadle.types import Spec, space_spec

EVALUATION_ENVIRONMENTS = 10


class Agent:
    """One seed of an algorithm in an environment.

    `environment` is a name (of Treadle or Gymnasium), a world in JAX, a function that makes a Gymnasium environment,
    a Gymnasium vector environment, or what `treadle.wrap` or a preset's `task` makes of one of them. A `crew` says by
    how many workers steps are taken, and where: `Crew(workers=2)`.

        agent = Agent(DQN(learning_rate=1e-3), "CartPole-v1", seed=0).learn(50_000)
        agent.evaluate(episodes=20).returns.mean()

    Raises `TreadleError`s, in sentences, for settings and environments that cannot be served: in the constructor
    what can be known without making the environment, in `learn` the rest.
    """

    def __init__(
        self, algorithm: Algorithm, environment: Any, seed: int = 0, loop: LoopName = "auto", crew: Crew | None = None
    ):
        if not isinstance(algorithm, Algorithm):
            raise InvalidSetting(f"the algorithm was {algorithm!r}; it must be one that is made, such as DQN().")
        algorithm.check()
        self.algorithm, self.environment, self.seed = algorithm, environment, seed
        self.loop: LoopName = loop
        self.crew = crew or Crew()
        self.crew.check()
        self.step = 0
        self._predictions = 0
        self._trainer: Trainer | None = None
        self._policy: PyTree | None = None
        self._carry: PyTree = None
        self._spec: Spec | None = None

    def learn(self, total_timesteps: int) -> Agent:
        """Train for `total_timesteps` environment steps more. Returns the agent itself.

        Schedules given as fractions are laid out over the steps of the first call, and go on from where they are in
        a second. Raises `NonFinite` when a metric becomes NaN or infinite.
        """
        self._check_can_learn()
        if self._trainer is None or isinstance(self._trainer, OfflineSeeds):
            fresh = make_trainer(
                self.algorithm, self.environment, total_timesteps, self.seed, loop=self.loop, crew=self.crew
            )
            self._trainer = self._continued(fresh)
        check_timesteps(total_timesteps)
        try:
            return self._advance(self._trainer, total_timesteps)
        finally:
            if isinstance(self._trainer, CrewSeeds):
                self._trainer.rest()

    def learn_from(self, data: Dataset | str | Path, total_timesteps: int) -> Agent:
        """Learn from stored transitions, or from a file of them, without acting: `total_timesteps` rows more, the data
        gone over as often as that takes. Returns the agent itself, which may `learn` in its environment afterwards; of
        an Atari game, where each frame is stored once, it does so with an empty memory, and so it is the other way.

        Raises `DatasetError` for data that is damaged or of another environment, `InvalidSetting` for methods that
        cannot learn from what another policy did, and what `learn` does.
        """
        self._check_can_learn()
        data = data if isinstance(data, Dataset) else Dataset.load(data)
        fresh = make_offline_trainer(self.algorithm, self.environment, data, total_timesteps, self.seed, loop=self.loop)
        self._trainer = self._continued(fresh)
        return self._advance(self._trainer, total_timesteps)

    def _check_can_learn(self) -> None:
        if self._trainer is None and self._policy is not None:
            raise TreadleError(
                "this agent was loaded from a file that keeps what acting needs, not what learning needs. Train "
                "a new one, or continue a run from its folder with `treadle resume`."
            )

    def _continued(self, fresh: Trainer) -> Trainer:
        """A new trainer, which goes on with what was learned in the former."""
        if self._trainer is not None:
            former: Any = self._trainer.state
            learned = jax.vmap(self._trainer.algorithm.begin_episodes)(former.algorithm)
            state: Any = fresh.state
            if jax.tree.structure(learned) != jax.tree.structure(state.algorithm):
                learned = _fitting(learned, state.algorithm)
            fresh.restore(state._replace(algorithm=learned, updates=former.updates))
            if not is_made(self.environment):
                self._trainer.close()
        return fresh

    def _advance(self, trainer: Trainer, total_timesteps: int) -> Agent:
        per_update = self.algorithm.num_steps * self.algorithm.num_envs
        plan = Chunks(total_timesteps, per_update, trainer.chunk_steps)
        done = 0
        while done < plan.total_steps:
            count = plan.next(done)
            record = trainer.advance(count)
            records.check(record, self.step, per_update)
            done += count * per_update
            self.step += count * per_update
            # Kept after every chunk, so that an interrupt costs the steps at hand only.
            policies = trainer.policies()
            records.check_policy(policies, self.step)
            self._policy, self._spec = jax.tree.map(lambda x: x[0], policies), trainer.spec
        return self

    @property
    def policy(self) -> PyTree:
        """What acting greedily needs, as it was learned: the network of DQN, `policy.q.weights` `[S, A]` of a table.
        Raises `TreadleError` before anything was learned."""
        return self._known()[0]

    def predict(self, obs: Any) -> np.ndarray:
        """The action for one observation `[...]`, or actions `[B]` for a batch `[B, ...]`: greedy, but for the
        algorithm's `evaluation_epsilon`.

        Actions are those that the environment itself takes: discrete ones count from its `start`, and where the agent
        chose among discretised ones, it is the continuous action that the choice stands for.

        Raises `TreadleError` for an observation of another shape, and before anything was learned.
        """
        policy, spec = self._known()
        shape = tuple(spec.observation_space.shape)
        array = _observation(obs, spec.observation_space)
        if array.shape not in (shape, (*array.shape[:1], *shape)):
            raise TreadleError(
                f"predict was given an observation of shape {array.shape}; it must be {shape}, or a batch "
                f"{('B', *shape)} of them."
            )
        batch = array if array.ndim > len(shape) else array[None]
        carry = self.algorithm.init_carry(dataclasses.replace(spec, num_envs=len(batch)))
        self._predictions += 1
        key = jax.random.fold_in(purpose(seed_key(self.seed), "predict"), self._predictions)
        action = np.asarray(_act(as_float32(self.algorithm.prepared()), policy, carry, batch, key))
        if isinstance(spec.action_space, Grid):
            action = spec.action_space.take(action)
        elif isinstance(spec.action_space, Discrete):
            action = action + spec.action_space.start
        return action if array.ndim > len(shape) else action[0]

    def evaluate(self, episodes: int = 20, seed: int = 0) -> Evaluation:
        """Greedy episodes in Gymnasium's own environment where the world has a counterpart there, else in the
        training world. Raises `UnsupportedSpace` where the environment's spaces are others than those that the agent
        learned in.

        Uses its own randomness and leaves training as it is, except where the agent was given a Gymnasium environment
        that is made already: training then goes on with new episodes.
        """
        if episodes < 1:
            raise InvalidSetting(f"episodes was {episodes}; it must be at least 1.")
        policy, spec = self._known()
        world = evaluation_environment(self.environment, min(episodes, EVALUATION_ENVIRONMENTS))
        key = purpose(seed_key(seed), "evaluation")
        try:
            _check_fits(spec, world)
            return evaluation.evaluate(as_float32(self.algorithm.prepared()), policy, world, episodes, key)
        finally:
            if is_made(self.environment):
                if isinstance(self._trainer, HostSeeds):  # which plays there too, and was interrupted
                    self._trainer.restore(self._trainer.state)
            elif isinstance(world, GymnasiumEnvironments):
                world.close()

    def save(self, path: str | Path) -> Path:
        """Write the lean artefact: what acting needs (policy, settings, spaces), as safetensors. Loading it runs no
        code. Raises `CheckpointError` when it cannot be written."""
        policy, spec = self._known()
        target, task = Path(path), Task.of(self.environment)
        about = {
            "kind": "agent",
            "algorithm": self.algorithm.name,
            "settings": settings.describe(self.algorithm),
            "environment": task.environment if isinstance(task.environment, str) else None,
            "wrappers": settings.describe(task.wrappers),
            "observation_space": spec.observation_space.describe(),
            "action_space": spec.action_space.describe(),
            "step": self.step,
        }
        checkpoint.save(target, policy, about)
        return target

    @classmethod
    def load(cls, path: str | Path, environment: Any = None, **own: Any) -> Agent:
        """An agent from a file that `save` wrote: it predicts and evaluates.

        `environment` is needed for evaluation when the agent was trained in one without a name, and is changed as the
        agent's was; parts of your own (`network=...`, `policy_network=...`) must be given again. Raises
        `CheckpointError` for a damaged or foreign file.
        """
        described = checkpoint.read_metadata(Path(path))
        if described.get("kind") != "agent":
            raise checkpoint.CheckpointError(
                f"{path} holds a {described.get('kind', 'tree')}, not an agent. `Agent.save` writes agents; a run's "
                "folder is opened with `treadle evaluate` and `treadle resume`."
            )
        registry.algorithms.find(described["algorithm"])
        algorithm = settings.restore(described["algorithm"], described["settings"], **own)
        spec = space_spec(
            spaces.from_description(described["observation_space"]), spaces.from_description(described["action_space"])
        )
        prepared = as_float32(algorithm.prepared())

        def shapes(key):
            return prepared.policy(prepared.init(key, spec))

        policy, _ = checkpoint.load(Path(path), jax.eval_shape(shapes, jax.random.key(0)))
        environment = environment if environment is not None else described["environment"]
        changes = {k: v for k, v in described.get("wrappers", {}).items() if v != getattr(Wrappers, k, None)}
        agent = cls(algorithm, wrap(environment, **changes) if changes else environment)
        agent._policy, agent._spec, agent.step = policy, spec, int(described["step"])
        return agent

    def _known(self) -> tuple[PyTree, Spec]:
        if self._policy is None or self._spec is None:
            raise TreadleError("the agent has learned nothing yet: call learn(total_timesteps) first.")
        return self._policy, self._spec


def _check_fits(spec: Spec, world: Any) -> None:
    """Raise `UnsupportedSpace` for an environment that the agent cannot act in."""
    for what in ("observation", "action"):
        learned, there = getattr(spec, f"{what}_space"), getattr(world, f"{what}_space")
        same = type(learned) is type(there) and learned.shape == there.shape
        if isinstance(learned, Discrete):
            same = same and learned.n == there.n
        elif what == "action":
            same = same and np.array_equal(learned.low, there.low) and np.array_equal(learned.high, there.high)
        if not same:
            raise UnsupportedSpace(
                f"this agent learned from {what}s of the space {learned}, and the environment's are {there}. Give it "
                "the environment that it was trained in, or one with the same spaces."
            )


def _observation(obs: Any, space: Space) -> np.ndarray:
    """What the user gave as an array of the space's dtype. Raises `TreadleError` for what is no observation of it."""
    dtype = np.dtype(space.dtype)
    try:
        given = np.asarray(obs)
        array = given.astype(dtype)
    except (TypeError, ValueError) as error:
        raise TreadleError(f"predict was given {obs!r}; it must be an observation of {space}.") from error
    if isinstance(space, Discrete):
        last = space.start + space.n - 1
        if not np.array_equal(given, array) or np.any((array < space.start) | (array > last)):
            raise TreadleError(f"predict was given {obs!r}; it must be a whole number from {space.start} to {last}.")
    return array


@compile_small
def _act(algorithm: Algorithm, policy: PyTree, carry: Any, obs: Any, key: Any) -> Any:
    return algorithm.act(policy, carry, obs, key, explore=False)[0]


def _fitting(learned: Any, fresh: Any) -> Any:
    """A fresh state with the parts of another that are of the same structure, which not all memories are."""
    same = jax.tree.structure
    parts = {name: part for name, part in learned._asdict().items() if same(part) == same(getattr(fresh, name))}
    return fresh._replace(**parts)
