"""How eligibility traces fade along a path: one random walk through a maze, with both kinds of trace."""

from __future__ import annotations

import numpy as np

from treadle import figures, registry, tables
from treadle.experiment import Claim, Experiment, Trial, Verdict

DECAY, GAMMA = 0.9, 0.95
KINDS = ("accumulating", "replacing")
STEPS = 60


def look(moment):
    """The traces `[S, A]` of each step."""
    return moment.state.traces[0]


def path(outcomes):
    """The state-action pairs that were visited: those whose trace is the one that has just been raised."""
    traces = outcomes["replacing"].observed[0]
    return [np.unravel_index(np.argmax(now), now.shape) for now in traces]


def expected(pairs, kind):
    """The traces of a path `[N, S, A]`, worked out pair by pair."""
    trace, found = np.zeros((54, 4)), []
    for state, action in pairs:
        trace = trace * DECAY * GAMMA
        if kind == "replacing":
            trace[state] = 0
            trace[state, action] = 1
        else:
            trace[state, action] += 1
        found.append(trace)
    return np.array(found)


def as_worked_out(outcomes):
    pairs = path(outcomes)
    gaps = [np.abs(outcomes[kind].observed[0] - expected(pairs, kind)).max() for kind in KINDS]
    return Verdict(max(gaps) < 1e-5, f"largest difference {max(gaps):.1e} over {STEPS} steps")


def bounded(outcomes):
    top = {kind: float(outcomes[kind].observed[0].max()) for kind in KINDS}
    return Verdict(top["replacing"] <= 1 < top["accumulating"], ", ".join(f"{k} {v:.2f}" for k, v in top.items()))


def draw(figure, outcomes):
    world = registry.environments.make("DynaMaze")
    columns, rows = tables.grid_of(world)
    panels = figure.subplots(2, 3, width_ratios=(1, 1, 1))
    top = outcomes["accumulating"].observed[0].sum(-1).max()
    visited = [int(state) for state, _ in path(outcomes)]
    for (first, second, line), kind in zip(panels, KINDS, strict=True):
        traces = outcomes[kind].observed[0].sum(-1)
        for axes, step in ((first, STEPS // 2), (second, STEPS)):
            shown = np.where(traces[step - 1] < 1e-3, np.nan, traces[step - 1]).reshape(rows, columns)
            image = axes.imshow(shown, cmap="viridis", vmin=0, vmax=top)
            at = np.array(visited[:step])
            axes.plot(at % columns, at // columns, color=figures.VERMILLION, linewidth=0.8, alpha=0.7)
            figures.dress(axes, f"{kind}, after {step} steps")
            axes.grid(visible=False)
            axes.set_xticks([])
            axes.set_yticks([])
        figure.colorbar(image, ax=second, shrink=0.7, label="trace")
        often = max(set(visited), key=visited.count)
        line.plot(np.arange(1, STEPS + 1), traces[:, often], color=figures.BLUE)
        figures.dress(line, "Trace of the cell visited most", "step", "trace")


EXPERIMENT = Experiment(
    about="Traces fade by gamma lambda a step; a replacing one never exceeds 1",
    source="Sutton and Barto (2018), section 12.2; Singh and Sutton (1996)",
    trials=tuple(
        Trial(
            kind,
            "sarsa-lambda",
            "DynaMaze",
            {"trace_decay": DECAY, "gamma": GAMMA, "trace": kind, "epsilon": 1.0, "learning_rate": 1e-9},
            updates=STEPS,
            observe=look,
            seeds=1,
        )
        for kind in KINDS
    ),
    draw=draw,
    claims=(
        Claim("after every step the traces are those worked out along the path", as_worked_out),
        Claim("a replacing trace stays at 1 or below, an accumulating one does not", bounded),
    ),
    seeds=1,
    size=(12.0, 5.2),
)
