"""Plots: readable SVG of the figures that they are given, the same file every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from dspark.calibration.choose import survival_through
from dspark.calibration.curves import reliability, threshold_sweep
from dspark.calibration.outcomes import Outcomes
from dspark.report.load_plots import budget_plot, frontier_plot
from dspark.report.plots import cost_plot, reliability_plot, threshold_plot
from dspark.speculation.confidence import Platt, sigmoid, untouched

USE = "{http://www.w3.org/2000/svg}use"
XLINK = "{http://www.w3.org/1999/xlink}href"


def outcomes() -> Outcomes:
    numbers = np.random.default_rng(0)
    logits = numbers.normal(0, 2, (3000, 3))
    accepted = (numbers.random((3000, 3)) < sigmoid(0.5 * logits)).cumprod(axis=1).sum(axis=1)
    return Outcomes(logits, logits, np.full(3000, 3), accepted)


def test_reliability_is_a_diagonal_for_whoever_knows_and_not_for_others() -> None:
    for calibration, right in ((Platt((0.5,) * 3, (0.0,) * 3), True), (untouched(3), False)):
        for curve in reliability(survival_through(calibration, outcomes()), outcomes()):
            assert len(curve["predicted"]) == len(curve["rate"]) == 15
            apart = np.abs(np.array(curve["predicted"]) - curve["rate"]).max()
            assert (apart < 0.12) == right


def test_a_higher_threshold_verifies_less_of_what_stands_more() -> None:
    swept = threshold_sweep(Platt((0.5,) * 3, (0.0,) * 3), outcomes())
    assert swept["threshold"][0] == 0 and swept["verified"][0] == 3
    assert swept["verified"] == sorted(swept["verified"], reverse=True)
    assert swept["tau"] == sorted(swept["tau"], reverse=True)
    assert swept["tau"][0] == pytest.approx(1 + outcomes().accepted.mean())
    assert swept["acceptance"][10] > swept["acceptance"][0] + 0.1


def draw_reliability(path: Path) -> None:
    maps = (untouched(3), Platt((0.5,) * 3, (0.0,) * 3), Platt((0.6,) * 3, (0.1,) * 3))
    reliability_plot(
        path, *(reliability(survival_through(each, outcomes()), outcomes()) for each in maps), title="a & b"
    )


def draw_thresholds(path: Path) -> None:
    threshold_plot(path, *(threshold_sweep(each, outcomes()) for each in (untouched(3), untouched(3))), "<title>")


def draw_costs(path: Path) -> None:
    cost_plot(path, [(1, 0.01, 0.011), (8, 0.02, 0.02)], [(0.01, 0.011), (0.02, 0.02), (0.05, 0.04)])


@pytest.mark.parametrize(
    ("draw", "points", "lines"),
    [(draw_reliability, 3 * 3 * 15, 3 * 4), (draw_thresholds, 0, 3 * 2), (draw_costs, 2 * 2 + 3, 1)],
)
def test_plots_show_every_point_and_are_the_same_again(
    draw: Callable[[Path], None], points: int, lines: int, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    draw(first)
    draw(second)
    assert first.read_bytes() == second.read_bytes()
    inside = [each for group in ElementTree.parse(first).iter() if "clip-path" in group.attrib for each in group]
    marks = [each for each in inside if each.tag == USE and each.attrib[XLINK]]
    assert len(marks) == points
    drawn = [
        each for each in ElementTree.parse(first).iter() if each.tag.endswith("path") and "clip-path" in each.attrib
    ]
    assert len(drawn) == lines and all(each.attrib["d"].count("L") >= 1 for each in drawn)


def test_plots_of_load_show_every_mode_and_number_of_users(tmp_path: Path) -> None:
    rows = [
        {
            "mode": mode,
            "concurrency": users,
            "throughput_tok_s": 100.0 + users,
            "throughput_quartiles": [90.0 + users, 100.0 + users, 110.0 + users],
            "per_user_tok_s": 50.0 / users,
            "verify_len": length,
        }
        for mode, length in (("off", 0.0), ("fixed4", 4.0), ("adaptive", 2.5))
        for users in (1, 4, 16)
    ]
    for draw, name in ((frontier_plot, "frontier.svg"), (budget_plot, "load.svg")):
        draw(tmp_path / name, rows)
        first = (tmp_path / name).read_bytes()
        tree = ElementTree.fromstring(first)
        assert len(tree.findall(f".//{USE}")) >= 9, "a point for each row"
        draw(tmp_path / name, rows)
        assert (tmp_path / name).read_bytes() == first, "the same figures give the same file"
