// Which page this is: the list of a folder's runs, or one run.

import { fetchRuns, RunList } from "./list.js";
import { startTheme } from "./theme.js";
import { Watch } from "./watch.js";

const AGAIN_MS = 1000;
const byId = (id) => document.getElementById(id);

const onChange = (connected) => {
  byId("lost").hidden = connected;
};

async function begin() {
  let found;
  try {
    found = await fetchRuns();
  } catch {
    onChange(false);
    setTimeout(begin, AGAIN_MS);
    return;
  }
  onChange(true);
  const asked = location.pathname.match(/^\/run\/([^/]+)$/);
  const name = asked ? decodeURIComponent(asked[1]) : found.folder === null ? found.runs[0]?.name : null;
  const run = found.runs.find((other) => other.name === name) ?? { name, problem: "unknown" };
  byId("home").setAttribute("aria-label", found.folder === null ? "Treadle" : "Treadle: all runs");
  if (name) {
    byId("home").classList.toggle("back", found.folder !== null);
    byId("watch").hidden = false;
    new Watch(run);
  } else {
    byId("list").hidden = false;
    new RunList(found, onChange);
  }
}

startTheme(byId("theme"));
begin();
