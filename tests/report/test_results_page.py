"""A page of results stands alone, shows what the records hold and nothing else, and obeys no text of theirs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_up import HOSTILE
from made_up_records import bench, drafter, evaluation, part, write_all, write_rows
from reader import ALLOWED, Reader, check_alone

from dspark.report.reading import Reading, read
from dspark.report.records.kinds import KINDS
from dspark.report.results import results_page, sections

HERE = ALLOWED | {"figure", "figcaption", "details", "summary", "g", "text", "ul", "li", "code", "nav", "a"}
SHOWN = HOSTILE.replace("\x1b", "\ufffd").replace("\x00", "\ufffd")


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return write_all(tmp_path / "records")


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def page_of(*runs: Path) -> Reader:
    return check_alone(results_page(read(runs)), HERE)


def test_all_records_on_one_page(runs: list[Path]) -> None:
    reading = read(runs)
    reader = page_of(*runs)
    assert {"svg", "table", "details", "figure"} <= reader.tags
    for section in sections(reading):
        assert section.title in reader.text
        for figure in section.figures:
            assert figure.title in reader.text
            assert figure.caption in reader.text
    for number in (2, 3, 4, 5, 6, 7, 8):
        assert f"(Fig. {number})" in reader.text
    assert "Not on this page" not in reader.text
    links = [value[1:] for name, value in reader.attributes if name == "href"]
    assert len(links) == 7 and set(links) <= {value for name, value in reader.attributes if name == "id"}
    assert "prefers-color-scheme: dark" in reader.text


def test_every_figure_is_labelled_and_has_its_table(runs: list[Path]) -> None:
    figures = [figure for section in sections(read(runs)) for figure in section.figures]
    assert len({figure.id for figure in figures}) == len(figures) >= 19
    for figure in figures:
        assert figure.table.rows, figure.id
        assert figure.caption.rstrip(")").endswith("."), figure.id
        for panel in figure.panels:
            assert panel.x.label and (panel.y.label or panel.across), figure.id
            assert any(line.points for line in panel.lines), figure.id
    text = results_page(read(runs))
    drawn = [figure for figure in figures if figure.panels]
    assert text.count("<details") == len(drawn) > 10
    assert text.count('class="chart"') == sum(len(figure.panels) for figure in drawn)
    assert text.count("<tr>") == sum(len(figure.table.rows) + 1 for figure in figures)


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
def test_any_kind_alone_or_missing_makes_a_page(runs: list[Path], kind: str) -> None:
    by_name = {read([run]).found[0].kind.name: run for run in runs}
    one = next(each for each in KINDS if each.name == kind)
    others = [each for each in KINDS if each is not one]
    alone, without = page_of(by_name[kind]), page_of(*(run for name, run in by_name.items() if name != kind))
    title = one.section([read([by_name[kind]]).found[0].value]).title
    for reader, present, absent in ((alone, [one], others), (without, others, [one])):
        assert reader.text.count("Not on this page") == 2  # the contents and the section
        assert all(f"{each.brings}: {each.command}" in reader.text for each in absent)
        assert not any(f"{each.brings}: " in reader.text for each in present)
    assert title in alone.text and title not in without.text


def test_the_same_records_give_the_same_bytes_wherever_they_lie(runs: list[Path], tmp_path: Path) -> None:
    first = results_page(read(runs))
    assert results_page(read(runs)) == first
    shutil.copytree(runs[0].parent, tmp_path / "elsewhere" / "records")
    moved = [tmp_path / "elsewhere" / "records" / run.name for run in runs]
    assert results_page(read(moved)) == first
    assert str(tmp_path) not in first
    write(runs[0], evaluation(drafter("one", 1.001)))
    assert results_page(read(runs)) != first


def made_hostile(value: Any) -> Any:
    """All texts of a record, and the names that people chose."""
    if isinstance(value, dict):
        chosen = {"math", "code", "chat", "processor", "greedy", "temperature 1"}
        return {HOSTILE + key if key in chosen else key: made_hostile(each) for key, each in value.items()}
    if isinstance(value, list):
        return [made_hostile(each) for each in value]
    return HOSTILE + value if isinstance(value, str) else value


def test_hostile_text_is_shown_as_it_is(runs: list[Path]) -> None:
    for run in runs:
        if run.is_dir():
            (run / "recipe.yaml").write_text(f"target: {json.dumps(HOSTILE)}\n", encoding="utf-8")
        elif run.suffix == ".json":
            write(run, made_hostile(json.loads(run.read_text())))
        else:
            rows = [json.loads(line) for line in run.read_text().splitlines()]
            write_rows(run, [made_hostile(row) | {"tables": row["tables"]} for row in rows])
    reader = page_of(*runs)
    assert "script" not in reader.tags and "img" not in reader.tags
    assert reader.text.count(SHOWN) > 100
    assert len(read(runs).found) == 6


def test_a_position_that_few_rounds_reached_is_hollow(tmp_path: Path) -> None:
    row = drafter("one", 1.0)
    hollow = {}
    for name, reached in (("few", [2400, 1500, 830, 199, 160]), ("enough", [2400, 1500, 830, 430, 200])):
        run = write(tmp_path / f"{name}.json", evaluation(row | {"reached": reached}))
        text = results_page(read([run]))
        hollow[name] = text.count('class="mark few"'), text.count('class="line few"')
    assert hollow == {"few": (2, 1), "enough": (0, 0)}


def test_a_changed_text_is_the_headline(runs: list[Path], tmp_path: Path) -> None:
    alarm = "Drafting changed the text"
    assert alarm not in page_of(*runs).text
    row = drafter("one", 1.0)
    row["identical"] |= {"equal": 119, "unexplained": 1}
    wrong = write(tmp_path / "wrong.json", evaluation(row))
    assert alarm in page_of(wrong).text and "119/120, 1 UNEXPLAINED" in page_of(wrong).text
    rows = bench()
    rows["rows"][3]["identical"]["unexplained"] = 2
    loaded = page_of(write(tmp_path / "bench.json", rows)).text
    assert alarm in loaded and "2 texts with drafting differ" in loaded


@pytest.mark.parametrize(
    ("within", "headline"),
    [
        ([1.2, 1.4], "The same text, 1.32 times the speed"),
        ([0.9, 1.7], "The same text, no gain shown (1.32 times the speed)"),
        (None, "The same text, 1.32 times the speed"),
    ],
)
def test_the_headline_says_no_more_than_the_interval(tmp_path: Path, within: list[float] | None, headline: str) -> None:
    row = drafter("one", 1.0)
    row["intervals"] |= {"speedup": within}
    text = results_page(read([write(tmp_path / "eval.json", evaluation(row))]))
    assert re.search(r"<h1>(.*?)</h1>", text)[1] == headline  # type: ignore[index]


def test_a_busy_machine_is_told(tmp_path: Path) -> None:
    for load, told in (("2.5", 1), ("0.1", 0), ("unknown", 0)):
        run = write(tmp_path / "eval.json", evaluation(machine={"load before": load}))
        assert (
            page_of(run).text.count(f"which disturbs their speeds: {run.parent.name}/eval.json (load {load}).") == told
        )


def test_drawn_texts_have_no_verdict_and_undefined_figures_a_dash(tmp_path: Path) -> None:
    row = drafter("one", 1.0)
    del row["identical"]
    row |= {"tau": None, "speedup": None, "intervals": {"tau": None, "speedup": None}}
    reader = page_of(
        write(tmp_path / "eval.json", evaluation(row, sampling={"temperature": 0.7, "top_k": 0, "top_p": 0.9}))
    )
    assert "No speed known" in reader.text and "temperature 0.7, top-p 0.9" in reader.text
    assert "nan" not in reader.text


def test_two_evaluations_do_not_share_a_table(tmp_path: Path) -> None:
    warm = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    runs = [write(tmp_path / "a.json", evaluation()), write(tmp_path / "b.json", evaluation(sampling=warm))]
    (section,) = sections(read(runs))
    assert [figure.id for figure in section.figures if "acceptance" not in figure.id] == ["evaluation", "evaluation-2"]
    assert [("greedy" in figure.title) for figure in section.figures[::2]] == [True, False]


def test_benchmarks_stand_before_their_domain_in_the_table_and_are_not_drawn(tmp_path: Path) -> None:
    row = drafter("one", 1.0)
    row["benchmarks"] = {name: part(2.0, 1.3) | {"domain": domain} for name, domain in (("a", "code"), ("b", "math"))}
    (section,) = sections(read([write(tmp_path / "eval.json", evaluation(row))]))
    figure = section.figures[0]
    assert [line[1] for line in figure.table.rows] == ["b", "math", "a", "code", "chat", "macro", "all", "all"]
    assert [text for _, text in figure.panels[0].y.ticks] == ["math", "code", "chat", "all"]


def test_how_a_record_was_made_is_told(tmp_path: Path) -> None:
    made = {"command": "dspark eval --limit 8", "date": "2026-11-29", "commit": "abc"}
    text = page_of(write(tmp_path / "eval.json", evaluation(made=made))).text
    assert all(each in text for each in made.values())


def test_records_name_their_files_versions_and_settings(runs: list[Path]) -> None:
    text = page_of(*runs).text.rpartition("Records")[2]
    for fact in ("records/eval.json", "a-run/log.jsonl", "A processor", "torch 2.13.0", "bfloat16", "greedy"):
        assert fact in text
    assert "prompts/math.jsonl" in text and "layers 3" in text and "answers/train.xz" in text


def test_the_documentation_explains_every_figure_and_names_every_key(runs: list[Path]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    figures = [figure for section in sections(read(runs)) for figure in section.figures if figure.id != "evaluation"]
    explained = [line.partition(" |")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    titles = {title for each in explained for title in each.split("; ")}
    assert {figure.title.partition(":")[0] for figure in figures} <= titles
    assert all(f"`{key}`" in text for kind in KINDS for keys in kind.keys for key in keys)


def test_control_an_empty_reading_is_a_page_of_what_is_missing() -> None:
    reader = check_alone(results_page(Reading((), ())), HERE)
    assert all(kind.command in reader.text for kind in KINDS)
