"""A bar on a terminal, rare plain lines elsewhere."""

from __future__ import annotations

import io

import pytest

from dspark.foundation.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_at_most_every_ten_seconds_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress(120, "training", "steps", stream=stream, clock=clock) as bar:
        for _ in range(120):
            clock.now += 0.5
            bar.advance(1, loss=0.25)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 60 / 10  # the last step's line is the closing one
    assert lines[0] == "training: 20/120 steps, 2 steps/s, 0:50 left, loss 0.25"
    assert lines[-1] == "training: 120/120 steps, 2 steps/s, 1:00 in all, loss 0.25"


def test_plain_lines_without_a_known_total_and_after_a_failure() -> None:
    stream, clock = io.StringIO(), Clock()
    with (
        pytest.raises(KeyboardInterrupt),
        progress(None, "reading", "rows", stream=stream, clock=clock) as bar,
    ):
        clock.now = 4000.0
        bar.advance(8_000_000)
        raise KeyboardInterrupt
    assert stream.getvalue().splitlines()[-1] == "reading: 8000000 rows, 2,000 rows/s, 1:06:40 so far"


def test_a_terminal_gets_a_bar_with_count_and_figures() -> None:
    stream = Terminal()
    with progress(4, "decoding", "prompts", stream=stream) as bar:
        for _ in range(4):
            bar.advance(1, tau=3.5)
    shown = stream.getvalue()
    assert "decoding" in shown
    assert "4/4 prompts" in shown
    assert "tau 3.5" in shown


def test_silence_where_it_is_asked_for_and_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(2, "quiet", "steps", enabled=False) as bar:
        bar.advance(2)
    with progress(2, "loud", "steps") as bar:
        bar.advance(2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "loud: 2/2 steps" in captured.err
    assert "quiet" not in captured.err
