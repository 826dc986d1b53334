// Which page this is: the list of a folder's runs, or one run.

import { fetched, RunList } from "./list.js";
import { startTheme } from "./theme.js";
import { Watch } from "./watch.js";

const AGAIN_MS = 1000;
const byId = (id) => document.getElementById(id);

const onChange = (connected) => {
  byId("lost").hidden = connected;
};

const asked = location.pathname.match(/^\/run\/([^/]+)$/)?.[1];

async function begin() {
  let found;
  try {
    found = await fetched(asked ? `/api/about/${asked}` : "/api/about");
  } catch {
    onChange(false);
    setTimeout(begin, AGAIN_MS);
    return;
  }
  onChange(true);
  byId("home").setAttribute("aria-label", found.folder === null ? "Treadle" : "Treadle: all runs");
  if (found.run) {
    byId("home").classList.toggle("back", found.folder !== null);
    byId("watch").hidden = false;
    new Watch(found.run);
  } else {
    byId("list").hidden = false;
    new RunList(onChange);
  }
}

startTheme(byId("theme"));
begin();
