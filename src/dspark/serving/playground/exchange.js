// One question and its answer on the page.

import { element } from "./dom.js";
import { figures, Rounds } from "./rounds.js";

const NOTES = {
  length: "Cut off: it reached the most tokens allowed.",
  stopped: "Stopped.",
};

/** A question, the answer as it comes, and what became of it. */
export class Exchange {
  constructor(question, retry) {
    this.question = question;
    this.answer = "";
    this.root = element("article", "exchange");
    const asked = element("div", "asked");
    const words = element("p", "", question);
    words.dir = "auto";
    asked.append(element("h2", "unseen", "You"), words);
    this.reply = element("div", "reply");
    this.root.append(asked, this.reply);
    this.retry = retry;
    this.begin();
  }

  /** Empty the answer, for the first try or the next. */
  begin() {
    this.answer = "";
    this.rounds = new Rounds();
    this.started = performance.now();
    this.summary = null;
    this.finish = "";
    this.text = element("p", "text");
    this.text.dir = this.rounds.text.dir = "auto";
    this.figures = element("dl", "figures");
    this.told = element("p", "told note");
    this.reply.replaceChildren(element("h2", "unseen", "Answer"), this.text, this.rounds.text, this.rounds.strip);
    this.reply.append(this.figures, this.told);
    this.reply.className = "reply streaming";
    this.reply.onpointerover = (event) => this.point(event.target.closest("[data-round]"));
    this.reply.onpointerleave = () => this.point(null);
  }

  /** Take in one chunk of the stream. Gives its text. */
  take(chunk) {
    const choice = chunk.choices?.[0];
    const text = choice?.delta?.content ?? "";
    this.answer += text;
    this.text.append(text);
    const rounds = chunk.dspark?.rounds;
    if (rounds?.length) for (const round of rounds) this.rounds.add(round);
    else this.rounds.complete(this.answer);
    this.finish = choice?.finish_reason ?? this.finish;
    this.summary = chunk.dspark?.summary ?? this.summary;
    this.reply.classList.toggle("traced", this.rounds.seen.length > 0);
    this.count();
    return text;
  }

  /** The answer is over: by itself, or because somebody stopped it. */
  end(reason = this.finish) {
    this.reply.classList.remove("streaming");
    this.count();
    if (this.summary) this.figures.append(mode(this.summary.mode));
    if (NOTES[reason]) this.figures.before(element("p", "note", NOTES[reason]));
  }

  /** Say what went wrong, and offer another try. */
  fail(refusal) {
    this.end("");
    const box = element("div", "failure");
    box.setAttribute("role", "alert");
    box.append(element("strong", "", refusal.title), element("p", "", refusal.message));
    if (refusal.advice) box.append(element("p", "", refusal.advice));
    const again = element("button", "quiet", "Try again");
    again.type = "button";
    again.onclick = () => this.retry(this);
    box.append(again);
    this.reply.append(box);
  }

  /** Write the figures anew. */
  count() {
    const seconds = (performance.now() - this.started) / 1000;
    const rows = figures(this.summary, this.rounds, seconds).map(([value, meaning]) => {
      const row = element("div");
      row.append(element("dt", "", meaning), element("dd", "", value));
      return row;
    });
    this.figures.replaceChildren(...rows);
  }

  point(target) {
    const index = target ? Number(target.dataset.round) : -1;
    this.told.textContent = this.rounds.light(index);
  }
}

function mode(name) {
  const row = element("div");
  row.append(element("dt", "", "mode"), element("dd", "", name));
  return row;
}
