"""Tables of `dspark calibrate --judge ... --json` in Markdown: maps side by side, all prompts and every domain.

python benchmarks/calibration_tables.py greedy.json temperature-1.json > docs/results/calibration.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dspark.foundation.artifacts import read_json

_MAPS = {
    "before": "as trained",
    "after": "STS",
    "chosen": "chosen",
    "tilted": "chosen, tilted by the request's own rounds",
    "constant": "constant",
    "oracle": "oracle c*",
}
_SHOWN = (0, 1, 2, 4, 6)  # positions


def table(figures: dict[str, Any], key: str, digits: int = 3) -> Iterator[str]:
    """One row a map, one column a position."""
    slots = [k for k in _SHOWN if k < len(figures["before"][key])]
    yield "| | " + " | ".join(str(k + 1) for k in slots) + " |"
    yield "|---" * (len(slots) + 1) + "|"
    for name, label in _MAPS.items():
        values = (figures[name][key][k] for k in slots)
        cells = ("-" if value is None else f"{value:.{digits}f}" for value in values)
        yield f"| {label} | " + " | ".join(cells) + " |"


def excess(figures: dict[str, Any], name: str) -> list[float]:
    """Calibration error above the one that a perfect predictor of the same sharpness would show, in per cent."""
    pairs = zip(figures[name]["ece"], figures[name]["perfect_ece"], strict=True)
    return [100 * (error - perfect) for error, perfect in pairs]


def domains(figures: dict[str, Any]) -> Iterator[str]:
    """STS beside the chosen map, tilted or not, domain by domain, of the first draft."""
    each_map = "as trained | STS | chosen | tilted"
    yield f"| prompts | rounds | excess ECE, per cent: {each_map} | Brier: {each_map} | AUC: {each_map} |"
    yield "|---" * 14 + "|"
    for name, each in {**figures["domains"], "all": figures}.items():
        maps = ("before", "after", "chosen", "tilted")
        cells = [f"{excess(each, m)[0]:.1f}" for m in maps] + [f"{each[m]['brier'][0]:.3f}" for m in maps]
        cells += ["-" if each[m]["auc"][0] is None else f"{each[m]['auc'][0]:.3f}" for m in maps]
        yield f"| {name} | {each['judged_rounds']} | " + " | ".join(cells) + " |"


def lines(path: Path) -> Iterator[str]:
    """Everything about one sampling."""
    figures = read_json(path)
    sampling = figures["sampling"]
    title = "Greedy" if not sampling["temperature"] else f"Temperature {sampling['temperature']:g}"
    title += f", top-k {sampling['top_k']}" * bool(sampling["top_k"])
    title += f", top-p {sampling['top_p']:g}" * (sampling["top_p"] < 1)
    judged, kind = figures["judged_rounds"], figures["chosen"]["kind"]
    yield f"## {title}"
    yield ""
    yield f"{figures['rounds'] - judged} rounds were fitted to, {judged} of other prompts judge; chosen: {kind}."
    for name, key in (("Brier score", "brier"), ("Log-loss", "log_loss"), ("AUC", "auc"), ("ECE", "ece")):
        yield from ("", f"{name} of prefixes of so many drafts:", "", *table(figures, key))
    yield from ("", "ECE above that of a perfect predictor, per cent, by position:", "")
    for name in ("before", "after", "chosen", "tilted"):
        yield f"- {_MAPS[name]}: " + ", ".join(f"{each:.2f}" for each in excess(figures, name))
    yield ""
    yield from ("The first draft, prompts by prompts:", "")
    yield from domains(figures)


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("figures", type=Path, nargs="+")
    for path in parser.parse_args().figures:
        print("\n".join(lines(path)), end="\n\n")


if __name__ == "__main__":
    main()
