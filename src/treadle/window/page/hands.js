// What a person does with the world itself: moving handles, and steering by the arrow keys.

const STEP = 0.02;
const FINE_STEP = 0.005;
const LEAST_PIXELS = 36;
const ANSWERED_MS = 300;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const SIGNS = {
  ArrowLeft: "←",
  ArrowRight: "→",
  ArrowUp: "↑",
  ArrowDown: "↓",
  PageUp: "PgUp",
  PageDown: "PgDn",
  " ": "space",
};
/** Pixels around a thing at which its ring is drawn. */
const RING = 5;

/** The scene's handles: a button over each, which a mouse, a finger and the arrow keys move. Handles such as "target"
 * and "target (side)" are one thing in two views. */
export class Handles {
  /** `option` is the box for following the pointer, `hint` the line that says what can be dragged. */
  constructor(view, send, option, hint) {
    this.view = view;
    this.hint = hint;
    this.isTouched = false;
    this.targets = [];
    this.send = send;
    this.option = option;
    this.follow = option.querySelector("input");
    this.buttons = new Map();
    this.scene = null;
    this.waiting = new Map();
    this.wanted = null;
    view.onResize = () => this.place();
    view.stage.addEventListener("pointermove", (event) => {
      if (!this.follow.checked || this.targets.length === 0 || event.pointerType === "touch" || event.buttons) return;
      const place = this.world(event);
      const target = this.targets.find((name) => isWithin(place, this.viewOf(name)));
      if (target) this.drag(target, place);
    });
  }

  show(scene) {
    this.scene = scene;
    const handles = scene?.handles ?? [];
    for (const [name, button] of this.buttons) {
      if (!handles.some((handle) => handle[0] === name)) {
        button.remove();
        this.buttons.delete(name);
      }
    }
    const things = new Set(handles.map(([name]) => thing(name)));
    const followers = [...things].filter((name) => things.size === 1 || name === "goal" || name === "target");
    const names = handles.map(([name]) => name);
    this.targets = followers.length === 1 ? names.filter((name) => thing(name) === followers[0]) : [];
    this.option.hidden = this.targets.length === 0;
    if (!this.option.hidden) this.option.querySelector("span").textContent = `the ${followers[0]} follows the pointer`;
    const kinds = [...new Set([...things].map((name) => name.replace(/ \d+$/, "")))];
    const text = `drag ${kinds.map((kind) => (things.has(kind) ? `the ${kind}` : `any ${kind}`)).join(" or ")}`;
    if (this.hint.textContent !== text) this.hint.textContent = text;
    this.hint.hidden = handles.length === 0;
    this.place();
  }

  place() {
    if (!this.scene) return;
    const [left, bottom] = this.scene.low;
    const [right, top] = this.scene.high;
    const pixels = this.view.picture.clientWidth / (right - left);
    for (const [name, x, y, radius] of this.scene.handles ?? []) {
      const button = this.buttons.get(name) ?? this.make(name);
      const size = Math.max(LEAST_PIXELS, 2 * (radius * pixels + RING));
      button.style.width = button.style.height = `${size}px`;
      button.style.left = `${(x - left) * pixels}px`;
      button.style.top = `${(top - y) * pixels}px`;
    }
  }

  make(name) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "handle";
    button.dataset.handle = name;
    button.setAttribute("aria-label", `${name}: drag, or move by the arrow keys`);
    let grip = null;
    button.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      button.setPointerCapture(event.pointerId);
      const [, x, y] = this.handle(name);
      const [px, py] = this.world(event);
      // What is taken hold of beside its middle must not jump there.
      grip = [x - px, y - py];
    });
    button.addEventListener("pointermove", (event) => {
      if (!grip) return;
      const [x, y] = this.world(event);
      this.drag(name, [x + grip[0], y + grip[1]]);
    });
    const release = () => (grip = null);
    button.addEventListener("pointerup", release);
    button.addEventListener("pointercancel", release);
    button.addEventListener("keydown", (event) => this.key(name, event));
    this.buttons.set(name, button);
    this.view.picture.append(button);
    return button;
  }

  /** The part of the scene in which a handle moves, as low and high corners: the widest ground that it lies on, of
   * which views beside one another have one each. */
  viewOf(name) {
    const [, x, y] = this.handle(name);
    const grounds = this.scene.shapes.filter((shape) => shape[0] === "polygon" && shape[1] === "ground").map(corners);
    const under = grounds.filter((ground) => isWithin([x, y], ground)).sort((a, b) => area(b) - area(a));
    return under[0] ?? [this.scene.low, this.scene.high];
  }

  handle(name) {
    return this.scene.handles.find((handle) => handle[0] === name);
  }

  key(name, event) {
    const direction = ARROWS[event.key];
    if (!direction || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    // Keys are faster than the answers: they count from where the handle is to be, not from where it is.
    const [, atX, atY] =
      this.wanted?.[0] === name && event.timeStamp < this.wantedUntil ? this.wanted : this.handle(name);
    const share = event.shiftKey ? FINE_STEP : STEP;
    const { low, high } = this.scene;
    const size = Math.max(high[0] - low[0], high[1] - low[1]);
    const [x, y] = this.inside([atX + direction[0] * share * size, atY + direction[1] * share * size]);
    this.wanted = [name, x, y];
    this.wantedUntil = event.timeStamp + ANSWERED_MS;
    this.drag(name, [x, y]);
  }

  world(event) {
    const box = this.view.picture.getBoundingClientRect();
    const { low, high } = this.scene;
    const x = low[0] + ((event.clientX - box.left) / box.width) * (high[0] - low[0]);
    const y = high[1] - ((event.clientY - box.top) / box.height) * (high[1] - low[1]);
    return this.inside([x, y]);
  }

  inside([x, y]) {
    const { low, high } = this.scene;
    return [Math.min(Math.max(x, low[0]), high[0]), Math.min(Math.max(y, low[1]), high[1])];
  }

  /** At most one message of each handle for each picture of the screen: its last place. */
  drag(handle, [x, y]) {
    this.isTouched = true;
    if (this.waiting.size === 0) {
      requestAnimationFrame(() => {
        for (const message of this.waiting.values()) this.send(message);
        this.waiting.clear();
      });
    }
    this.waiting.set(handle, { type: "drag", handle, x, y });
  }
}

/** What is moved by a handle. */
const thing = (name) => name.replace(/ \(.*\)$/, "");

const isWithin = ([x, y], [low, high]) => x >= low[0] && x <= high[0] && y >= low[1] && y <= high[1];
const area = ([low, high]) => (high[0] - low[0]) * (high[1] - low[1]);

function corners([, , points]) {
  const [xs, ys] = [0, 1].map((odd) => points.filter((_, i) => i % 2 === odd));
  return [
    [Math.min(...xs), Math.min(...ys)],
    [Math.max(...xs), Math.max(...ys)],
  ];
}

/** Arrow keys held down, on the keyboard or on the screen, in the order in which they were pressed. */
export class Steering {
  /** `help` has a list for what the keys do. */
  constructor(pad, help, send) {
    this.pad = pad;
    this.help = help;
    this.send = send;
    this.keys = [];
    this.held = [];
    addEventListener("keydown", (event) => {
      if (!this.keys.includes(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
      if (takesArrows(event.target)) return;
      event.preventDefault();
      if (!event.repeat) this.press(event.key);
    });
    addEventListener("keyup", (event) => this.release(event.key));
    addEventListener("blur", () => this.releaseAll());
    document.addEventListener("visibilitychange", () => document.hidden && this.releaseAll());
  }

  /** `does` says in words what a key does, where that is known. */
  offer(keys, does) {
    this.held = [];
    const now = JSON.stringify([keys, does]);
    if (now === this.offered) return;
    this.offered = now;
    this.keys = keys;
    this.does = does;
    this.pad.hidden = this.help.hidden = keys.length === 0;
    this.pad.replaceChildren(...keys.map((key) => this.button(key)));
    this.help.querySelector("dl").replaceChildren(...keys.map((key) => this.row(key)));
  }

  /** Of the help. */
  row(key) {
    const [row, term, said, sign] = ["div", "dt", "dd", "kbd"].map((kind) => document.createElement(kind));
    sign.textContent = SIGNS[key] ?? key;
    said.textContent = this.does[key] ?? plain(key);
    term.append(sign);
    row.append(term, said);
    return row;
  }

  button(key) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.key = key;
    const [sign, said] = [document.createElement("span"), document.createElement("small")];
    sign.textContent = SIGNS[key] ?? key;
    said.textContent = this.does[key] ?? "";
    button.append(sign, said);
    button.setAttribute("aria-label", `steer: ${this.does[key] ?? plain(key)}`);
    button.addEventListener("pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      this.press(key);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      button.addEventListener(end, () => this.release(key));
    }
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    return button;
  }

  press(key) {
    if (this.held.includes(key)) return;
    this.held.push(key);
    this.tell();
  }

  release(key) {
    if (!this.held.includes(key)) return;
    this.held = this.held.filter((other) => other !== key);
    this.tell();
  }

  releaseAll() {
    if (this.held.length === 0) return;
    this.held = [];
    this.tell();
  }

  tell() {
    this.send({ type: "keys", held: this.held });
  }
}

const plain = (key) => key.replace("Arrow", "").replace("Page", "page ").toLowerCase();

/** Whether an element is typed into: neither shortcuts nor steering may take its keys. */
export function isField(element) {
  if (!(element instanceof HTMLElement)) return false;
  return element.isContentEditable || (element.matches("input, select, textarea") && element.type !== "checkbox");
}

function takesArrows(element) {
  return isField(element) || (element instanceof HTMLElement && element.matches(".handle"));
}
