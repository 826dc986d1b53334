// A scene, or a picture, on the canvas. World coordinates: x to the right, y upwards.

import { short } from "./format.js";
import { colours } from "./theme.js";

const THINNEST = 1;
const LARGEST_HEIGHT = 560;
const ROOM_FOR_NUMBERS = 44;

export class SceneView {
  constructor(stage, picture, canvas) {
    this.stage = stage;
    this.picture = picture;
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.scene = null;
    this.bitmap = null;
    this.table = null;
    this.onResize = () => {};
    new ResizeObserver(() => {
      this.draw();
      this.onResize();
    }).observe(stage);
  }

  /** Of the newest of pictures that arrive while another is being decoded. */
  async showImage(url) {
    this.scene = null;
    this.next = url;
    if (this.decoding) return;
    this.decoding = true;
    try {
      while (this.next) {
        const newest = this.next;
        this.next = null;
        const bitmap = await decoded(newest);
        this.bitmap?.close();
        this.bitmap = bitmap;
        this.draw();
      }
    } finally {
      this.decoding = false;
    }
  }

  showScene(scene) {
    this.scene = scene;
    this.draw();
  }

  draw() {
    if (this.scene) {
      const [left, bottom] = this.scene.low;
      const [right, top] = this.scene.high;
      this.fit(right - left, top - bottom);
      this.paint(left, top);
    } else if (this.bitmap) {
      this.fit(this.bitmap.width, this.bitmap.height);
      this.context.drawImage(this.bitmap, 0, 0, this.canvas.width, this.canvas.height);
    }
  }

  /** As large as fits, sharp at whatever the screen's density is. */
  fit(wide, high) {
    const room = this.stage.clientWidth;
    const tallest = Math.max(240, Math.min(LARGEST_HEIGHT, 0.6 * innerHeight));
    const scale = Math.min(room / wide, tallest / high);
    const [width, height] = [Math.round(wide * scale), Math.round(high * scale)];
    const density = devicePixelRatio || 1;
    const [columns, rows] = [Math.max(1, Math.round(width * density)), Math.max(1, Math.round(height * density))];
    if (this.canvas.width !== columns || this.canvas.height !== rows) {
      [this.canvas.width, this.canvas.height] = [columns, rows];
      this.picture.style.width = `${width}px`;
      this.picture.style.height = `${height}px`;
    }
    this.scale = columns / wide;
    this.density = density;
  }

  paint(left, top) {
    const { context, scene, scale } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const x = (world) => (world - left) * scale;
    const y = (world) => (top - world) * scale;
    const onGrid = this.table && scene.cells;
    // Whatever stands in the cells stands on the table's colours too.
    let first = onGrid ? scene.shapes.findIndex((shape) => shape[0] !== "polygon") : 0;
    if (first < 0) first = scene.shapes.length;
    for (let i = 0; i < first; i++) this.shape(scene.shapes[i], x, y);
    if (onGrid) this.paintTable();
    for (let i = first; i < scene.shapes.length; i++) this.shape(scene.shapes[i], x, y);
  }

  shape(shape, x, y) {
    const { context, scale } = this;
    const colour = colours[shape[1]] ?? colours.ink;
    if (shape[0] === "polygon") {
      context.fillStyle = colour;
      trace(context, shape[2], x, y);
      context.fill();
    } else if (shape[0] === "circle") {
      context.fillStyle = colour;
      context.beginPath();
      context.arc(x(shape[2]), y(shape[3]), shape[4] * scale, 0, 2 * Math.PI);
      context.fill();
    } else if (shape[0] === "line") {
      context.strokeStyle = colour;
      context.lineWidth = Math.max(shape[2] * scale, THINNEST * this.density);
      context.lineCap = context.lineJoin = "round";
      trace(context, shape[3], x, y);
      context.stroke();
    } else if (shape[0] === "label") {
      this.write(shape[4], x(shape[2]), y(shape[3]), shape[5] * scale, colour);
    }
  }

  write(text, x, y, size, colour) {
    const { context } = this;
    context.fillStyle = colour;
    context.font = `${size}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(text, x, y);
  }

  /** The best value of each state as warmth, and the greedy actions as arrows. States where nothing was learned, and
   * ends, have zeros only. */
  paintTable() {
    const { context, table } = this;
    const [wide, high] = [this.canvas.width / table.columns, this.canvas.height / table.rows];
    const side = Math.min(wide, high);
    const span = table.high - table.low || 1;
    table.values.forEach((values, state) => {
      if (values.every((value) => value === 0)) return;
      const best = Math.max(...values);
      const left = (state % table.columns) * wide;
      const top = Math.floor(state / table.columns) * high;
      context.globalAlpha = 0.1 + 0.75 * ((best - table.low) / span);
      context.fillStyle = colours.heat;
      context.fillRect(left + 0.04 * wide, top + 0.04 * high, 0.92 * wide, 0.92 * high);
      context.globalAlpha = 1;
      if (values.some((value) => value !== best)) {
        values.forEach((value, action) => {
          if (value === best && table.directions?.[action]) {
            this.arrow(left + wide / 2, top + high / 2, table.directions[action], side);
          }
        });
      }
      if (side / this.density >= ROOM_FOR_NUMBERS) {
        this.write(short(best), left + wide / 2, top + 0.87 * high, 11 * this.density, colours.text);
      }
    });
  }

  arrow(x, y, [right, down], side) {
    const { context } = this;
    const [length, head] = [0.25 * side, 0.08 * side];
    const [endX, endY] = [x + right * length, y + down * length];
    context.strokeStyle = colours.text;
    context.lineWidth = Math.max(0.025 * side, THINNEST * this.density);
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(x + 0.3 * right * length, y + 0.3 * down * length);
    context.lineTo(endX, endY);
    context.moveTo(endX - head * (right + down), endY - head * (down - right));
    context.lineTo(endX, endY);
    context.lineTo(endX - head * (right - down), endY - head * (down + right));
    context.stroke();
  }
}

function trace(context, points, x, y) {
  context.beginPath();
  context.moveTo(x(points[0]), y(points[1]));
  for (let i = 2; i < points.length; i += 2) context.lineTo(x(points[i]), y(points[i + 1]));
}

// By hand, because the page's own rules forbid it to load from anywhere but the server, data addresses included.
function decoded(address) {
  const comma = address.indexOf(",");
  const bytes = Uint8Array.from(atob(address.slice(comma + 1)), (character) => character.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type: address.slice(5, address.indexOf(";")) }));
}
