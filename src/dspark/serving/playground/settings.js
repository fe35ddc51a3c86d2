// What the person has set, read when it is needed. Nothing of it is stored but the colours.

import { byId } from "./dom.js";

const MODE_NOTES = {
  "": "What the server was started with.",
  off: "No drafts: the model alone, a token a step.",
  fixed: "The same number of drafts in every round.",
  adaptive: "As many drafts as are worth verifying now.",
};

const chosen = () => document.querySelector('input[name="mode"]:checked').value;

/** The ``speculative`` part of a request; without a mode the server takes its own. */
export function speculative() {
  const mode = chosen();
  const wish = { summary: true, trace: byId("show-tokens").checked };
  if (mode) wish.mode = mode;
  if (mode === "fixed") wish.draft_tokens = Math.min(byId("drafts").valueAsNumber || 4, byId("drafts").max);
  return wish;
}

/** Temperature and length as the API names them. */
export function sampling() {
  return { temperature: byId("temperature").valueAsNumber, max_tokens: byId("max-tokens").valueAsNumber || 256 };
}

export const systemPrompt = () => byId("system").value.trim();
export const apiKey = () => byId("key").value.trim();

/** Open or close the panel, where it is one (on a phone). */
export function openSettings(open) {
  document.body.classList.toggle("settings-open", open);
  byId("open-settings").setAttribute("aria-expanded", String(open));
}

/** Modes that the server lacks can't be chosen; its own is named. */
export function offer(state) {
  const modes = state.modes ?? [];
  for (const input of document.querySelectorAll('input[name="mode"]')) {
    const known = modes.some((mode) => mode.replace(/\d+$/, "") === input.value);
    input.disabled = Boolean(input.value && modes.length && !known);
  }
  const fixed = modes.map((mode) => Number(/^fixed(\d+)$/.exec(mode)?.[1] ?? 0));
  byId("drafts").max = Math.max(...fixed) || 64;
  MODE_NOTES[""] = `What the server was started with: ${state.mode}.`;
  describe();
}

function describe() {
  byId("mode-note").textContent = MODE_NOTES[chosen()];
  byId("drafts-row").hidden = chosen() !== "fixed";
}

function paint(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").setAttribute("aria-pressed", String(dark));
}

function watchColours() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = localStorage.getItem("dspark-theme");
  byId("theme").setAttribute("aria-pressed", String(system.matches));
  if (stored) paint(stored === "dark");
  byId("theme").onclick = () => {
    const dark = byId("theme").getAttribute("aria-pressed") !== "true";
    paint(dark);
    // Back to what the system says: then it goes on deciding.
    if (dark === system.matches) localStorage.removeItem("dspark-theme");
    else localStorage.setItem("dspark-theme", dark ? "dark" : "light");
  };
  system.onchange = () => {
    if (!localStorage.getItem("dspark-theme")) paint(system.matches);
  };
}

/** Make the controls work. */
export function start() {
  for (const input of document.querySelectorAll('input[name="mode"]')) input.onchange = describe;
  byId("temperature").oninput = () => (byId("temperature-shown").value = byId("temperature").value);
  byId("open-settings").onclick = () => openSettings(!document.body.classList.contains("settings-open"));
  byId("close-settings").onclick = () => {
    openSettings(false);
    byId("open-settings").focus();
  };
  byId("show-tokens").onchange = () => document.body.classList.toggle("plain", !byId("show-tokens").checked);
  byId("show-rejected").onclick = () => {
    const hidden = document.body.classList.toggle("no-rejected");
    byId("show-rejected").setAttribute("aria-pressed", String(!hidden));
  };
  watchColours();
  describe();
}
