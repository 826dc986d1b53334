// One run being watched: what the server says goes to the pieces of the page, and what a person does to the server.

import { EpisodeCurves, LearningCurves } from "./charts.js";
import { Connection } from "./connection.js";
import { Controls } from "./controls.js";
import { progress, short, whole } from "./format.js";
import { Handles, Steering } from "./hands.js";
import { notify } from "./notices.js";
import { Bars, Numbers } from "./panel.js";
import { SceneView } from "./scene.js";
import { whenThemeChanges } from "./theme.js";

const WISHES = ["speed", "seed", "checkpoint", "follow", "start"];
/** Charts of the episode are drawn less often than the scene: nobody sees the difference, and they cost more. */
const CHART_MS = 100;

const byId = (id) => document.getElementById(id);

export class Watch {
  /** `run` is what the list of runs says of it; the server tells the rest when it has loaded it. */
  constructor(run) {
    this.run = { ...run };
    this.evaluated = null;
    if (!run.problem) this.headline({});
    this.view = new SceneView(byId("stage"), byId("picture"), byId("canvas"));
    const send = (message) => this.send(message);
    this.controls = new Controls(send);
    this.handles = new Handles(this.view, send, byId("follow-pointer-option"));
    this.steering = new Steering(byId("pad"), send);
    this.numbers = new Numbers();
    this.episode = new EpisodeCurves(byId("return-chart"), byId("reward-chart"));
    this.learning = new LearningCurves(byId("curves"), byId("return-curve"), byId("others"), byId("legend"));
    this.frame = null;
    this.wish = null;
    this.restoring = false;
    this.drawn = true;
    this.chartsDrawn = 0;
    this.drawFrame = this.drawFrame.bind(this);
    byId("overlay").addEventListener("change", () => this.showTable());
    whenThemeChanges(() => this.view.draw());
    this.wasLost = false;
    const onChange = (connected) => {
      byId("lost").hidden = connected;
      this.wasLost ||= !connected;
    };
    this.connection = new Connection(
      `/ws/${encodeURIComponent(run.name)}`,
      (message) => this.receive(message),
      onChange,
    );
  }

  /** What is asked for is kept: after a loss the server may be a new one, and is asked again. */
  send(message) {
    if (this.wish) {
      if (message.type === "play" || message.type === "pause") this.wish.playing = message.type === "play";
      else if (message.type === "step") this.wish.playing = false;
      else if (WISHES.includes(message.type)) this.wish[message.type] = message.value;
      if (message.type === "checkpoint") this.wish.follow = false;
    }
    this.connection.send(message);
  }

  receive(message) {
    if (message.type === "frame") this.receiveFrame(message);
    else if (message.type === "hello") this.hello(message);
    else if (message.type === "curves") this.learning.show(message);
    else if (message.type === "table") this.setTable(message);
    else if (message.type === "notice") this.notice(message);
    else if (message.type === "checkpoints") {
      this.controls.offer(message.checkpoints);
      this.headline({ status: message.status, step: message.step });
    }
  }

  hello(message) {
    byId("controls").inert = false;
    this.restoring = this.wasLost && this.wish !== null;
    this.wasLost = false;
    this.numbers.counted = null;
    this.controls.hello(message);
    this.steering.offer(message.keys);
    this.bars = new Bars(byId("bars"), message.actions);
    byId("help-steer").hidden = message.keys.length === 0;
    byId("help-keys").textContent =
      message.keys.length === 4
        ? "arrows"
        : message.keys.map((key) => key.replace("Arrow", "").toLowerCase()).join(" ");
    byId("command").hidden = !message.run.command;
    byId("command").textContent = message.run.command ?? "";
    this.evaluated = message.evaluated;
    this.headline(message.run);
  }

  headline(news) {
    Object.assign(this.run, news);
    const { name, algorithm, environment, preset, seeds, status } = this.run;
    const what = [`${algorithm} in ${environment}`];
    if (preset && preset !== "default") what.push(`preset ${preset}`);
    if (seeds > 1) what.push(`${seeds} seeds`);
    const score = this.evaluated ? ` · scored ${short(this.evaluated.mean)}` : "";
    byId("run-name").textContent = name;
    byId("run-what").textContent = what.join(" · ");
    byId("run-status").textContent = byId("run-status").dataset.status = status;
    byId("run-progress").textContent = `${progress(this.run)}${score}`;
    if (this.evaluated) {
      const { episodes, environment: where, step } = this.evaluated;
      byId("run-progress").title =
        `mean return of ${whole(episodes)} greedy episodes in ${where}, at step ${whole(step)}`;
    }
    byId("title").hidden = false;
    document.title = `${name} – Treadle`;
  }

  receiveFrame(frame) {
    if (this.restoring) this.restore(frame);
    else this.wish = { ...frame.control };
    if (this.frame && frame.control.checkpoint !== this.frame.control.checkpoint) this.numbers.forget();
    else if (this.frame && frame.control.seed !== this.frame.control.seed) this.numbers.forget();
    this.numbers.count(frame);
    this.episode.add(frame);
    this.frame = frame;
    if (this.drawn) requestAnimationFrame(this.drawFrame);
    this.drawn = false;
  }

  /** Asked once for each thing that is not as it was. The start only of a new server: the old one has gone on. */
  restore(frame) {
    this.restoring = false;
    const { wish } = this;
    const isNew = this.frame !== null && frame.number < this.frame.number;
    if (frame.control.playing !== wish.playing) this.connection.send({ type: wish.playing ? "play" : "pause" });
    for (const type of WISHES) {
      if (wish[type] === frame.control[type] || (type === "start" && !isNew && wish.playing)) continue;
      if (type === "checkpoint" && wish.follow) continue;
      this.connection.send({ type, value: wish[type] });
    }
  }

  drawFrame(now) {
    const { frame } = this;
    this.drawn = true;
    byId("waiting").hidden = true;
    if (frame.scene) this.view.showScene(frame.scene);
    else if (frame.image) this.view.showImage(frame.image);
    this.handles.show(frame.scene);
    byId("help-handles").hidden = !frame.scene?.handles?.length;
    this.numbers.show(frame);
    this.numbers.drawSuccesses();
    this.bars?.show(frame);
    this.controls.show(frame.control);
    this.learning.watch(frame.control.seed, frame.control.checkpoint);
    if (now - this.chartsDrawn > CHART_MS || !frame.control.playing || frame.ended) {
      this.chartsDrawn = now;
      this.episode.draw();
    }
    byId("canvas").setAttribute(
      "aria-label",
      `${this.run.environment}, step ${frame.step} of episode ${frame.episode}`,
    );
  }

  setTable(message) {
    this.table = null;
    if (message.values) {
      const learned = message.values.filter((values) => values.some((value) => value !== 0));
      const best = learned.map((values) => Math.max(...values));
      this.table = { ...message, low: Math.min(...best), high: Math.max(...best) };
    }
    byId("overlay-option").hidden = !this.table;
    this.showTable();
  }

  showTable() {
    const shown = this.table && byId("overlay").checked ? this.table : null;
    byId("ramp").hidden = !shown || !Number.isFinite(shown.low);
    if (shown) {
      byId("ramp-low").textContent = short(shown.low);
      byId("ramp-high").textContent = short(shown.high);
    }
    this.view.table = shown;
    this.view.draw();
  }

  notice({ text, level }) {
    // While there is nothing to see its place says why.
    if (this.frame || level === "error") notify(text, level);
    if (!this.frame) byId("waiting").textContent = text;
  }
}
