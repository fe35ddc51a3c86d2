"""Scales label round numbers, charts draw what they are given, comparisons average and contrast it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_records import calibration, comparison, evaluation, run, write_rows

from dspark.report.chart import COLOURS, LARGE, chart, look
from dspark.report.figures import Axis, Between, Column, Figure, Line, Panel, Point, Section, Table, spread
from dspark.report.reading import read
from dspark.report.results import sections
from dspark.report.scales import Scale

NUMBERS = st.floats(-1e6, 1e6)
POSITIVE = st.floats(1e-3, 1e6)


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.integers(3, 8))
def test_ticks_are_few_round_and_on_the_paper(values: list[float], most: int) -> None:
    scale = Scale.of(Axis(""), values, 0, 100)
    ticks = scale.ticks(most)
    assert 1 <= len(ticks) <= most + 1
    assert len({text for _, text in ticks}) == len(ticks)
    assert all(-1e-3 <= scale.at(value) <= 100 + 1e-3 for value, _ in ticks)
    assert all(0 <= scale.at(value) <= 100 for value in values)
    steps = [b - a for (a, _), (b, _) in zip(ticks, ticks[1:], strict=False)]
    assert all(re.match(r"(1|2|5)(\.0*)?e", f"{step:.6e}") for step in steps)


@given(st.lists(POSITIVE, min_size=1, max_size=6))
def test_a_log_scale_keeps_order_and_has_no_place_for_zero(values: list[float]) -> None:
    scale = Scale.of(Axis("", "log"), [*values, 0.0, math.nan], 0, 100)
    assert all(0 <= scale.at(value) <= 100 for value in values)
    assert sorted(values) == sorted(values, key=scale.at)
    assert not scale.holds(0.0) and not scale.holds(math.nan) and scale.holds(1.0)
    assert [text for _, text in Scale.of(Axis("", "log"), [1, 40], 0, 1).ticks(6)] == ["1", "2", "5", "10", "20"]


def drawn(panel: Panel, *names: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart(panel, names or tuple(line.name for line in panel.lines), LARGE))


def paths(tree: ElementTree.Element, kind: str) -> list[str]:
    return [each.attrib["d"] for each in tree.iter("path") if each.attrib["class"] == kind]


def test_a_line_is_dashed_where_an_end_is_not_firm_and_skips_what_is_unknown() -> None:
    points = tuple(Point(x, y, firm=x < 3) for x, y in ((1, 1.0), (2, 2.0), (3, 1.5), (4, math.nan), (5, 1.0)))
    tree = drawn(Panel("", Axis("x"), Axis("y"), (Line("a", points),)))
    assert len(paths(tree, "mark")) == 2 and len(paths(tree, "mark few")) == 2
    assert [d.count("L") for d in paths(tree, "line")] == [1]
    assert [d.count("L") for d in paths(tree, "line few")] == [2]
    assert [title.text for title in tree.iter("title")][0] == "a: x 1, y 1"


def test_intervals_lie_along_the_figures_and_curves_have_no_marks() -> None:
    point = Point(1.0, 0.0, 0.5, 2.0)
    across = drawn(Panel("", Axis("x"), Axis("", ticks=((0, "a"),)), (Line("a", (point,), "marks"),), across=True))
    (whisker,) = paths(across, "whisker")
    assert "H" in whisker and "V" not in whisker
    upright = drawn(Panel("", Axis("x"), Axis("y"), (Line("a", (point,)),)))
    (whisker,) = paths(upright, "whisker")
    assert "V" in whisker and "H" not in whisker
    curve = drawn(Panel("", Axis("x"), Axis("y"), (Line("a", (Point(0, 0), Point(1, 1)), "curve"),)))
    assert not paths(curve, "mark") and len(paths(curve, "line")) == 1


def test_a_name_keeps_its_colour_throughout_a_section_and_shapes_differ_where_colours_return() -> None:
    one, two = (
        Figure(name, "", "", Table((), ()), (Panel("", Axis("x"), Axis("y"), lines),))
        for name, lines in (("1", (Line("a", ()), Line("b", ()))), ("2", (Line("b", ()), Line("c", ()))))
    )
    names = Section("", (one, two)).names
    assert names == ("a", "b", "c")
    tree = drawn(two.panels[0], *names)
    assert [each.attrib["class"] for each in tree.iter("g")] == ["s1", "s2"]
    assert look(0) == look(COLOURS)
    lines = tuple(Line(str(i), (Point(0, 0),)) for i in range(COLOURS + 1))
    marks = paths(drawn(Panel("", Axis("x"), Axis("y"), lines)), "mark")
    assert marks[0] != marks[COLOURS] and len({each.partition("m")[2] for each in marks}) == 4


def test_notes_do_not_stand_on_each_other() -> None:
    lines = tuple(Line(name, (Point(0, 0, note=name), Point(x, 1, note=name))) for name, x in (("a", 1), ("b", 0.99)))
    notes = [
        each.text
        for each in drawn(Panel("", Axis("x"), Axis("y"), lines)).iter("text")
        if each.attrib["class"] == "beside"
    ]
    assert len(notes) == 2 and notes[0] == "b"  # of the last line first
    apart = (lines[0], Line("b", (Point(0, 0.5, note="b"),)))
    tree = drawn(Panel("", Axis("x"), Axis("y"), apart))
    assert sum(each.attrib["class"] == "beside" for each in tree.iter("text")) == 3


def test_labels_without_end_are_cut() -> None:
    tree = drawn(Panel("", Axis("x"), Axis("", ticks=((0, "a" * 500),)), (Line("a", (Point(1, 0),)),), across=True))
    assert max(len(text.text or "") for text in tree.iter("text")) < 30


def test_cells_show_no_more_digits_than_their_column() -> None:
    column = Column("margin", 1, signed=True)
    assert column.shown(Between(16.34, 12.0, 20.06)) == ("+16.3", "[+12.0, +20.1]")
    assert column.shown(Between(16.34)) == ("+16.3", "")
    assert column.shown(math.nan) == column.shown(None) == ("-", "")
    assert Column("").shown(3) == ("3", "") and Column("").shown("<b>") == ("<b>", "")
    with pytest.raises(ValueError, match="1 figures stand where 2 are expected"):
        Table((Column("a"), Column("b")), ((1,),))
    assert spread([1.0, 2.0, math.nan]) == Between(1.5, 1.0, 2.0)
    assert spread([1.0]).value == 1.0 and math.isnan(spread([1.0]).low) and math.isnan(spread([]).value)


def figures_of(path: Path) -> dict[str, Figure]:
    (section,) = sections(read([path]))
    return {figure.id: figure for figure in section.figures}


def test_seeds_are_averaged_and_their_spread_shown(tmp_path: Path) -> None:
    rows = [run("DSpark vanilla", tau, ["tokens"], seed) for seed, tau in enumerate((2.0, 2.2, 2.4))]
    rows += [run("DFlash", tau, ["tokens"], seed) for seed, tau in enumerate((1.6, 1.8))]
    rows += [run("MTP-1", 1.5, ["time"])]
    figures = figures_of(write_rows(tmp_path / "c.jsonl", rows))
    table = figures["equal-tokens"].table
    greedy = {row[0]: row for row in table.rows if row[1] == "greedy"}
    assert list(greedy) == ["DSpark vanilla", "DFlash"]  # MTP-1 is of the other table
    macro = greedy["DSpark vanilla"][3]
    assert isinstance(macro, Between)
    assert (macro.value, macro.low, macro.high) == pytest.approx((2.25, 2.05, 2.45))
    assert greedy["DSpark vanilla"][2] == 3 and greedy["DFlash"][2] == 2
    assert {row[0] for row in figures["equal-time"].table.rows} == {"MTP-1"}
    assert "margins-time" not in figures  # DSpark is not among them


def test_margins_stand_beside_the_papers(tmp_path: Path) -> None:
    rows = [run("DSpark vanilla", tau, ["tokens"], seed) for seed, tau in enumerate((2.0, 2.2))]
    rows += [run("DFlash", tau, ["tokens"], seed) for seed, tau in enumerate((1.6, 1.8))]
    rows += [run("MTP-1", 1.5, ["tokens"])]
    table = figures_of(write_rows(tmp_path / "c.jsonl", rows))["margins-tokens"].table
    assert [column.name for column in table.columns][1:] == ["greedy, %", "temperature 1, %", "the paper's, %"]
    dflash, mtp = table.rows
    assert isinstance(dflash[1], Between)
    ratios = (2.15 / 1.75, 2.25 / 1.85, 2.05 / 1.65)  # of the means, then of either seed (macro tau is tau + 0.05)
    value, low, high = (100 * (each - 1) for each in ratios)
    assert (dflash[1].value, dflash[1].low, dflash[1].high) == pytest.approx((value, low, high))
    assert dflash[3] == "+16.3 to +18.4" and mtp[3] is None
    assert isinstance(mtp[1], Between) and math.isnan(mtp[1].low)  # one seed in common has no spread


def test_the_papers_margins_are_those_of_its_table_1() -> None:
    taus = {  # Qwen3-4B: math, code, chat
        "Eagle3": (5.14, 4.62, 3.92, 3.69, 4.16, 3.77, 2.39, 2.26, 2.55),
        "DFlash": (5.40, 4.85, 4.15, 4.40, 4.74, 4.18, 3.07, 2.96, 2.83),
        "DSpark": (6.11, 5.70, 4.89, 5.13, 5.38, 4.86, 3.64, 3.54, 3.29),
    }
    from dspark.report.records.contrasts import PAPER

    for name, (low, high) in PAPER.items():
        margin = 100 * (sum(taus["DSpark"]) / sum(taus[name]) - 1)
        assert low - 0.1 <= margin <= high + 0.1


def test_acceptance_and_contexts_are_pooled_by_rounds(tmp_path: Path) -> None:
    rows = [run("DFlash", 2.0, ["tokens"], seed) for seed in (0, 1)]
    for row, rate, reached in zip(rows, (0.8, 0.5), (300, 100), strict=True):
        d = row["decoded"]["greedy"]
        d["conditional_acceptance"], d["reached"] = [rate, None, rate, rate, rate], [reached, 0, 90, 90, 90]
        d["contexts"] = [{"from": 0, "to": 128, "tau": 1 + rate, "rounds": reached}]
    figures = figures_of(write_rows(tmp_path / "c.jsonl", rows))
    panel = figures["acceptance"].panels[0]
    first, second, third, *_ = panel.lines[0].points
    assert (panel.title, first.y, first.firm, third.firm) == ("greedy", pytest.approx(0.725), True, False)
    assert math.isnan(second.y)
    context = figures["contexts"].panels[0].lines[0].points[0]
    assert (context.x, context.y, context.firm) == (64, pytest.approx(1.725), True)


def test_sizes_are_lines_of_families(tmp_path: Path) -> None:
    figures = figures_of(write_rows(tmp_path / "c.jsonl", comparison()))
    depth = {line.name: [point.x for point in line.points] for line in figures["depth"].panels[0].lines}
    assert depth["DSpark vanilla"] == depth["DFlash"] == [1, 2, 3]
    *taus, share = figures["lengths"].panels
    assert [panel.title for panel in taus] == ["greedy", "temperature 1"]
    assert [(line.name, [point.x for point in line.points]) for line in share.lines] == [
        ("DSpark vanilla", [3, 7, 11, 15])
    ]
    assert share.lines[0].points[-1].y == pytest.approx(1.3)
    (sweep,) = figures["sweep"].panels
    assert [len(line.points) for line in sweep.lines] == [4, 4] and sweep.x.scale == "log"


def test_more_training_and_other_losses_stand_beside_the_papers_margins(tmp_path: Path) -> None:
    figures = figures_of(write_rows(tmp_path / "c.jsonl", comparison()))
    causes = figures["causes"]
    rows = {(row[0], row[1]): row for row in causes.table.rows}
    assert [*rows] == [
        ("DFlash", "400"),
        ("DFlash", "1600"),
        ("Eagle3", "400"),
        ("Eagle3", "1600"),
        ("DFlash, DSpark's losses", "400"),
    ]
    greedy = rows["DFlash", "400"][2]
    assert isinstance(greedy, Between) and greedy.value == pytest.approx(
        100 * (2.37 / 2.07 - 1)
    )  # macro tau lies 0.05 higher
    assert math.isfinite(greedy.low)
    longer = rows["DFlash", "1600"][2]
    assert isinstance(longer, Between) and longer.value == pytest.approx(100 * (3.35 / 2.8 - 1))
    assert rows["Eagle3", "1600"][-1] == "+26.7 to +30.9" and rows["DFlash, DSpark's losses", "400"][-1] is None
    lines = {line.name: [point.x for point in line.points] for line in causes.panels[0].lines}
    assert lines == {arm: [400, 1600] for arm in ("DSpark vanilla", "DFlash", "Eagle3")}


def test_a_single_amount_of_training_is_no_experiment(tmp_path: Path) -> None:
    rows = [row for row in comparison() if row["tables"] != ["longer"]]
    assert "causes" not in figures_of(write_rows(tmp_path / "c.jsonl", rows))


def test_measured_speed_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    figures = figures_of(write_rows(tmp_path / "c.jsonl", comparison()))
    rows = figures["measured-speed"].table.rows
    assert len(rows) == 12 and {row[1] for row in rows} == {"greedy", "temperature 1"}
    assert rows[0] == ("DSpark vanilla", "greedy", Between(1.5, 1.4, 1.6), 2.0)
    untimed = [{**row, "speed": None} for row in comparison()]
    assert "measured-speed" not in figures_of(write_rows(tmp_path / "d.jsonl", untimed))


def test_without_decoding_held_out_answers_stand_in(tmp_path: Path) -> None:
    rows = [run(arm, tau, ["tokens"], decoded=None) for arm, tau in (("DSpark vanilla", 2.0), ("DFlash", 1.8))]
    figures = figures_of(write_rows(tmp_path / "c.jsonl", rows))
    assert {row[1] for row in figures["equal-tokens"].table.rows} == {"held-out answers, teacher-forced, greedy"}
    assert "acceptance" not in figures and "contexts" not in figures


def test_json_keeps_the_records_own_figures(tmp_path: Path) -> None:
    import json

    path = tmp_path / "eval.json"
    path.write_text(json.dumps(evaluation()))
    table = figures_of(path)["evaluation"].asdict()["data"]
    first = dict(zip(table["columns"], table["rows"][0], strict=True))
    assert first["tau"] == {"value": 2.2, "low": pytest.approx(2.05), "high": pytest.approx(2.35)}
    (tmp_path / "calibrate.json").write_text(json.dumps(calibration()))
    swept = figures_of(tmp_path / "calibrate.json")["thresholds"].asdict()
    assert len(swept["data"]["rows"]) == 40 and swept["id"] == "thresholds"


def test_control_nothing_to_draw_is_no_failure() -> None:
    for axis in (Axis("x", reaches=(0.0,)), Axis("x", "log"), Axis("x")):
        tree = drawn(Panel("", axis, Axis("y", reaches=(0.0,)), (Line("a", ()), Line("b", (Point(math.nan, 1.0),)))))
        assert not paths(tree, "mark")
        assert "nan" not in ElementTree.tostring(tree, encoding="unicode")
