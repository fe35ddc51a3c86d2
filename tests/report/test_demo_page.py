"""The page stands alone, lets no text out of its box and carries the figures."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from made_up import HOSTILE
from reader import ALLOWED, Reader, check_alone

from dspark.report.demo import DemoRecord, Verdict
from dspark.report.page import page, write_page
from dspark.report.spans import Span


def hostile(record: DemoRecord) -> DemoRecord:
    one = dataclasses.replace(
        record.showings[0],
        domain=HOSTILE,
        prompt=HOSTILE,
        plain_text=HOSTILE,
        spec_spans=(Span(HOSTILE, True, 1), Span(HOSTILE, False, 1)),
    )
    return dataclasses.replace(
        record,
        showings=(one,),
        pairs=tuple(dataclasses.replace(pair, domain=HOSTILE, repeat_share=0.5) for pair in record.pairs),
        target=HOSTILE,
        drafter=HOSTILE,
        dtype=HOSTILE,
        machine={HOSTILE: HOSTILE},
        date=HOSTILE,
        command=HOSTILE,
    )


@pytest.mark.parametrize("make", [lambda record: record, hostile], ids=["ordinary", "hostile"])
def test_page_stands_alone_and_runs_nothing(record: DemoRecord, make: object) -> None:
    assert callable(make)
    reader = check_alone(page(make(record)), ALLOWED)
    assert {"svg", "mark", "table", "style"} <= reader.tags


def test_hostile_text_is_shown_as_it_is(record: DemoRecord) -> None:
    reader = Reader(page(hostile(record)))
    shown = HOSTILE.replace("\x1b", "\ufffd").replace("\x00", "\ufffd")
    assert reader.marked[-1] == shown
    assert reader.text.count(shown) > 8
    assert "script" not in reader.tags


def test_page_carries_texts_figures_and_the_machine(record: DemoRecord) -> None:
    reader = Reader(page(record))
    for pair in (*record.pairs, record.overall):
        for figure in (pair.plain.median, pair.spec.median, pair.plain.low, pair.spec.high):
            assert f"{figure:.1f}" in reader.text
        assert f"{pair.speedup:.2f}×" in reader.text
        assert f"{pair.tau:.2f}" in reader.text
        assert f"{pair.equal}/{pair.total}" in reader.text
    for one in record.showings:
        spoken = "".join(span.text for span in one.spec_spans)
        assert spoken == one.plain_text
        assert reader.text.count(one.plain_text) >= 2  # plain and, piece by piece, speculative
    accepted = [span.text for one in record.showings for span in one.spec_spans if span.accepted]
    assert reader.marked[2:] == accepted  # the first two marks are the legend's
    assert len(accepted) > 20
    for fact in (*record.machine.values(), record.date, record.command, record.dtype):
        assert fact in reader.text
    assert f"{record.round_ms:.1f} ms" in reader.text
    assert "prefers-color-scheme: dark" in reader.text
    assert sum(name == "viewbox" for name, _ in reader.attributes) == len(record.showings) + 2 * len(record.pairs)


def test_strip_has_a_cell_for_every_token(record: DemoRecord) -> None:
    text = page(dataclasses.replace(record, showings=record.showings[:1]))
    strip = re.search(r'<svg class="strip".*?</svg>', text)
    assert strip is not None
    cells = {kind: d.count("z") for kind, d in re.findall(r'<path class="(\w+)" d="(.*?)"/>', strip[0])}
    bars = record.showings[0].rounds
    accepted = sum(bar.accepted for bar in bars if not bar.copied)
    copied = sum(bar.accepted for bar in bars if bar.copied)
    assert min(accepted, copied) > 0
    drafted, gained = sum(bar.drafted for bar in bars), sum(bar.tokens for bar in bars)
    assert cells == {
        "own": gained - accepted - copied,
        "accepted": accepted,
        "copied": copied,
        "rejected": drafted - accepted - copied,
    }


def test_a_changed_text_is_the_headline(record: DemoRecord) -> None:
    broken = dataclasses.replace(record.overall, equal=5, unexplained=1)
    verdict = Verdict(False, True, position=16, gap=1.5, allowed=1e-4)
    showings = (dataclasses.replace(record.showings[0], verdict=verdict), *record.showings[1:])
    text = Reader(page(dataclasses.replace(record, overall=broken, showings=showings))).text
    assert "Drafting changed the text" in text
    assert "FAILURE: 1 of 6 prompts" in text
    assert "differs from token 17 on: NOT EXPLAINED" in text
    assert "Drafting changed the text" not in Reader(page(record)).text
    assert "FAILURE" not in Reader(page(record)).text


def test_page_replaces_the_old_one_only_when_whole(
    record: DemoRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "demo.html"
    write_page(path, record)
    before = path.read_bytes()

    def fail(path: Path, text: str) -> None:
        path.write_text(text[:100], encoding="utf-8")
        raise OSError("gone")

    monkeypatch.setattr("dspark.report.document._write", fail)
    with pytest.raises(OSError, match="gone"):
        write_page(path, record)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
