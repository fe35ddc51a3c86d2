"""Two drafters on the same prompts: what their ratios are made of, and what pairing them is good for."""

from __future__ import annotations

import numpy as np
import pytest

from dspark.evaluation.evaluate import Run, Task, Trial
from dspark.evaluation.paired import paired
from dspark.speculation.acceptance import Round


def rounds(gained: int, number: int) -> list[Round]:
    """A prefill token, then so many rounds that gain so many tokens each."""
    whole = [Round(i, tuple(range(gained)), gained, gained, gained - 1, None) for i in range(1, number + 1)]
    return [Round(0, (0,), 0, 0, 0, None), *whole]


def trial(index: int, good: int, poor: int, seconds: float = 1.0, domain: str = "math", benchmark: str = "") -> Trial:
    plain = Run(rounds(1, good * poor), 4.0)
    runs = {"good": Run(rounds(good, 2 * poor), seconds), "poor": Run(rounds(poor, 2 * good), 2.0)}
    return Trial(Task(domain, f"p{index}", [1], 0, benchmark), runs | {"plain": plain, "ngram": plain}, {})


def test_ratios_are_of_pooled_figures_and_of_macro_ones() -> None:
    trials = [
        trial(0, 4, 2, benchmark="gsm8k"),
        trial(1, 4, 2, benchmark="gsm8k"),
        trial(2, 4, 2, benchmark="gsm8k"),
        trial(0, 6, 2, benchmark="aime25"),
        trial(0, 3, 3, domain="chat"),
    ]
    found = paired(trials, "good", "poor")
    assert found["over"] == "poor"
    assert found["tau"] == pytest.approx(42 / 22), "the same 90 tokens in 22 rounds and in 42"
    assert found["macro_tau"] == pytest.approx(((4 + 6) / 2 + 3) / (2 + 3))
    assert found["tok_s"] == pytest.approx(2.0), "the same texts in half the time"
    assert found["benchmarks"]["aime25"]["tau"] == pytest.approx(3.0)
    assert found["domains"]["math"]["macro_tau"] == pytest.approx(5 / 2)
    assert found["domains"]["chat"]["tau"] == pytest.approx(1.0)
    assert found["domains"]["chat"]["intervals"]["tau"] is None, "one prompt says nothing about spread"
    low, high = found["intervals"]["macro_tau"]
    assert low <= found["macro_tau"] <= high


def test_what_is_hard_for_both_is_no_noise() -> None:
    """Prompts differ tenfold, the drafters by a tenth everywhere: the ratio is certain where each figure is not."""
    generator = np.random.default_rng(0)
    trials = []
    for index in range(40):
        tokens, speed = 60, float(generator.uniform(1, 10))
        plain = Run(rounds(1, tokens), 10.0)
        runs = {"good": Run(rounds(3, 20), speed), "poor": Run(rounds(3, 20), 1.1 * speed)}
        trials.append(Trial(Task("math", f"p{index}", [1], 0), runs | {"plain": plain, "ngram": plain}, {}))
    found = paired(trials, "good", "poor")
    assert found["tok_s"] == pytest.approx(1.1)
    assert found["intervals"]["tok_s"] == pytest.approx([1.1, 1.1])
    assert found["tau"] == 1 and found["intervals"]["tau"] == [1, 1]
