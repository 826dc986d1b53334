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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of each file first what is compiled in full, then what is marked `least_optimised`: between the two nothing
    that is compiled already can be kept."""
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
