"""What a demo's figures mean, in a few sentences: the same on the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dspark.report.demo import DemoRecord

BUSY_LOAD = 1.0
NOISY = 0.2  # quartiles that far apart, as a share of the median


def figure(value: float, digits: int = 2) -> str:
    """A figure, or a dash where there is none (no rounds)."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def headline(record: DemoRecord) -> str:
    """What happened, in a line that is true of this record."""
    pair = record.overall
    if pair.unexplained:
        return "Drafting changed the text"
    same = "The same text" if pair.equal == pair.total else "The same text but for ties"
    return f"{same}, {pair.speedup:.2f} times the speed"


def explanation(record: DemoRecord) -> list[str]:
    """How it works, where the gain comes from on this machine, and when there is none."""
    everything = record.overall
    how = (
        f"A small drafter proposes {record.block} tokens at a time and says how sure it is of each; the target checks"
        " those that are worth it on this machine in one pass, keeps the ones that it would have written itself, and"
        " puts its own token after the last of them. Where the last words stood before, what followed them then is"
        " proposed instead, which costs nothing. While drafts have not paid lately, the target goes on alone and tries"
        " again after some tokens. A wrong guess costs time and never changes the text: what comes out"
        " is the target's own, its mistakes included."
    )
    step, turn, even = record.step_ms, record.round_ms, record.break_even
    if not math.isfinite(even * everything.tau):
        return [how, "The answers were too short to time a whole round: give more --max-tokens."]
    gain = (
        f"Here a plain step takes {step:.1f} ms and yields one token; a speculative round (draft and check,"
        f" or a plain step where drafting does not pay) takes {turn:.1f} ms, {even:.2f} times as long, and yields"
        f" tau = {everything.tau:.2f} tokens on"
        f" average. {everything.tau:.2f} / {even:.2f} = {everything.tau / even:.2f}; measured end to end,"
        f" reading the prompt included, it is {everything.speedup:.2f} times the tokens a second."
    )
    if everything.speedup < 1:
        gain += " Here drafting costs more than it saves: this pair is slower than plain decoding."
    limit = (
        "It helps little on text that the drafter can't foresee, at a high temperature, or when many requests share"
        " the machine and a pass over more tokens is no longer nearly free: few drafts are worth checking then, and"
        " drafting them takes its time all the same."
    )
    return [how, gain, limit]


def method(record: DemoRecord) -> str:
    """What was measured, and how."""
    repeats = f"{record.repeats} interleaved repeats"
    if record.repeats < record.repeats_asked:
        repeats += f" (of {record.repeats_asked} asked for: the time was up)"
    return (
        f"Greedy decoding of one request at a time; {len(record.showings)} prompts. The texts shown have at most"
        f" {record.shown_tokens} tokens, plain decoded first. The table is made of {repeats} of the first"
        f" {record.repeat_tokens} tokens of each answer (medians and quartiles over repeats): each prompt plain and"
        " speculative in turn, the order alternating, after a warm-up. Times include reading the prompt, drafting and"
        " turning tokens into text."
    )


def cautions(record: DemoRecord) -> list[str]:
    """What a reader must know before believing the figures; empty where there is nothing."""
    found = []
    unexplained = record.overall.unexplained
    if unexplained:
        found.append(
            f"FAILURE: {unexplained} of {record.overall.total} prompts gave a text with drafting that differs"
            " from plain's by more than rounding explains. Drafting must never change the text: don't use"
            " this pair."
        )
    elif record.overall.equal < record.overall.total:
        found.append(
            f"{record.overall.total - record.overall.equal} of {record.overall.total} prompts differ from"
            f" plain's text after a numerical tie: in {record.dtype} two tokens scored as good as equal."
            " --dtype float32 all but removes such ties."
        )
    if record.overall.drafted and not record.overall.accepted:
        found.append("No drafted token was accepted: the drafter knows nothing about this target.")
    for pair in record.pairs:
        if pair.repeat_share > 0.1:
            found.append(
                f"{pair.domain}: {100 * pair.repeat_share:.0f} % of the shown tokens lie in verbatim repeats,"
                f" which are easy to draft; tau without them is {figure(pair.tau_without_repeats)}."
            )
    plain = record.overall.plain
    if plain.high - plain.low > NOISY * plain.median:
        found.append(
            f"Plain decoding's own speed varied from {plain.low:.1f} to {plain.high:.1f} tokens a second between"
            " repeats: something else used the machine, and the speeds say little."
        )
    if busy(record.machine):
        found.append(
            f"The machine was busy when the demo began (load {record.machine['load before']}): the speeds are"
            " disturbed."
        )
    return found


def busy(machine: Mapping[str, str]) -> bool:
    """Whether something else used a machine when a measurement began, as far as its facts tell."""
    try:
        return float(machine.get("load before") or 0) >= BUSY_LOAD
    except ValueError:
        return False
