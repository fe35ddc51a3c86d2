"""The figures of docs/results/, measured anew from the shipped weights by the product's own verbs, in under an hour.

    make results PROMPTS=DIR                                   # or: python benchmarks/results.py --prompts DIR
    python benchmarks/results.py --parts eval,bench --again    # these, and what is there already as well
    python benchmarks/results.py --compare OTHER/records       # do two runs agree? exit code 1 where not

DIR holds prompts files, JSONL: those named after a benchmark (docs/evaluation.md) are asked as that, each other one is
a domain of its own. Without it the nine benchmarks are read from the hub, and `bench` takes the demo's prompts. Each
measurement (benchmarks/measurements.py) is one verb in a process of its own and one file in docs/results/records,
which holds no path of this machine. A file that is there is not measured again, so a run that was killed goes on where
it was. Nothing else should run meanwhile. The shipped confidence map is judged, never changed: what `calibrate` fits
is thrown away.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from agreement import compare
from measurements import MEASUREMENTS, Measurement, options_of, prompts_in
from portable import RECORDED, portable, provenance

from dspark.foundation.artifacts import read_json, write_json
from dspark.foundation.errors import UserError

Verb = Callable[[Sequence[str]], int]  # runs a command line's words; its exit code

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / RECORDED
COMPARISON = "comparison.jsonl"  # hours of training, so shown where it lies and not made here (compare_drafters.py)
BUSY = 0.5  # load of the last minute from which on nothing is measured
PARTS = (*dict.fromkeys(each.verb for each in MEASUREMENTS), "report")


def main(arguments: Sequence[str] | None = None, verb: Verb | None = None) -> int:
    """Measure what is missing and build the page, or compare two runs; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.compare:
            return compare(options.out / "records", options.compare)
        return _results(options, verb or _in_a_process_of_its_own)
    except UserError as error:
        print(f"results: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--prompts", type=Path, metavar="DIR", help="prompts files; the hub's benchmarks without it")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where page and records/ go")
    parser.add_argument("--parts", type=_parts, default=PARTS, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a trial, whose figures mean nothing")
    parser.add_argument("--busy", action="store_true", help="measure although the machine has other work")
    for name in ("target", "drafter", "dtype", "device"):
        parser.add_argument(f"--{name}", help="as the verbs have it")
    parser.add_argument("--compare", type=Path, metavar="RECORDS", help="records of another run to compare with")
    return parser


def _parts(text: str) -> tuple[str, ...]:
    wanted = tuple(text.split(","))
    if unknown := [each for each in wanted if each not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none; there are {', '.join(PARTS)}")
    return wanted


def _results(options: argparse.Namespace, verb: Verb) -> int:
    records = options.out / "records"
    wanted = [each for each in MEASUREMENTS if each.verb in options.parts]
    missing = [each for each in wanted if options.again or not each.file(records).is_file()]
    if missing:
        _check(options)
        print(f"{len(missing)} of {len(wanted)} records to measure, {sum(each.minutes for each in missing)} minutes")
    load = os.getloadavg()[0]
    for each in missing:
        _measure(each, options, load, verb)
    if "report" not in options.parts:
        return 0
    there = [each.file(records) for each in MEASUREMENTS] + [records / COMPARISON]
    return verb(["report", *(str(each) for each in there if each.is_file()), "--out", str(options.out)])


def _check(options: argparse.Namespace) -> None:
    """Refuse what would leave figures that mean nothing."""
    if options.quick and options.out.resolve() == RESULTS:
        raise UserError("--quick would leave figures that mean nothing in docs/results; name another folder with --out")
    if options.prompts and not prompts_in(options.prompts):
        raise UserError(f"--prompts {options.prompts} has no .jsonl file; expected a folder of prompts files")
    if not options.busy and (load := os.getloadavg()[0]) > BUSY:
        raise UserError(
            f"the load of this machine is {load:.2f}; wait until it is below {BUSY}, or measure beside other work with"
            " --busy"
        )


def _measure(each: Measurement, options: argparse.Namespace, load: float, verb: Verb) -> None:
    """Make one record, which is written once it is whole."""
    print(f"{each.record}: {each.verb}, {each.minutes} minutes", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        line = [each.verb, *options_of(each, options.quick, options.prompts), *_pair(options), "--json", str(figures)]
        line += ["--out", str(Path(folder) / "calibration.json")] if each.verb == "calibrate" else []
        code = verb(line)
        if code or not figures.is_file():
            raise UserError(f"{each.verb} ended with exit code {code}, so {each.record}.json is not written; see above")
        minutes = (time.monotonic() - begun) / 60
        record = portable(read_json(figures)) | {"made": provenance(line, minutes, load, ROOT)}
        # Not the load that the measurement before this one has left behind.
        record.setdefault("machine", {})["load before"] = f"{load:.1f}"
        write_json(each.file(options.out / "records"), record)
    print(f"{each.record}: took {minutes:.1f}", flush=True)


def _pair(options: argparse.Namespace) -> list[str]:
    names = [name for name in ("target", "drafter", "dtype", "device") if getattr(options, name)]
    return [word for name in names for word in (f"--{name}", getattr(options, name))]


def _in_a_process_of_its_own(words: Sequence[str]) -> int:
    """Run ``dspark`` so that no measurement finds what another one left in memory."""
    program = "from dspark.cli.main import run; run()"
    return subprocess.run([sys.executable, "-c", program, *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
