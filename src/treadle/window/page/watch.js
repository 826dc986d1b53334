// One run being watched: what the server says goes to the pieces of the page, and what a person does to the server.

import { EpisodeCurves, LearningCurves } from "./charts.js";
import { Connection } from "./connection.js";
import { Controls } from "./controls.js";
import { progress, short, whole } from "./format.js";
import { Handles, Steering } from "./hands.js";
import { fetchRuns } from "./list.js";
import { notify } from "./notices.js";
import { Bars, Numbers } from "./panel.js";
import { SceneView } from "./scene.js";
import { whenThemeChanges } from "./theme.js";

const WISHES = ["speed", "seed", "checkpoint", "follow", "start"];
/** Charts of the episode are drawn less often than the scene: nobody sees the difference, and they cost more. */
const CHART_MS = 100;
const LOADING = "Loading the run; compiling its first step takes a few seconds ...";
/** What is of no use while nobody answers. */
const HANDS = ["controls", "stage", "pad", "options"];

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
    this.handles = new Handles(this.view, send, byId("follow-pointer-option"), byId("drag-hint"));
    this.steering = new Steering(byId("pad"), byId("help-steer"), send);
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
    /** Whether the frame is of the server that answers now. */
    this.isFresh = false;
    const onChange = (connected) => {
      byId("lost").hidden = connected;
      this.wasLost ||= !connected;
      if (!connected) this.lose();
    };
    this.connection = new Connection(
      `/ws/${encodeURIComponent(run.name)}`,
      (message) => this.receive(message),
      onChange,
    );
  }

  /** Nothing can be asked for until the server is there again. */
  async lose() {
    this.isFresh = false;
    for (const id of HANDS) byId(id).inert = true;
    // A socket that is refused does not say why: there may be another server now.
    const found = await fetchRuns().catch(() => null);
    const isGone = found !== null && !found.runs.some(({ name }) => name === this.run.name);
    byId("lost-text").textContent = isGone ? "This server now shows other runs." : "Connection lost, trying again.";
    byId("lost-home").hidden = !isGone;
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
    if (message.type === "drag") {
      this.numbers.help();
      this.hint();
    } else if (message.type === "keys") this.showPerson();
  }

  receive(message) {
    if (message.type === "frame") this.receiveFrame(message);
    else if (message.type === "hello") this.hello(message);
    else if (message.type === "curves") this.learning.show(message);
    else if (message.type === "table") this.setTable(message);
    else if (message.type === "notice") this.notice(message);
    else if (message.type === "checkpoints") {
      this.controls.offer(message.checkpoints);
      this.awaitFrame(message.checkpoints);
      this.headline({ status: message.status, step: message.step });
    }
  }

  hello(message) {
    for (const id of HANDS) byId(id).inert = false;
    this.isFresh = false;
    this.awaitFrame(message.checkpoints);
    this.restoring = this.wasLost && this.wish !== null;
    this.wasLost = false;
    this.numbers.counted = null;
    this.controls.hello(message);
    this.steering.offer(message.keys, message.key_actions ?? {});
    this.bars = new Bars(byId("bars"), message.actions);
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
    this.isFresh = true;
    // Of another session, to which the episodes of the last do not belong.
    if (this.frame && frame.number < this.frame.number) {
      this.numbers.forget();
      this.episode.forget();
    }
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
    if (this.isFresh) this.showWaiting(false);
    byId("controls").hidden = byId("episode-card").hidden = false;
    if (frame.scene) this.view.showScene(frame.scene);
    else if (frame.image) this.view.showImage(frame.image);
    this.handles.show(frame.scene);
    byId("help-handles").hidden = !frame.scene?.handles?.length;
    this.numbers.show(frame);
    this.numbers.drawSuccesses();
    this.bars?.show(frame);
    this.controls.show(frame.control);
    this.showPerson();
    this.hint();
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

  /** Paused, a person's step stays in sight, but steering ends with the last key. */
  showPerson() {
    const steers = this.frame?.person && (this.frame.control.playing || this.steering.held.length > 0);
    byId("person").hidden = !steers;
  }

  /** What can be dragged is said until somebody has, and whenever there is the time to read it. */
  hint() {
    byId("drag-hint").classList.toggle("away", this.handles.isTouched && this.frame?.control.playing);
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
    if (this.isFresh || level === "error") notify(text, level);
    if (!this.isFresh) this.say(text, level);
  }

  /** What was wrong stays in sight until it is mended. */
  awaitFrame(checkpoints) {
    const { hidden, dataset } = byId("waiting");
    if (this.isFresh || checkpoints.length === 0 || (!hidden && dataset.level === "error")) return;
    this.say(LOADING, "info");
  }

  say(text, level) {
    const waiting = byId("waiting");
    waiting.textContent = text;
    waiting.dataset.level = level;
    this.showWaiting(true);
  }

  showWaiting(isShown) {
    byId("waiting").hidden = !isShown;
    byId("watch").classList.toggle("is-waiting", isShown);
  }
}
