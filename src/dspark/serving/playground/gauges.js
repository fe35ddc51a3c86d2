// How the server fares: asked once a second while the page is seen, shown as figures and short curves.

import { state } from "./client.js";
import { byId, drawing, figure, percent } from "./dom.js";

const KEPT = 60; // seconds of history
const WIDTH = 100;
const HEIGHT = 24;

/** A figure with its last minute as curves; the first one is filled. */
class Gauge {
  constructor(id, digits, curves = 1) {
    this.root = byId(id);
    this.value = this.root.querySelector("b");
    this.digits = digits;
    this.past = Array.from({ length: curves }, () => []);
    const view = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" };
    const box = drawing("svg", view);
    this.area = drawing("path", { class: "area" });
    this.lines = this.past.map((_, index) => drawing("path", { class: `line line-${index}` }));
    box.append(this.area, ...this.lines);
    this.root.append(box);
  }

  /** Append one value a curve; null leaves a gap. */
  show(...values) {
    this.value.textContent = figure(values[0], this.digits);
    values.forEach((value, index) => {
      this.past[index].push(typeof value === "number" ? value : null);
      if (this.past[index].length > KEPT) this.past[index].shift();
    });
    const most = Math.max(1e-9, ...this.past.flat().filter((value) => value !== null)) * 1.08;
    // A second curve that is nought throughout would only underline the first.
    this.past.forEach((past, index) => {
      const shown = index === 0 || past.some(Boolean);
      this.lines[index].setAttribute("d", shown ? curve(past, most) : "");
    });
    this.area.setAttribute("d", area(this.past[0], most));
  }
}

/** The stretches of history between gaps, as lists of points. */
function stretches(past, most) {
  const found = [[]];
  const step = WIDTH / (KEPT - 1);
  past.forEach((value, index) => {
    if (value === null) return found.push([]);
    const x = WIDTH - (past.length - 1 - index) * step;
    return found.at(-1).push([x, HEIGHT - 1 - (value / most) * (HEIGHT - 2)]);
  });
  return found.filter((stretch) => stretch.length);
}

const path = (points) => points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join(" L ");

function curve(past, most) {
  return stretches(past, most).map((points) => `M ${path(points)}${points.length > 1 ? "" : " h .1"}`).join(" ");
}

function area(past, most) {
  const foot = ([x]) => [x, HEIGHT];
  const closed = (points) => `M ${path([foot(points[0]), ...points, foot(points.at(-1))])} Z`;
  return stretches(past, most).map(closed).join(" ");
}

/** Seconds in words, two units at most. */
export function duration(seconds) {
  if (typeof seconds !== "number") return "–";
  const minutes = Math.floor(seconds / 60);
  const hours = Math.floor(minutes / 60);
  if (hours >= 24) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(seconds)} s`;
}

/** Ask for the state for ever and show it; ``heard`` is handed each one, null where none came. */
export function watch(heard) {
  const speed = new Gauge("gauge-speed", 1);
  const tau = new Gauge("gauge-tau", 2);
  const verify = new Gauge("gauge-verify", 2);
  const load = new Gauge("gauge-load", 0, 2);

  function show(now) {
    speed.show(now?.tok_s ?? null);
    tau.show(now?.tau ?? null);
    verify.show(now?.verify_length ?? null);
    load.show(now?.running ?? null, now?.waiting ?? null);
    byId("waiting").textContent = now?.waiting ? `running, ${now.waiting} waiting` : "running";
    byId("acceptance").textContent = percent(now?.acceptance);
    byId("step").textContent = typeof now?.step_ms === "number" ? `${figure(now.step_ms, 1)} ms` : "–";
    byId("kv").textContent = percent(now?.kv_cache_usage);
    byId("uptime").textContent = duration(now?.uptime_s);
    byId("resting").hidden = !now?.resting;
    document.querySelector(".gauges").classList.toggle("stale", !now);
    heard(now);
  }

  let timer = 0;
  let asking = false;
  async function ask() {
    clearTimeout(timer);
    if (asking || document.hidden) return;
    asking = true;
    show(await state().catch(() => null));
    asking = false;
    timer = setTimeout(ask, 1000);
  }
  document.addEventListener("visibilitychange", ask);
  ask();
}
