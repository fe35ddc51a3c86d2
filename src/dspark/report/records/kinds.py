"""All kinds of record, in the order of the page."""

from __future__ import annotations

from typing import Any

from dspark.report.records.bench import BENCH
from dspark.report.records.calibration import CALIBRATION
from dspark.report.records.comparison import COMPARISON
from dspark.report.records.costs import COSTS
from dspark.report.records.evaluation import EVALUATION
from dspark.report.records.kind import Kind
from dspark.report.records.training import TRAINING

KINDS: tuple[Kind[Any], ...] = (EVALUATION, COMPARISON, CALIBRATION, BENCH, COSTS, TRAINING)

# Files that verbs write beside their records: keys of the first row, what it is, and what to name instead.
NO_RECORDS: dict[frozenset[str], str] = {
    frozenset({"mode", "turn"}): "the runs of a bench; expected its rows: `dspark bench --json FILE`",
    frozenset({"runs", "comparisons"}): "the answers of an eval; expected its figures: `dspark eval --json FILE`",
    frozenset({"weights", "padded"}): "a cost model; expected the figures beside it: `dspark profile --json FILE`",
    frozenset({"regimes"}): "maps of confidence; expected the figures beside them: `dspark calibrate --json FILE`",
    frozenset(
        {"steps", "validation"}
    ): "the end of a training; expected the folder of the run: `dspark train --run DIR`",
    frozenset({"showings", "pairs"}): "a demo; it has a page of its own: `dspark demo --page FILE`",
}
