"""The code of docs/extend.md: the drafter decodes and keeps the law, so does the head, and the family is proved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dspark.drafters.heads import MARKOV_HEADS
from dspark.drafters.state import DSparkState
from dspark.speculation.sampling import Sampling
from pages import ROOT, blocks

DRAFTER, TRY, PROOF, HEAD, FAMILY = blocks("docs/extend.md", "python")


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "docs/extend.md", "exec", dont_inherit=True), names)
    return names


def test_the_drafter_decodes_the_same_text(tiny_target: Path) -> None:
    assert TRY.count("smollm2-135m") == 1
    names = run(DRAFTER, {"__name__": "bigrams"})
    run(TRY.replace("smollm2-135m", str(tiny_target)), names)
    assert len(names["drafted"]) < len(names["plain"])
    assert 0 < sum(each.accepted for each in names["drafted"]) < sum(each.drafted for each in names["drafted"])


def test_the_proof_of_the_drafter_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "speculation"))
    names = run(PROOF, run(DRAFTER, {"__name__": "bigrams", "Sampling": Sampling}))
    names["test_bigrams_keep_the_law"]()


def test_the_head_keeps_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "speculation"))
    from enumeration import assert_law, measure
    from test_drafter_law import TappedTable, drafter_of, target_table

    head = run(HEAD, {"__name__": "heads"})["ScaledMarkovHead"]
    monkeypatch.setitem(MARKOV_HEADS, "scaled", head)
    drafter = drafter_of(3, 2, None, markov_head_type="scaled")
    assert isinstance(drafter.markov_head, head)
    measured = measure(
        target_table(3), lambda: DSparkState(drafter), Sampling(1.0), tokens=4, rounds=1, target=TappedTable
    )
    assert_law(measured, 2e-6)


def test_the_family_is_proved_and_its_drafters_start_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "targets"))
    import test_families

    changed = {name: getattr(test_families, name).copy() for name in ("FAMILIES", "ADDS", "FROM_NOTHING")}
    run(FAMILY, dict(changed))
    (family,) = changed["FAMILIES"].keys() - test_families.FAMILIES.keys()
    assert family in changed["ADDS"]
    for name, value in changed.items():
        monkeypatch.setattr(test_families, name, value)
    expected = [test_families.reference(test_families.model_of(family), ids) for ids in test_families.TEXTS]
    target = test_families.tiny_target(test_families.model_of(family))
    assert test_families.largest_difference(target, expected) < 1e-4
    for initial in ("target", "random"):
        test_families.test_a_drafter_is_made_or_refused_as_the_document_says(family, initial)
