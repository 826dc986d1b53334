"""What every test shares: two host devices, a compilation cache, and Hypothesis without a clock."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import pytest
from hypothesis import settings

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


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `least_optimised` compile in half the time; all others compile what users run.

    What was compiled one way must not serve the other. The environment tells commands which a test starts.
    """
    least = str(item.get_closest_marker("least_optimised") is not None)
    if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "False") != least:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", least == "True")
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = least
