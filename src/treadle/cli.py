"""The command line: `treadle train ALGORITHM ENVIRONMENT ...`, `resume`, `evaluate`, `watch`, `compare`, `plot`,
`reproduce`, `list`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from treadle.errors import TreadleError, nearest

COMMANDS = {
    "train": "train an algorithm in an environment: treadle train dqn CartPole-v1 --seeds 8",
    "resume": "go on with a run that was interrupted: treadle resume RUN",
    "evaluate": "greedy episodes of every seed of a run: treadle evaluate RUN --episodes 20",
    "watch": "watch a run's agents in the browser: treadle watch RUN (or a folder of runs)",
    "plot": "draw a run's learning curve: treadle plot RUN",
    "compare": "set runs side by side, and say whether one is better: treadle compare RUN RUN",
    "reproduce": "make a figure of the literature anew: treadle reproduce cliff-walking (--list shows all)",
    "list": "show the algorithms, worlds and presets",
}
HELP = """usage: treadle COMMAND ...

Reinforcement learning in JAX, from a Q-table to deep networks.

{commands}

  treadle COMMAND --help tells more; treadle --version says which this is.
"""
TRAIN_FLAGS = (
    "--preset NAME takes a named preset's settings ('none': the algorithm's own defaults); --import FILE.py brings "
    "algorithms and worlds of your own; --watch draws the learner in the terminal as it learns, --watch-pace N at N "
    "steps a second instead of 10."
)


def program() -> None:
    """`main` as a process of its own. Stopped by a signal it ends at once: the compiler's threads may be at work still,
    and would not survive an orderly end."""
    status = main()
    if status > 128:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status. A user's mistake is one sentence on stderr and status 2, a run that could not
    go on 1, a signal 128 plus its number."""
    try:
        status = _guarded(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


def _guarded(argv: list[str]) -> int:
    try:
        return _dispatch(argv)
    except TreadleError as error:
        print(f"treadle: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("\ntreadle: stopped; what was saved before is as it was.", file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:10s}{text}" for name, text in COMMANDS.items())))
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from treadle import __version__

        print(f"treadle {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        kind = "flag" if argv[0].startswith("-") else "command"
        raise TreadleError(
            f"there is no {kind} '{argv[0]}'.{nearest(argv[0], COMMANDS)} The commands are {', '.join(COMMANDS)}."
        )
    globals()[f"_{argv[0]}"](argv[1:])
    return 0


def _train(argv: list[str]) -> None:
    from treadle import registry, settings
    from treadle.config import RunConfig
    from treadle.dataset import Dataset
    from treadle.environments.wrappers import Task, Wrappers
    from treadle.loops.execution import tune_cpu
    from treadle.run import Run, check_room, start

    imports, rest = _take_imports(argv)
    names, flags = _leading_names(rest)
    wants_help = "--help" in flags or "-h" in flags
    if not names and wants_help:
        return _show_train_help()
    if len(names) == 1 and wants_help:
        names = [*names, "ENVIRONMENT"]
    if len(names) != 2:
        raise TreadleError(
            "train needs an algorithm and an environment, and then the flags, such as: treadle train dqn CartPole-v1 "
            f"--seeds 8. It was given {shlex.join(argv) or 'neither'}."
        )
    algorithm, environment = names
    registry.algorithms.find(algorithm)
    wanted, flags = _take_option(flags, "--preset")
    pace, flags = _take_watch(flags)
    preset = _preset(algorithm, environment, wanted)
    base = preset.make() if preset else settings.make(algorithm, {})
    steps = preset.total_timesteps if preset and preset.total_timesteps else RunConfig.total_timesteps
    wrappers = preset.task().wrappers if preset else Wrappers()
    title = f"{algorithm} {environment}"
    configured, config, wrappers = _parse_train(title, base, RunConfig(total_timesteps=steps), wrappers, flags)

    # All is checked before the folder is touched: a mistake costs neither an empty folder nor the run to be replaced.
    config.check()
    configured.check()
    wrappers.check()
    check_room(config)
    tune_cpu()
    data = None if config.data is None else Dataset.load(config.data)
    trainer = start(configured, Task(environment, wrappers), config, data)
    command, label = ["treadle", "train", *argv], preset.name if preset else None
    with _closed_on_error(trainer):
        watch = _terminal(trainer, pace)
        run = Run.create(algorithm, environment, configured, config, command, label, imports, wrappers)
    if preset:
        print(f"Settings: preset '{preset.name}' for {algorithm} in {environment} ({preset.about}).")
    if data is not None:
        print(f"Data: {config.data}: {data}.")
    _go(run, trainer, 0, watch)


def _go(run: Any, trainer: Any, step: int, watch: Any) -> None:
    from treadle import training
    from treadle.progress import Progress

    title = f"{run.info['algorithm']} {run.info['environment']}"
    progress = Progress(title, run.config.total_timesteps, run.config.seeds)
    # Said at once by a pipe too: whoever waits for the run may want to look into its folder.
    print(f"Run: {run.folder}", flush=True)
    try:
        training.train(run, trainer, step, progress, watch)
    finally:
        trainer.close()
    if run.config.save_data is not None:
        print(f"Transitions: {run.config.save_data}")


def _resume(argv: list[str]) -> None:
    parser = _parser("resume", "Go on with a run from its last checkpoint.")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--checkpoint", metavar="FILE", help="an earlier checkpoint; what came after it is dropped")
    parser.add_argument("--total-timesteps", type=int, metavar="N", help="train to N steps instead; schedules stay")
    parser.add_argument("--workers", type=int, metavar="N", help="workers from now on, where the run has some")
    parser.add_argument("--address", metavar="HOST:PORT", help="the Ray cluster to go on with")
    about = "keep so many checkpoints, the newest; 0 keeps all. Each holds the whole state, replay memory included"
    parser.add_argument("--keep-checkpoints", type=int, metavar="N", help=about)
    _add_watch(parser)
    _add_import(parser)
    options = parser.parse_args(argv)

    from treadle import recording
    from treadle.loops.execution import tune_cpu
    from treadle.loops.host import HostSeeds
    from treadle.run import Run

    _import_files(options.imports)
    run = Run.open(options.run)
    changes, crew = (
        {name: value for name in names if (value := getattr(options, name)) is not None}
        for names in (("total_timesteps", "keep_checkpoints"), ("workers", "address"))
    )
    config = dataclasses.replace(run.config, **changes, **crew)
    config.check()
    if crew and run.config.engine == "auto" and run.config.engine_for(run.algorithm(), run.config.loop) == "none":
        raise TreadleError(f"{run.folder} is trained by one loop without workers, and goes on so: leave --workers out.")
    tune_cpu()
    trainer = run.trainer(config=dataclasses.replace(run.config, **crew))
    with _closed_on_error(trainer):
        step = run.restore(trainer, Path(options.checkpoint) if options.checkpoint else None)
        if step >= run.config.total_timesteps and recording.is_unfinished(run):
            recording.put_together(run, trainer.spec, step)
            trainer.close()
            run.save_info(status="finished")
            return print(f"The run had finished. Transitions: {config.save_data}")
        if step >= config.total_timesteps:
            raise TreadleError(
                f"{run.folder} is at step {step:,} of {config.total_timesteps:,}, so nothing is left to do. To train "
                f"it further: {run.resume_command} --total-timesteps {2 * step}"
            )
        watch = _terminal(trainer, _pace(options))
        if config.save_data is not None:
            recording.check(run, step)
        command = shlex.join(["treadle", "resume", *argv])
        dropped = run.forget_after(step)
        run.save_info(
            config=dataclasses.asdict(config), resumed=[*run.info["resumed"], {"command": command, "step": step}]
        )
        what = " What came after it is dropped." if dropped else ""
        print(f"Going on from step {step:,} of {config.total_timesteps:,}.{what}")
        if not trainer.exact_resume:
            print(getattr(trainer, "what_begins_anew", HostSeeds.what_begins_anew))
    _go(run, trainer, step, watch)


def _evaluate(argv: list[str]) -> None:
    parser = _parser("evaluate", "Greedy episodes of every seed, in Gymnasium's own environment where there is one.")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--episodes", type=int, default=20, metavar="N", help="episodes of each seed (default 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="base of the evaluation's own randomness")
    parser.add_argument("--checkpoint", metavar="FILE", help="another checkpoint than the last")
    parser.add_argument(
        "--render",
        metavar="FILE.gif|FILE.mp4|FILE.png",
        help="also draw one episode of the best seed: a moving picture, or as .png a film strip of it",
    )
    _add_import(parser)
    options = parser.parse_args(argv)

    from treadle import reports
    from treadle.loops.execution import tune_cpu
    from treadle.run import Run

    _import_files(options.imports)
    tune_cpu()
    run = Run.open(options.run)
    checkpoint = Path(options.checkpoint) if options.checkpoint else None
    reports.evaluate(run, options.episodes, options.seed, checkpoint, options.render)


def _watch(argv: list[str]) -> None:
    parser = _parser("watch", "Watch the agents of a run in the browser, and steer: seed, checkpoint, start, keys.")
    parser.add_argument("path", metavar="RUN|FOLDER", help="a run's folder, or a folder with runs in it")
    parser.add_argument("--live", action="store_true", help="follow a run that trains: always its newest checkpoint")
    parser.add_argument("--port", type=int, metavar="N", help="another port than the usual one")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="an address that other machines reach, too")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    _add_import(parser)
    options = parser.parse_args(argv)

    # Until the server is up there is nothing to save, and an interrupt that met one of JAX's callbacks would be lost.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from treadle import window
    from treadle.loops.execution import tune_cpu

    _import_files(options.imports)
    tune_cpu()
    window.watch(options.path, options.live, options.port, options.host, not options.no_browser)


def _plot(argv: list[str]) -> None:
    parser = _parser("plot", "Draw the learning curve of a run: every seed, IQM and 95% interval.")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--out", metavar="FILE.png", help="where to; figures/learning_curve.png in the run's folder")
    options = parser.parse_args(argv)

    from treadle import reports
    from treadle.run import Run

    run = Run.open(options.run)
    path = reports.plot(run, Path(options.out) if options.out else None)
    print(f"Learning curve: {path}")
    table = reports.plot_table(run)
    if table is not None:
        print(f"Table of values: {table}")


def _compare(argv: list[str]) -> None:
    parser = _parser("compare", "Runs side by side: learning curves, scores with intervals, and whether one is better.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="the runs' folders, each compared with the first")
    parser.add_argument("--by", metavar="MEASURE", help="what decides: evaluation (if all have one), final or area")
    parser.add_argument("--out", metavar="FILE.png", help="the figure; figures/comparison.png of the first run")
    parser.add_argument("--json", metavar="FILE", help="also write all the numbers")
    _add_import(parser)
    options = parser.parse_args(argv)

    from treadle.comparison_report import report

    _import_files(options.imports)
    report(options.runs, options.out, options.json, options.by)


def _reproduce(argv: list[str]) -> None:
    parser = _parser("reproduce", "An experiment of the literature: its figure, and its claims as they were found.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the experiment")
    parser.add_argument("--list", action="store_true", help="show all experiments")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds of each trial, instead of the experiment's own")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="base of the seeds (default 0)")
    parser.add_argument("--out", metavar="FOLDER", help="where to; runs/reproduce/NAME unless given")
    options = parser.parse_args(argv)

    from treadle import catalogue, experiment, reports
    from treadle.loops.execution import tune_cpu

    if options.list:
        return catalogue.show_experiments()
    if options.name is None:
        raise TreadleError("reproduce needs the name of an experiment; `treadle reproduce --list` shows them all.")
    experiment.find(options.name)
    tune_cpu()
    folder = Path(options.out) if options.out else Path("runs", "reproduce", options.name)
    command = shlex.join(["treadle", "reproduce", *argv])
    reports.reproduce(options.name, folder, options.seed, options.seeds, command)


def _list(argv: list[str]) -> None:
    parser = _parser("list", "Show the algorithms, worlds and presets.")
    _add_import(parser)
    options = parser.parse_args(argv)
    _import_files(options.imports)

    from treadle import catalogue

    catalogue.show()


def _parser(command: str, about: str) -> argparse.ArgumentParser:
    return _Parser(prog=f"treadle {command}", description=about, allow_abbrev=False)


class _Parser(argparse.ArgumentParser):
    """argparse that suggests the nearest flag, and speaks in the form of the other errors."""

    def error(self, message: str) -> Any:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            flag = unknown.split()[0]
            known = [name for action in self._actions for name in action.option_strings]
            raise TreadleError(f"{self.prog} has no flag or argument '{flag}'.{nearest(flag, known)}")
        raise TreadleError(f"{self.prog}: {message}. See {self.prog} --help.")


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file of your own that registers algorithms or worlds",
    )


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="draw the learner in the terminal as it learns")
    parser.add_argument("--watch-pace", type=float, metavar="N", help="the same, at N steps a second (10 unless given)")


def _take_watch(argv: list[str]) -> tuple[float | None, list[str]]:
    parser = _Parser(prog="treadle train", add_help=False, allow_abbrev=False)
    _add_watch(parser)
    options, rest = parser.parse_known_args(argv)
    return _pace(options), rest


def _pace(options: argparse.Namespace) -> float | None:
    """Steps a second at which to watch, `None` where nobody does."""
    return options.watch_pace if options.watch_pace is not None or not options.watch else 10.0


@contextlib.contextmanager
def _closed_on_error(trainer: Any) -> Iterator[None]:
    """Whatever is refused within leaves no worker behind."""
    try:
        yield
    except BaseException:
        trainer.close()
        raise


def _terminal(trainer: Any, pace: float | None) -> Any:
    """Before a run's folder is touched, because not every environment can be watched."""
    if pace is None:
        return None
    from treadle.watch import Watch

    return Watch(trainer, pace)


def _import_files(files: list[str]) -> list[str]:
    from treadle import registry

    for file in files:
        registry.import_file(file)
    return [str(Path(file).resolve()) for file in files]


def _take_imports(argv: list[str]) -> tuple[list[str], list[str]]:
    """Import the files of every `--import`, and leave the other arguments."""
    parser = _Parser(prog="treadle train", add_help=False, allow_abbrev=False)
    _add_import(parser)
    options, rest = parser.parse_known_args(argv)
    return _import_files(options.imports), rest


def _take_option(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    parser = _Parser(prog="treadle train", add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value")
    options, rest = parser.parse_known_args(argv)
    return options.value, rest


def _leading_names(argv: list[str]) -> tuple[list[str], list[str]]:
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    return argv[:count], argv[count:]


def _preset(algorithm: str, environment: str, wanted: str | None) -> Any:
    """The named preset; without a name the default one if there is one; none for `none`."""
    from treadle import settings

    if wanted == "none":
        return None
    if wanted is None:
        found = [p for p in settings.presets(algorithm, environment) if p.name == "default"]
        return found[0] if found else None
    return settings.preset(algorithm, environment, wanted)


def _parse_train(names: str, base: Any, config: Any, wrappers: Any, flags: list[str]) -> tuple[Any, Any, Any]:
    """The algorithm, the run's configuration and the environment's wrappers from the flags; the defaults are those of
    the preset."""
    import tyro

    groups = _groups(algorithm=base, run=config, environment=wrappers)
    prog = f"treadle train {names}"
    parsed = tyro.cli(groups, args=flags, prog=prog, description=TRAIN_FLAGS, config=(tyro.conf.SuppressFixed,))
    return parsed.algorithm, parsed.run, parsed.environment


def _groups(**defaults: Any) -> Any:
    """A dataclass of dataclasses, of which each is a group in the help and none a prefix of flags."""
    import tyro

    fields = [
        (name, tyro.conf.OmitArgPrefixes[type(default)], dataclasses.field(default=default))
        for name, default in defaults.items()
    ]
    return dataclasses.make_dataclass("Train", fields, frozen=True)


def _show_train_help() -> None:
    """What `train` takes whatever the algorithm."""
    import tyro

    from treadle import registry
    from treadle.environments.wrappers import Wrappers
    from treadle.run import RunConfig

    about = (
        "Train an algorithm in an environment: treadle train dqn CartPole-v1 --seeds 8. Algorithms: "
        f"{', '.join(registry.algorithms.names())}. Treadle's own worlds: {', '.join(registry.environments.names())}; "
        f"any Gymnasium environment by its name. {TRAIN_FLAGS} The options below are those of every run; treadle train "
        "ALGORITHM ENVIRONMENT --help shows the algorithm's own as well."
    )
    groups = _groups(run=RunConfig(), environment=Wrappers())
    tyro.cli(groups, args=["--help"], prog="treadle train ALGORITHM ENVIRONMENT", description=about)
