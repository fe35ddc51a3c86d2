// Elements are made here, and text enters the page as text only.

/** An element with a class and a text; no markup is ever read from either. */
export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/** An SVG element with its attributes. */
export function drawing(name, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** A number with so many digits behind the point; a dash where there is none. */
export const figure = (value, digits = 0) =>
  typeof value === "number" && Number.isFinite(value) ? value.toFixed(digits) : "–";

/** A share as per cent. */
export const percent = (share) => (typeof share === "number" ? `${figure(100 * share)} %` : "–");
