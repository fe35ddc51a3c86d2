// Rounds as one sees them: their tokens in the text, and a column a round in the strip below.

import { element, figure, percent } from "./dom.js";

const SOURCES = { drafter: "drafted", lookup: "copied" };

// A rejected line break would tear the text apart: it is shown as a sign.
const visible = (piece) => piece.replaceAll("\n", "↵").replaceAll("\t", "⇥");

/** Append tokens of one kind. Marks begin and end where words do; a thin line joins the words of one run. */
function write(marks, kind, pieces) {
  pieces.forEach((piece, index) => {
    const space = /^ ?(?! )/.exec(piece)?.[0] ?? "";
    if (space) marks.append(element("span", `${index ? "join" : "gap"} ${kind}`, space));
    marks.append(element("span", `token ${kind}`, piece.slice(space.length)));
  });
}

/** The tokens of one answer, its strip, and the counts of both. */
export class Rounds {
  constructor() {
    this.text = element("p", "tokens");
    this.strip = element("div", "strip");
    // What a screen reader reads is the plain text beside it.
    this.text.ariaHidden = this.strip.ariaHidden = "true";
    this.seen = [];
    this.tokens = this.characters = this.verified = this.accepted = 0;
  }

  /** Tokens gained a round; reading the prompt gives one as well, but is none. */
  get tau() {
    const prompt = this.seen.length && !this.seen[0].drafts?.length ? 1 : 0;
    const rounds = this.seen.length - prompt;
    return rounds ? (this.tokens - (prompt && this.seen[0].tokens.length)) / rounds : NaN;
  }

  /** Show a round: its accepted drafts, the rejected ones, the model's own token. */
  add(round) {
    const drafts = round.drafts ?? [];
    const tokens = round.tokens ?? [];
    const kept = tokens.slice(0, round.accepted);
    const kind = round.source === "lookup" ? "copied" : "accepted";
    const marks = element("span", "round");
    const column = element("span", "round");
    marks.dataset.round = column.dataset.round = this.seen.length;
    write(marks, kind, kept);
    write(marks, "rejected", drafts.slice(round.accepted).map(visible));
    write(marks, "own", tokens.slice(round.accepted));
    for (const token of marks.querySelectorAll(".token")) column.append(element("i", token.classList[1]));
    this.text.append(marks);
    this.strip.append(column);
    this.seen.push(round);
    this.tokens += tokens.length;
    this.characters += tokens.join("").length;
    this.verified += drafts.length;
    this.accepted += round.accepted;
  }

  /** Show what of the answer came without its rounds, if anything. */
  complete(answer) {
    this.text.append(answer.slice(this.characters));
    this.characters = Math.max(this.characters, answer.length);
  }

  /** Light up one round, in the text and in the strip; none: -1. Gives what it was, in words. */
  light(index) {
    for (const lit of [...this.text.querySelectorAll(".lit"), ...this.strip.querySelectorAll(".lit")])
      lit.classList.remove("lit");
    const round = this.seen[index];
    if (!round) return "";
    for (const part of [this.text, this.strip])
      part.querySelector(`[data-round="${index}"]`)?.classList.add("lit");
    const drafts = round.drafts ?? [];
    if (!drafts.length && !index) return "The prompt was read, and the first token came with it.";
    if (!drafts.length) return `Round ${index}: nothing drafted, one token of the model’s own.`;
    const how = SOURCES[round.source] ?? "drafted";
    return `Round ${index}: ${round.accepted} of ${drafts.length} ${how} tokens accepted.`;
  }
}

/** The figures of an answer as [value, meaning], from the server's summary, or what was seen here. */
export function figures(summary, rounds, seconds) {
  if (summary) {
    const { tok_s, tau, accepted, verified, drafted } = summary;
    const found = [[figure(tok_s, 1), "tokens a second"], [figure(tau, 2), "tokens a round (tau)"]];
    if (!drafted) return [...found, ["0", "tokens drafted"]];
    const share = verified ? `, ${percent(accepted / verified)}` : "";
    found.push([`${accepted} of ${verified}`, `verified drafts accepted${share}`], [String(drafted), "tokens drafted"]);
    return found;
  }
  if (!rounds.seen.length) return [];
  return [
    [figure(rounds.tokens / seconds, 1), "tokens a second"],
    [figure(rounds.tau, 2), "tokens a round (tau)"],
    [`${rounds.accepted} of ${rounds.verified}`, "verified drafts accepted"],
  ];
}
