// The playground: a conversation with the server, and how its tokens came about.

import { chat, Refusal } from "./client.js";
import { byId, element } from "./dom.js";
import { Exchange } from "./exchange.js";
import { watch } from "./gauges.js";
import { apiKey, offer, openSettings, sampling, speculative, start, systemPrompt } from "./settings.js";

const thread = byId("thread");
const prompt = byId("prompt");

let exchanges = [];
let model = "";
let running = null; // the AbortController of the answer that is coming

/** What the model is to read: the system prompt, the turns that were answered, the question. */
function messages(current) {
  const system = systemPrompt();
  const found = system ? [{ role: "system", content: system }] : [];
  for (const one of exchanges) {
    if (one === current) break;
    if (!one.answer) continue; // it failed: the model never saw it
    found.push({ role: "user", content: one.question }, { role: "assistant", content: one.answer });
  }
  return [...found, { role: "user", content: current.question }];
}

async function answer(exchange) {
  running?.abort();
  const mine = (running = new AbortController());
  exchange.begin();
  busy(true);
  const speak = announcer();
  const follow = follower();
  try {
    const request = { model, messages: messages(exchange), ...sampling(), speculative: speculative() };
    for await (const chunk of chat(request, apiKey(), mine.signal)) {
      speak(exchange.take(chunk));
      follow();
    }
    exchange.end();
    speak("", true);
  } catch (error) {
    if (mine.signal.aborted) exchange.end("stopped");
    else exchange.fail(error instanceof Refusal ? error : new Refusal("The page failed", String(error)));
    if (error.status === 401 || error.status === 403) wantKey();
  } finally {
    if (running === mine) {
      running = null;
      busy(false);
    }
    follow();
  }
}

function send(text) {
  const question = text.trim();
  if (!question || running) return;
  const exchange = new Exchange(question, answer);
  exchanges.push(exchange);
  thread.append(exchange.root);
  byId("welcome").hidden = true;
  prompt.value = "";
  openSettings(false);
  thread.scrollTop = thread.scrollHeight;
  answer(exchange);
}

function clear() {
  running?.abort();
  for (const exchange of exchanges) exchange.root.remove();
  exchanges = [];
  byId("announcer").replaceChildren();
  byId("welcome").hidden = false;
  thread.scrollTop = 0;
  byId("clear").disabled = true;
  prompt.focus();
}

function busy(now) {
  byId("send").hidden = now;
  byId("stop").hidden = !now;
  byId("clear").disabled = !exchanges.length;
}

function wantKey() {
  openSettings(true);
  byId("key").focus();
}

/** Keeps the end of the thread in view for as long as the reader is there. */
function follower() {
  let asked = false;
  let there = true;
  thread.onscroll = () => (there = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 60);
  return () => {
    if (asked || !there) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      thread.scrollTop = thread.scrollHeight;
    });
  };
}

/** Hands a screen reader whole sentences: pieces of words would be read as such. */
function announcer() {
  let unsaid = "";
  byId("announcer").replaceChildren();
  return (text, over = false) => {
    unsaid += text;
    const ends = [". ", "! ", "? ", "\n"].map((sign) => unsaid.lastIndexOf(sign) + 1);
    const end = over ? unsaid.length : Math.max(...ends);
    if (unsaid.slice(0, end).trim()) byId("announcer").append(element("p", "", unsaid.slice(0, end)));
    unsaid = unsaid.slice(end);
  };
}

function heard(state) {
  byId("pulse").className = state ? (state.running ? "busy" : "well") : "lost";
  byId("server").textContent = state ? state.model : "The server doesn’t answer";
  byId("server-mode").textContent = state ? state.mode : "";
  if (!state) return;
  model = state.model;
  offer(state);
}

start();
watch(heard);
byId("composer").onsubmit = (event) => {
  event.preventDefault();
  send(prompt.value);
};
prompt.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send(prompt.value);
};
document.onkeydown = (event) => {
  if (event.key !== "Escape") return;
  if (document.body.classList.contains("settings-open")) byId("close-settings").click();
  else running?.abort();
};
byId("stop").onclick = () => {
  running?.abort();
  prompt.focus();
};
byId("clear").onclick = clear;
for (const button of byId("suggestions").children) button.onclick = () => send(button.textContent);
