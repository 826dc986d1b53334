// What a step was worth, and what the agent thought of it.

import { fixed, short, whole } from "./format.js";

const REMEMBERED = 20;
/** How fast a scale draws in again, a frame: in about two seconds at full rate. */
const ADAPTING = 0.02;

const byId = (id) => document.getElementById(id);

export class Numbers {
  constructor() {
    this.successes = [];
    this.counted = null;
    this.episode = null;
    this.isHelped = false;
  }

  show(frame) {
    byId("episode").textContent = whole(frame.episode);
    byId("t").textContent = whole(frame.step);
    byId("reward").textContent = short(frame.reward);
    byId("return").textContent = short(frame.return);
    const ended = byId("ended");
    ended.hidden = !frame.ended;
    if (frame.ended) {
      ended.textContent = ending(frame);
      ended.classList.toggle("good", frame.success === true);
    }
  }

  /** A person has a hand in the episode that is being played. */
  help() {
    this.isHelped = true;
  }

  /** To be told of every frame, drawn or not: an end may be seen in one only. */
  count(frame) {
    if (frame.episode !== this.episode) this.isHelped = false;
    this.episode = frame.episode;
    this.isHelped ||= frame.person;
    if (!frame.ended || frame.success === null || frame.episode === this.counted) return;
    this.counted = frame.episode;
    this.successes.push({ isReached: frame.success, isHelped: this.isHelped });
    if (this.successes.length > REMEMBERED) this.successes.shift();
    this.changed = true;
  }

  forget() {
    this.successes = [];
    this.changed = true;
  }

  drawSuccesses() {
    if (!this.changed) return;
    this.changed = false;
    byId("successes").hidden = this.successes.length === 0;
    const own = this.successes.filter(({ isHelped }) => !isHelped);
    const reached = own.filter(({ isReached }) => isReached).length;
    const of = this.successes.length < REMEMBERED ? own.length : `the last ${own.length}`;
    const without = own.length < this.successes.length ? " without help" : "";
    const share = `reached in ${reached} of ${of} episodes${without}`;
    byId("share").textContent = own.length > 0 ? share : "no episode without help yet";
    byId("marks").replaceChildren(
      ...this.successes.map(({ isReached, isHelped }) =>
        part("i", `${isReached ? "yes" : "no"} ${isHelped ? "helped" : ""}`),
      ),
    );
  }
}

/** How an episode ended, in a few words. */
function ending({ ended, success, step }) {
  const after = `after ${whole(step)} ${step === 1 ? "step" : "steps"}`;
  const result = success === null ? "" : success ? ": reached" : ": not reached";
  if (ended === "truncated") return `time is up ${after}${result}`;
  return success ? `reached ${after}` : `terminated ${after}${result}`;
}

/** Bars of everything the method can tell. The rows are made once and filled anew. */
export class Bars {
  constructor(parent, actions) {
    this.parent = parent;
    this.card = parent.closest("section");
    this.actions = actions;
    this.groups = new Map();
    parent.replaceChildren();
  }

  show(frame) {
    const insight = frame.insight ?? {};
    const { kind, names } = this.actions;
    byId("value-field").hidden = !Number.isFinite(insight.value);
    byId("value").textContent = short(insight.value);
    byId("action-field").hidden = kind !== "discrete";
    if (kind === "discrete") {
      // A person is not bound to the agent's choice: where actions were made discrete, theirs are numbers still.
      byId("action").textContent = Array.isArray(frame.action)
        ? frame.action.map(fixed).join(", ")
        : frame.action === null
          ? "–"
          : (names[frame.action] ?? `number ${frame.action}`);
      this.fill("q_values", "action values", insight.q_values, () => new QBars(names));
      this.fill("probabilities", "action probabilities", insight.probabilities, () => new ShareBars(names));
    } else {
      const { mean, std } = insight;
      this.fill(
        "action",
        "action",
        frame.action || mean ? { action: frame.action, mean, std } : null,
        () => new ActionBars(this.actions),
      );
    }
    this.card.hidden = kind !== "discrete" && !this.groups.size && !Number.isFinite(insight.value);
  }

  fill(key, title, values, make) {
    let group = this.groups.get(key);
    if (values === undefined || values === null) {
      if (group) group.section.hidden = true;
      return;
    }
    if (!group) {
      group = make();
      group.section = document.createElement("section");
      group.section.className = "group";
      const heading = document.createElement("h3");
      heading.textContent = title;
      group.section.append(heading, group.element);
      this.groups.set(key, group);
      this.parent.append(group.section);
    }
    group.section.hidden = false;
    group.show(values);
  }
}

/** Rows of a name, a track and a number. `chosen` are those that the agent, who acts greedily, would take here: what
 * was done last was done in the state before. */
class Rows {
  constructor(names) {
    this.element = document.createElement("div");
    this.element.className = "rows";
    this.rows = names.map((name) => {
      const row = document.createElement("div");
      row.className = "row";
      const label = part("span", "name", name);
      const track = part("span", "track");
      const number = part("span", "number");
      const bar = part("i", "bar");
      track.append(bar);
      row.append(label, track, number);
      label.title = name;
      this.element.append(row);
      return { row, track, bar, number };
    });
  }

  fill(i, from, to, text, chosen) {
    const { row, bar, number } = this.rows[i];
    bar.style.left = `${100 * Math.min(from, to)}%`;
    bar.style.width = `${100 * Math.abs(to - from)}%`;
    number.textContent = text;
    if (row.classList.toggle("chosen", chosen)) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
}

class ShareBars extends Rows {
  constructor(names) {
    super(names);
    this.element.append(choiceKey());
  }

  show(shares) {
    const most = Math.max(...shares);
    this.rows.forEach((_, i) => this.fill(i, 0, shares[i], `${(100 * shares[i]).toFixed(1)}%`, shares[i] === most));
  }
}

/** Around zero where values have both signs; else from the least value seen lately, because those of one state are
 * often close together and far from zero. The ends of the scale are written below. */
class QBars extends Rows {
  constructor(names) {
    super(names);
    this.low = this.high = null;
    this.ends = part("div", "ends");
    this.lowEnd = part("span", "");
    this.highEnd = part("span", "");
    this.ends.append(this.lowEnd, this.highEnd);
    this.element.append(this.ends, choiceKey());
  }

  show(values) {
    const best = Math.max(...values);
    // Nothing to choose by.
    const alike = values.every((value) => value === best);
    this.adapt(Math.min(...values), best);
    let [low, high] = [this.low, this.high];
    if (low < 0 && high > 0) [low, high] = [-Math.max(-low, high), Math.max(-low, high)];
    else if (low >= 0 && low <= high - low) low = 0;
    else if (high <= 0 && -high <= high - low) high = 0;
    if (low === high) high = low + 1;
    const place = (value) => (value - low) / (high - low);
    const base = low < 0 && high > 0 ? 0.5 : high === 0 ? 1 : 0;
    this.rows.forEach((_, i) => this.fill(i, base, place(values[i]), short(values[i]), values[i] === best && !alike));
    this.lowEnd.textContent = short(low);
    this.highEnd.textContent = short(high);
  }

  adapt(low, high) {
    // A little room below, so that the least has a bar too.
    const room = 0.15 * (high - low) || 0.05 * Math.abs(high) || 1;
    if (low > 0) low = Math.max(0, low - room);
    if (high < 0) high = Math.min(0, high + room);
    this.low = this.low === null ? low : Math.min(low, this.low + ADAPTING * (low - this.low));
    this.high = this.high === null ? high : Math.max(high, this.high + ADAPTING * (high - this.high));
  }
}

/** Each number of a continuous action between its bounds, with the policy's mean as a line, its deviation as a band. */
class ActionBars extends Rows {
  constructor({ names, low, high }) {
    super(names);
    this.low = low;
    this.high = high;
    this.more = this.rows.map(({ track }) => {
      const [zero, band, mean] = [part("i", "zero"), part("i", "band"), part("i", "mean")];
      track.prepend(band, zero);
      track.append(mean);
      return { zero, band, mean };
    });
    this.key = part("p", "key", "");
    this.element.append(this.key);
  }

  show({ action, mean, std }) {
    const policy = std ? "; line and band: the policy's mean here, and its deviation" : "; line: the policy here";
    this.key.textContent = `bar: the last action${mean ? policy : ""}`;
    this.rows.forEach((_, i) => {
      const place = (value) => Math.min(1, Math.max(0, (value - this.low[i]) / (this.high[i] - this.low[i] || 1)));
      const zero = place(0);
      const more = this.more[i];
      more.zero.style.left = `${100 * zero}%`;
      this.fill(i, zero, place(action?.[i] ?? 0), fixed(action?.[i]), false);
      more.mean.hidden = !mean;
      more.band.hidden = !mean || !std;
      if (mean) more.mean.style.left = `${100 * place(mean[i])}%`;
      if (mean && std) {
        const [from, to] = [place(mean[i] - std[i]), place(mean[i] + std[i])];
        more.band.style.left = `${100 * from}%`;
        more.band.style.width = `${100 * (to - from)}%`;
      }
    });
  }
}

const choiceKey = () => part("p", "key", "dot and bold: the agent's choice here");

function part(kind, className, text = "") {
  const element = document.createElement(kind);
  element.className = className;
  element.textContent = text;
  return element;
}
