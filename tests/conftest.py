"""What every test shares: two host devices, a compilation cache, and Hypothesis without a clock."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import settings
from jax._src import compiler

# Small programs are cached too. In the environment, so that commands which tests start share the cache.
CACHE = {
    "jax_compilation_cache_dir": str(Path(__file__).resolve().parent.parent / ".jax_cache"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in CACHE.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)

# Before any array is made, since making one starts the backend.
jax.config.update("jax_num_cpu_devices", 2)

# Compiling inside an example would break any deadline, and continuous integration must not fail by chance.
settings.register_profile("local", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


_compile_options = compiler.get_compile_options


def _least_compile_options(*args: Any, **given: Any) -> Any:
    """JAX's own; of tests marked `least_optimised` without XLA's fusion emitters, which doubles the speed again.

    JAX itself can leave these out only for the whole process or for one `jit`.
    """
    options = _compile_options(*args, **given)
    if jax.config.read("jax_disable_most_optimizations"):
        options.env_option_overrides = [*options.env_option_overrides, ("xla_cpu_use_fusion_emitters", False)]
    return options


compiler.get_compile_options = _least_compile_options


def _is_least(item: pytest.Item) -> bool:
    """`least_optimised(False)` is the exception in a file that is marked."""
    mark = item.get_closest_marker("least_optimised")
    return mark is not None and mark.args != (False,)


LEARNS = "test_it_learns_the_best_actions_and_their_values"
FAR = {
    f"test_crew.py::{LEARNS}": ("short-corridor",),
    f"test_ddpg.py::{LEARNS}": ("aim-constant",),
    "test_reinforce.py::test_it_learns_the_best_actions_and_with_a_baseline_their_values": ("constant", "dependent"),
    "test_reinforce.py::test_it_learns_the_best_of_continuous_actions": ("aim-twice",),
    "test_policy_gradient.py::test_it_learns_the_best_of_continuous_actions": ("aim-twice",),
    "test_tabular.py::test_on_policy_methods_learn_the_values_of_the_policy_that_acts": ("replacing", "every", "first"),
    "test_tabular.py::test_each_learns_in_the_host_loop": ("replacing", "every", "dyna-q", "expected"),
    "test_dqn.py::test_it_learns_with_other_options": ("tau", "optimiser-learning_rate"),
    "test_convolution.py::test_policies_and_values_learn_from_images": ("ppo-False", "a3c", "actor-critic"),
    "test_prioritized.py::test_a_donated_memory_is_updated_in_place": ("False-memory", "True-batch"),
    "test_fused.py::test_seeds_over_devices_equal_single_seeds": ("vmap",),
    "test_experiments.py::test_a_quick_experiment_bears_out_its_claims": ("dyna-q",),
    "test_host.py::test_it_learns_in_any_environment": ("FrozenLake", "Acrobot"),
    "test_host.py::test_it_learns_in_a_vector_environment_that_is_made_already": ("SameStep", "Disabled"),
    "test_run.py::test_stopped_by_a_signal_it_saves_and_says_how_to_go_on": ("15-143",),
}
"""Of tests with many parameters those that are left to the slow ones, by what their names hold: what they are about is
seen in their siblings too, unless something is badly wrong."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The far ones become slow. Of each file first what is compiled in full, then what is marked `least_optimised`:
    between the two nothing that is compiled already can be kept."""
    for item in items:
        name, _, parameters = item.nodeid.rpartition("/")[2].partition("[")
        if any(part in parameters for part in FAR.get(name, ())):
            item.add_marker(pytest.mark.slow)
    files = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=lambda item: (files[item.path], _is_least(item)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `least_optimised` compile in a third of the time; all others compile what users run.

    What was compiled one way must not serve the other. The environment tells commands which a test starts.
    """
    least = str(_is_least(item))
    if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "False") != least:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", least == "True")
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = least
