// All runs of a folder, asked for anew every few seconds while somebody looks.

import { duration, progress, short } from "./format.js";

const PERIOD_MS = 5000;
/** Until the rest of long metrics is asked for. */
const SOON_MS = 100;
const SVG = "http://www.w3.org/2000/svg";
const [WIDE, HIGH] = [280, 44];

export class RunList {
  constructor(onChange) {
    this.onChange = onChange;
    this.rows = new Map();
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
    this.refresh();
  }

  async refresh() {
    clearTimeout(this.timer);
    let wait = PERIOD_MS;
    if (!document.hidden) {
      try {
        const found = await fetchRuns();
        this.show(found);
        if (!found.runs.every((run) => run.is_whole)) wait = SOON_MS;
        this.onChange(true);
      } catch {
        this.onChange(false);
      }
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(), wait);
  }

  show({ folder, runs }) {
    document.getElementById("folder").textContent = `Runs in ${folder}`;
    const none = document.getElementById("no-runs");
    none.hidden = runs.length > 0;
    const command = `treadle train ppo CartPole-v1 --out ${folder}/first`;
    none.textContent = `There is no run in ${folder} yet. Train one: ${command}`;
    const list = document.getElementById("runs");
    for (const [name, row] of this.rows) {
      if (!runs.some((run) => run.name === name)) {
        row.element.remove();
        this.rows.delete(name);
      }
    }
    runs.forEach((run, i) => {
      const row = this.rows.get(run.name) ?? new Row(run.name);
      this.rows.set(run.name, row);
      row.show(run);
      if (list.children[i] !== row.element) list.insertBefore(row.element, list.children[i] ?? null);
    });
  }
}

export const fetchRuns = () => fetched("/api/runs");

export async function fetched(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  return answer.json();
}

class Row {
  constructor(name) {
    this.element = make("li", "run");
    this.link = make("a", "run-name", name);
    this.what = make("span", "about");
    const names = make("div", "run-what");
    names.append(this.link, this.what);
    this.path = document.createElementNS(SVG, "path");
    const curve = document.createElementNS(SVG, "svg");
    curve.setAttribute("viewBox", `0 0 ${WIDE} ${HIGH}`);
    curve.setAttribute("preserveAspectRatio", "none");
    curve.setAttribute("aria-hidden", "true");
    curve.classList.add("run-curve");
    curve.append(this.path);
    this.status = make("span", "pill");
    this.step = make("span", "about");
    const state = make("div", "run-state");
    state.append(this.status, this.step);
    this.score = make("strong", "");
    const scored = make("div", "run-score");
    this.when = make("span", "about");
    scored.append(this.score, this.when);
    scored.title = "the return of the last episodes in training";
    this.problem = make("p", "run-problem");
    this.element.append(names, curve, state, scored, this.problem);
  }

  show(run) {
    const broken = Boolean(run.problem);
    this.element.classList.toggle("broken", broken);
    set(this.problem, run.problem ?? "");
    if (broken) this.link.removeAttribute("href");
    else this.link.setAttribute("href", `/run/${encodeURIComponent(run.name)}`);
    if (broken) return;
    const seeds = run.seeds > 1 ? ` · ${run.seeds} seeds` : "";
    set(this.what, `${run.algorithm} in ${run.environment}${seeds}`);
    set(this.status, run.status);
    this.status.dataset.status = run.status;
    const far = progress(run);
    set(this.step, run.wall_seconds ? `${far} · ${duration(run.wall_seconds)}` : far);
    set(this.score, short(run.score));
    set(this.when, run.status === "running" ? "return so far" : "return at the end");
    this.path.setAttribute("d", outline(run.curve, run.total_timesteps));
  }
}

/** Over all steps that the run is to take, so that what is to come is seen as empty. */
function outline(curve, total) {
  const values = curve?.mean.filter((value) => value !== null) ?? [];
  if (values.length === 0) return "";
  const [low, high] = [Math.min(...values), Math.max(...values)];
  let path = "";
  curve.mean.forEach((value, i) => {
    if (value === null) return;
    const x = (curve.steps[i] / total) * WIDE;
    const y = high > low ? HIGH - 3 - ((value - low) / (high - low)) * (HIGH - 6) : HIGH / 2;
    path += `${path ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  return path;
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(kind, className, text = "") {
  const element = document.createElement(kind);
  element.className = className;
  element.textContent = text;
  return element;
}
