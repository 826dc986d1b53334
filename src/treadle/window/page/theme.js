// Light or dark: the system's wish, or the person's own, which the browser keeps.

const ORDER = ["auto", "light", "dark"];
const NAMES = { auto: "as the system", light: "light", dark: "dark" };
const SCENE_COLOURS = ["ink", "muted", "ground", "wall", "agent", "goal", "danger", "accent"];
const OTHERS = ["text", "dim", "line", "surface", "heat"];

/** Colours by name, as canvases take them; the same object for good, filled anew when the theme changes. */
export const colours = {};
const listeners = [];

export function whenThemeChanges(listener) {
  listeners.push(listener);
}

export function startTheme(button) {
  let chosen = stored();
  const apply = () => {
    document.documentElement.dataset.theme = chosen;
    button.textContent = `theme: ${NAMES[chosen]}`;
    read();
    for (const listener of listeners) listener();
  };
  button.addEventListener("click", () => {
    chosen = ORDER[(ORDER.indexOf(chosen) + 1) % ORDER.length];
    store(chosen);
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  apply();
}

// A custom property keeps what was written, light-dark() included; only a real property has the colour it comes to.
function read() {
  const probe = document.createElement("span");
  document.body.append(probe);
  for (const name of [...SCENE_COLOURS, ...OTHERS]) {
    probe.style.color = `var(--${name})`;
    colours[name] = getComputedStyle(probe).color;
  }
  probe.remove();
}

// Where storage is forbidden the choice lasts as long as the page.
function stored() {
  try {
    const theme = localStorage.getItem("treadle-theme");
    return ORDER.includes(theme) ? theme : "auto";
  } catch {
    return "auto";
  }
}

function store(theme) {
  try {
    localStorage.setItem("treadle-theme", theme);
  } catch {
    // See above.
  }
}
