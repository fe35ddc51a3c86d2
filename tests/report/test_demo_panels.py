"""The terminal shows whole texts, marks accepted drafts with and without colour, and obeys no text."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest
from made_up import HOSTILE

from dspark.report.demo import DemoRecord, Spread, Verdict
from dspark.report.panels import DemoPanels, printable
from dspark.report.spans import Span
from dspark.report.story import cautions, explanation, headline, method


def shown(record: DemoRecord, encoding: str = "utf-8", width: int | None = None, terminal: bool = False) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    panels = DemoPanels(stream, width=width, force_terminal=terminal)
    panels.legend()
    for number, one in enumerate(record.showings, start=1):
        panels.showing(one, number, len(record.showings))
    panels.summary(record)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def test_plain_output_marks_accepted_drafts_in_whole_texts(record: DemoRecord) -> None:
    out = shown(record)
    assert "\x1b" not in out
    for one in record.showings:
        assert out.count(one.plain_text) >= 1
        assert "".join(f"«{s.text}»" if s.accepted else s.text for s in one.spec_spans) in out
    for pair in record.pairs:
        assert f"{pair.plain.median:.1f} [{pair.plain.low:.1f}-{pair.plain.high:.1f}]" in out
        assert f"{pair.speedup:.2f}x" in out


def test_plain_output_survives_a_stream_without_the_characters(record: DemoRecord) -> None:
    out = shown(record, encoding="ascii")
    assert "{+" in out
    assert "L?ffel" in out


@pytest.mark.parametrize("width", [60, 100])
def test_a_terminal_underlines_accepted_drafts_and_leaves_nothing_out(
    record: DemoRecord, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shown(record, width=width, terminal=True)
    assert "\x1b[4;32m" in out  # drafts
    assert "\x1b[4;36m" in out  # copies
    assert "…" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    bare = shown(record, width=width, terminal=True)
    assert "\x1b[4m" in bare
    assert "32m" not in bare


@pytest.mark.parametrize("terminal", [False, True])
def test_a_text_can_not_steer_the_terminal(record: DemoRecord, terminal: bool) -> None:
    one = dataclasses.replace(
        record.showings[0],
        prompt="\x1b]0;owned\x07[bold]",
        plain_text="\x1b[2Jowned\r\x9b31m",
        spec_spans=(Span("\x1b[2J[/red]owned", True, 1),),
    )
    out = shown(dataclasses.replace(record, showings=(one,)), width=100, terminal=terminal)
    assert "\x1b[2J" not in out
    assert "\x1b]0" not in out
    assert "\x9b" not in out
    assert "[bold]" in out
    assert "[/red]" in out
    assert printable(HOSTILE) == HOSTILE.replace("\x1b", "\ufffd").replace("\x00", "\ufffd")


def test_sentences_follow_the_figures(record: DemoRecord) -> None:
    assert headline(record) == "The same text, 1.47 times the speed"
    how, gain, limit = explanation(record)
    assert "7 tokens" in how
    for figure in ("50.1 ms", "70.2 ms", "1.40 times", "2.07 / 1.40 = 1.48", "1.47 times"):
        assert figure in gain
    assert "slower" not in gain
    assert "few drafts are worth checking" in limit
    slow = dataclasses.replace(record, overall=dataclasses.replace(record.overall, spec=Spread(9, 10, 11)))
    assert "slower than plain decoding" in explanation(slow)[1]
    short = dataclasses.replace(record, step_ms=math.nan)
    assert "nan" not in "".join(explanation(short))
    assert "of 5 asked for" not in method(record)
    assert "3 interleaved repeats (of 5 asked for: the time was up)" in method(dataclasses.replace(record, repeats=3))


def test_cautions_come_when_due(record: DemoRecord) -> None:
    def with_overall(**changes: int) -> list[str]:
        return cautions(dataclasses.replace(record, overall=dataclasses.replace(record.overall, **changes)))

    assert cautions(record) == []
    assert "numerical tie" in with_overall(equal=4)[0]
    assert with_overall(equal=4, unexplained=2)[0].startswith("FAILURE: 2 of 6")
    assert "No drafted token was accepted" in with_overall(accepted=0)[0]
    noisy = dataclasses.replace(record.overall, plain=Spread(7.0, 12.0, 12.5))
    assert "varied from 7.0 to 12.5" in cautions(dataclasses.replace(record, overall=noisy))[0]
    looping = dataclasses.replace(record.pairs[0], repeat_share=0.4, tau_without_repeats=1.5)
    found = cautions(dataclasses.replace(record, pairs=(looping,)))
    assert "40 % of the shown tokens" in found[0]
    assert "tau without them is 1.50" in found[0]
    assert "load 3.5" in cautions(dataclasses.replace(record, machine={"load before": "3.5"}))[0]
    assert cautions(dataclasses.replace(record, machine={"load before": "unknown"})) == []


def test_verdicts_in_words() -> None:
    assert Verdict(True, False).sentence() == "identical, token for token"
    tie = Verdict(False, False, position=41, gap=0.125, allowed=0.25).sentence()
    assert tie.startswith("differs from token 42 on: a numerical tie (0.12")
    assert "ends early" in Verdict(False, True, position=3).sentence()


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(2.0, 3.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.25, 1.5, 1.75)
