// Short sentences at the foot of the page; the last few only.

const KEPT = 3;
const SHOWN_MS = { info: 5000, error: 12000 };

export function notify(text, level = "info") {
  const box = document.getElementById("notices");
  // The same again is no news: it stays longer.
  for (const old of box.children) if (old.firstChild.textContent === text) old.remove();
  const notice = document.createElement("div");
  notice.className = `notice ${level === "error" ? "error" : "info"}`;
  const words = document.createElement("span");
  words.textContent = text;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "quiet";
  close.textContent = "×";
  close.setAttribute("aria-label", "dismiss");
  close.addEventListener("click", () => notice.remove());
  notice.append(words, close);
  box.append(notice);
  while (box.children.length > KEPT) box.firstChild.remove();
  setTimeout(() => notice.remove(), SHOWN_MS[level] ?? SHOWN_MS.info);
}
