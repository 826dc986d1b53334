"""The browser window of `treadle watch`: a run's agents as they act, steered by whoever watches, and its curves."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import webbrowser

from treadle.algorithms.base import require
from treadle.errors import TreadleError


def watch(
    path: str, live: bool = False, port: int | None = None, host: str = "127.0.0.1", opens_browser: bool = True
) -> None:
    """Serve the window for a run's folder, or for a folder with runs in it, until Ctrl-C.

    Raises `TreadleError` for a folder without runs, for a run that cannot be shown or has no checkpoint yet (unless it
    is watched `live`), and for an address that cannot be used.
    """
    from treadle.window.runs import Runs
    from treadle.window.server import serve
    from treadle.window.session import Options

    require(port is None or 1 <= port <= 65535, "port", port, "between 1 and 65535")
    _make_way(live)
    runs = Runs(path, live)
    if runs.is_one:
        _check(path, live)

    def listening(url: str, is_local: bool) -> None:
        print(f"Watch: {url}  (Ctrl-C ends)", flush=True)
        if not is_local:
            print("Whoever reaches this address can watch and steer.", file=sys.stderr, flush=True)
        if opens_browser and _has_screen():
            webbrowser.open(url)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        serve(runs, Options(live), host, port, listening)
    # The compiler may be at work in a thread still, which nobody waits for.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _check(path: str, live: bool) -> None:
    """Raise `TreadleError` for a run that cannot be shown."""
    from treadle.environments.gymnasium import GymnasiumEnvironments
    from treadle.loops.choose import drawn_environment
    from treadle.run import Run

    run = Run.open(path)
    run.algorithm()
    run.check_module()
    world = drawn_environment(run.task)
    if isinstance(world, GymnasiumEnvironments):
        world.close()
    if not live and not run.checkpoints():
        raise TreadleError(
            f"{path} has no checkpoint yet, so that there is no agent to watch. Train it, or wait for its first "
            f"checkpoint: treadle watch {path} --live"
        )


def _make_way(live: bool) -> None:
    """One step at a time is fastest on the processor, and an accelerator's memory is its training's. What trains at
    the same time comes first."""
    import jax

    if not jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_platforms", "cpu")
    if live and hasattr(os, "nice"):
        os.nice(10)


def _has_screen() -> bool:
    """Whether a browser that opens would be seen."""
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
