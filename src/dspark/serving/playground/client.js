// The two things that the page asks of its server: an answer as a stream of chunks, and how it fares.
// Paths are relative to the page, so that it works behind a prefix as well.

/** What went wrong, in words for a person: a title, the server's own message, and what to do. */
export class Refusal extends Error {
  constructor(title, detail, { status = 0, advice = "" } = {}) {
    super(detail);
    this.title = title;
    this.status = status;
    this.advice = advice;
  }
}

const TITLES = {
  400: "The server can’t do that",
  401: "The server wants an API key",
  403: "The server wants another API key",
  404: "The server doesn’t know that",
  413: "That is too long for the server",
  422: "The server can’t do that",
  429: "The server is busy",
  503: "The server can’t answer now",
};

async function refusalOf(response) {
  const text = await response.text().catch(() => "");
  let detail = text;
  try {
    const found = JSON.parse(text);
    detail = found.error?.message ?? found.detail ?? found.message ?? text;
    if (typeof detail !== "string") detail = JSON.stringify(detail);
  } catch {
    // Not JSON (a proxy's page, say): as it is.
  }
  const wait = response.headers.get("Retry-After");
  let advice = "";
  if (response.status === 401 || response.status === 403) advice = "Enter it under Settings, then try again.";
  else if (wait) advice = `It asks to wait ${wait} s.`;
  const title = `${TITLES[response.status] ?? "The server failed"} (${response.status})`;
  return new Refusal(title, detail.slice(0, 600) || response.statusText, { status: response.status, advice });
}

async function reach(path, options) {
  try {
    return await fetch(new URL(path, document.baseURI), { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const advice = "Is dspark serve still running?";
    throw new Refusal("The server can’t be reached", "Nothing answered.", { advice });
  }
}

/** The data of server-sent events, one string an event. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest = (rest + (value ?? "")).replaceAll("\r\n", "\n");
      const parts = rest.split("\n\n");
      rest = done ? "" : parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // the server hears at once that nobody reads on
  }
}

const brokenOff = () =>
  new Refusal("The answer broke off", "The stream ended before the server had said that it was done.");

/** Chunks of a chat completion, in order. Throws a Refusal, or an AbortError when stopped. */
export async function* chat(request, key, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const body = JSON.stringify({ ...request, stream: true });
  const response = await reach("v1/chat/completions", { method: "POST", headers, body, signal });
  if (!response.ok) throw await refusalOf(response);
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refusal("The answer broke off", chunk.error.message ?? JSON.stringify(chunk.error));
      yield chunk;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Refusal) throw error;
    throw brokenOff();
  }
  throw brokenOff();
}

/** How the server fares, as GET /dspark/state says it. */
export async function state() {
  const response = await reach("dspark/state", { signal: AbortSignal.timeout(4000) });
  if (!response.ok) throw await refusalOf(response);
  return response.json();
}
