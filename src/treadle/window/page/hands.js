// What a person does with the world itself: moving handles, and steering by the arrow keys.

const STEP = 0.02;
const FINE_STEP = 0.005;
const LEAST_PIXELS = 36;
const ANSWERED_MS = 300;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const SIGNS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };

/** The scene's handles: a button over each, which a mouse, a finger and the arrow keys move. */
export class Handles {
  constructor(view, send, option) {
    this.view = view;
    this.send = send;
    this.option = option;
    this.follow = option.querySelector("input");
    this.buttons = new Map();
    this.scene = null;
    this.waiting = null;
    this.wanted = null;
    view.onResize = () => this.place();
    view.stage.addEventListener("pointermove", (event) => {
      if (this.follow.checked && this.target && event.pointerType !== "touch" && !event.buttons) {
        this.drag(this.target, this.world(event));
      }
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
    const targets = handles.filter(([name]) => name === "goal" || name === "target");
    this.target = targets.length === 1 ? targets[0][0] : null;
    this.option.hidden = !this.target;
    if (this.target) this.option.querySelector("span").textContent = `the ${this.target} follows the pointer`;
    this.place();
  }

  place() {
    if (!this.scene) return;
    const [left, bottom] = this.scene.low;
    const [right, top] = this.scene.high;
    const pixels = this.view.picture.clientWidth / (right - left);
    for (const [name, x, y, radius] of this.scene.handles ?? []) {
      const button = this.buttons.get(name) ?? this.make(name);
      const size = Math.max(LEAST_PIXELS, 2 * radius * pixels);
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

  /** At most one message for each picture of the screen: the last place. */
  drag(handle, [x, y]) {
    const first = this.waiting === null;
    this.waiting = { type: "drag", handle, x, y };
    if (first) {
      requestAnimationFrame(() => {
        this.send(this.waiting);
        this.waiting = null;
      });
    }
  }
}

/** Arrow keys held down, on the keyboard or on the screen, in the order in which they were pressed. */
export class Steering {
  constructor(pad, send) {
    this.pad = pad;
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

  offer(keys) {
    this.held = [];
    if (keys.join() === this.keys.join()) return;
    this.keys = keys;
    this.pad.hidden = keys.length === 0;
    this.pad.replaceChildren(...keys.map((key) => this.button(key)));
  }

  button(key) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.key = key;
    button.textContent = SIGNS[key] ?? key;
    button.setAttribute("aria-label", `steer ${key.replace("Arrow", "").toLowerCase()}`);
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

/** Whether an element is typed into: neither shortcuts nor steering may take its keys. */
export function isField(element) {
  if (!(element instanceof HTMLElement)) return false;
  return element.isContentEditable || (element.matches("input, select, textarea") && element.type !== "checkbox");
}

function takesArrows(element) {
  return isField(element) || (element instanceof HTMLElement && element.matches(".handle"));
}
