"""Run every experiment of `treadle reproduce --list`, and write the page that shows them.

make experiments              all
python docs/experiments.py --only cliff-walking
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from treadle import experiment

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "experiments.md"
IMAGES = ROOT / "docs" / "images" / "experiments"
RUNS = ROOT / "runs" / "reproduce"
TREADLE = str(Path(sys.executable).parent / "treadle")

INTRODUCTION = """# Experiments

Figures of the literature and of the tutorials, each made by the command above it; `make experiments` makes all of them
anew. Each is one file in [src/treadle/experiments](../src/treadle/experiments). Beside every figure stand the claims
that it should bear out, as they were found: those that do not hold stay.
"""


def run(name: str) -> dict:
    """Run an experiment by its command; what it wrote of itself, and the commit."""
    folder = RUNS / name
    command = ["reproduce", name, "--out", str(folder.relative_to(ROOT))]
    subprocess.run([TREADLE, *command], check=True, cwd=ROOT)
    IMAGES.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "figures" / f"{name}.png", IMAGES / f"{name}.png")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    found = json.loads((folder / "experiment.json").read_text()) | {"commit": commit.stdout.strip()}
    (folder / "experiment.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def section(name: str, found: dict) -> str:
    """An experiment's part of the page."""
    seeds = "1 seed" if found["seeds"] == 1 else f"{found['seeds']} seeds"
    source = found["source"][0].upper() + found["source"][1:]
    lines = [
        f"## {found['about']}",
        "",
        f"{source}. {seeds}, {found['wall_seconds']:.0f} s, commit {found['commit']}.",
        "",
        "```sh",
        f"treadle reproduce {name}",
        "```",
        "",
        f"![{found['about']}](images/experiments/{name}.png)",
        "",
    ]
    for claim in found["claims"]:
        verdict = "holds" if claim["holds"] else "**does not hold**"
        lines.append(f"- {claim['claim']}: {verdict} ({claim['figures']})")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", action="append", help="run this one, and take the others as they are")
    options = parser.parse_args()
    names = list(experiment.experiments())
    for name in options.only or names:
        experiment.find(name)
        run(name)
    parts = [INTRODUCTION]
    for name in names:
        kept = RUNS / name / "experiment.json"
        if kept.exists():
            parts.append(section(name, json.loads(kept.read_text())))
    PAGE.write_text("\n".join(parts))
    print(f"Written to {PAGE.relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
