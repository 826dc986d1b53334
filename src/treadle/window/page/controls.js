// Play, pause, speed, seed, checkpoint, start: by buttons, fields and keys.

import { whole } from "./format.js";
import { isField } from "./hands.js";
import { notify } from "./notices.js";

const LAST_START = 2 ** 31 - 1;

/** Of more than these nobody could choose. */
const MOST_SEEDS = 1000;

const byId = (id) => document.getElementById(id);

export class Controls {
  /** `send(message)` tells the server. Shown is what the server says, and until it answers what was asked for. */
  constructor(send) {
    this.send = send;
    this.shownStart = "0";
    this.playing = true;
    this.checkpoints = [];
    byId("play").addEventListener("click", () => this.toggle());
    byId("step").addEventListener("click", () => this.step());
    byId("reset").addEventListener("click", () => send({ type: "reset" }));
    this.editsStart = false;
    byId("start").addEventListener("input", () => (this.editsStart = true));
    // After Enter the browser tells of the same change once more, at once or when the field is left.
    byId("start").addEventListener("change", (event) => this.editsStart && this.start(event.target));
    byId("start").addEventListener("keydown", (event) => event.key === "Enter" && this.start(event.target));
    byId("speed").addEventListener("change", (event) => this.speed(event.target.value));
    byId("seed").addEventListener("change", (event) => send({ type: "seed", value: Number(event.target.value) }));
    byId("checkpoint").addEventListener("change", (event) => {
      send({ type: "checkpoint", value: Number(event.target.value) });
    });
    byId("follow").addEventListener("change", (event) => send({ type: "follow", value: event.target.checked }));
    addEventListener("keydown", (event) => this.key(event));
  }

  hello(message) {
    const speeds = message.speeds.map(String);
    fillSelect(
      byId("speed"),
      speeds.map((speed) => [speed, speed === "max" ? "max" : `${speed}×`]),
    );
    fillSelect(
      byId("seed"),
      Array.from({ length: Math.min(message.run.seeds, MOST_SEEDS) }, (_, i) => [String(i), String(i)]),
    );
    byId("seed-field").hidden = message.run.seeds < 2;
    byId("follow-field").hidden = !message.live;
    this.offer(message.checkpoints);
  }

  offer(checkpoints) {
    this.checkpoints = checkpoints;
    const newestFirst = [...checkpoints].sort((a, b) => b - a);
    fillSelect(
      byId("checkpoint"),
      newestFirst.map((step) => [String(step), `step ${whole(step)}`]),
    );
    byId("checkpoint").disabled = checkpoints.length === 0;
  }

  show(control) {
    this.setPlaying(control.playing);
    choose(byId("speed"), String(control.speed));
    choose(byId("seed"), String(control.seed));
    choose(byId("checkpoint"), String(control.checkpoint));
    byId("follow").checked = control.follow;
    const start = byId("start");
    if (document.activeElement !== start) start.value = this.shownStart = String(control.start);
  }

  setPlaying(playing) {
    if (this.playing === playing && byId("play").dataset.playing === String(playing)) return;
    this.playing = playing;
    byId("play").dataset.playing = playing;
    byId("play-label").textContent = playing ? "Pause" : "Play";
  }

  toggle() {
    this.setPlaying(!this.playing);
    this.send({ type: this.playing ? "play" : "pause" });
  }

  step() {
    this.setPlaying(false);
    this.send({ type: "step" });
  }

  /** The nearest whole number that there is, which the field then shows; of no number that of before stays. */
  start(field) {
    this.editsStart = false;
    const given = field.value;
    if (given !== "") {
      const value = Math.min(Math.max(Math.trunc(Number(given)), 0), LAST_START);
      this.shownStart = String(value);
      const numbers = `whole numbers from 0 to ${whole(LAST_START)}`;
      if (value !== Number(given)) notify(`Starts are ${numbers}: ${whole(value)} was taken.`);
      this.send({ type: "start", value });
    }
    field.value = this.shownStart;
  }

  speed(value) {
    this.send({ type: "speed", value: value === "max" ? "max" : Number(value) });
  }

  faster(by) {
    const select = byId("speed");
    const index = Math.min(Math.max(select.selectedIndex + by, 0), select.options.length - 1);
    if (index === select.selectedIndex) return;
    select.selectedIndex = index;
    this.speed(select.value);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || isField(event.target)) return;
    if (byId("controls").inert || byId("controls").hidden) return;
    if (event.repeat && event.key !== ".") return;
    // Space works what has the focus, if anything does.
    const taken = event.target instanceof Element && event.target.closest("button:not(.handle), a, summary, input");
    if (event.key === " " && !taken) this.toggle();
    else if (event.key === ".") this.step();
    else if (event.key === "r") this.send({ type: "reset" });
    else if (event.key === "+" || event.key === "=") this.faster(1);
    else if (event.key === "-") this.faster(-1);
    else return;
    event.preventDefault();
  }
}

// A list that somebody has open must not change without need.
function fillSelect(select, entries) {
  const same =
    select.options.length === entries.length && entries.every(([value], i) => select.options[i].value === value);
  if (same) return;
  const before = select.value;
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
  choose(select, before);
}

function choose(select, value) {
  if (select.value !== value && [...select.options].some((option) => option.value === value)) select.value = value;
}
