"""Records as the verbs write them, made up from round numbers: no run has these figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SAMPLING = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
MACHINE = {"processor": "A processor", "cores": "2, 2 threads for PyTorch", "software": "dspark 0.1.0, torch 2.13.0"}
Row = dict[str, Any]


def part(tau: float, speedup: float, prompts: int = 40, equal: int | None = None, unexplained: int = 0) -> Row:
    return {
        "prompts": prompts,
        "tau": tau,
        "macro_tau": tau,
        "speedup": speedup,
        "tok_s": 100 * speedup,
        "plain_tok_s": 100.0,
        "ngram_tau": 1.25,
        "ngram_speedup": 1.05,
        "repeat_share": 0.04,
        "tau_without_repeats": tau - 0.1,
        "intervals": {"tau": [tau - 0.15, tau + 0.15], "speedup": [speedup - 0.06, speedup + 0.07]},
        "identical": {
            "equal": prompts if equal is None else equal,
            "total": prompts,
            "unexplained": unexplained,
        },
    }


def drafter(name: str, gain: float, **changes: Any) -> Row:
    domains = {"math": part(2.2 * gain, 1.4 * gain), "code": part(2.1 * gain, 1.36 * gain)}
    domains["chat"] = part(1.8 * gain, 1.2 * gain)
    rates = [min(1.0, rate * gain) for rate in (0.62, 0.56, 0.53, 0.51, 0.5)]
    return {
        **part(2.05 * gain, 1.32 * gain, 120),
        "domains": domains,
        "conditional_acceptance": rates,
        "reached": [2400, 1500, 830, 430, 160],
        "target": "a-target",
        "drafter": name,
        "dtype": "float32",
        "weights": "float32",
        "device": "cpu",
        **changes,
    }


def evaluation(*drafters: Row, **changes: Any) -> Row:
    rows = list(drafters) or [drafter("runs/one/drafter", 1.0), drafter("runs/two/drafter", 0.93)]
    settings = {"sampling": SAMPLING, "max_tokens": 128, "seed": 0, "coupled": False, "planned": True, "lookup": True}
    files = {"math": ["prompts/math.jsonl"], "chat": ["prompts/chat.jsonl"]}
    several = {"drafters": rows} if len(rows) > 1 else {}
    return rows[0] | several | settings | {"machine": MACHINE, "kept": 0, "limit": 40, "files": files} | changes


def bench(modes: Sequence[str] = ("off", "fixed1", "fixed4", "ngram", "adaptive")) -> Row:
    rows = []
    for users in (1, 2, 4, 8, 16):
        plain = 100.0 * users**0.55
        for mode in modes:
            verified = {"off": 0.0, "fixed1": 1.0, "fixed4": 4.0, "ngram": 0.6, "adaptive": 4.0 / users**0.45}[mode]
            gain = 1 + 0.22 * verified**0.7 - 0.03 * verified * users**0.6
            gain = max(gain, 1.02) if mode == "adaptive" else gain
            throughput = plain * gain
            rows.append(
                {
                    "mode": mode,
                    "concurrency": users,
                    "throughput_tok_s": throughput,
                    "throughput_quartiles": [0.96 * throughput, throughput, 1.03 * throughput],
                    "per_user_tok_s": throughput / users,
                    "tau": 1 + 0.5 * verified**0.6,
                    "verify_len": verified,
                    "draft_len": verified * 1.2,
                    "ttft_ms": 40.0 + 10 * users,
                    "planner_ms": 0.2,
                    "step_ms": 10.0 + 2 * users,
                    "requests": 40,
                    "over": {"mode": "off", "median": gain, "interval": [gain - 0.08, gain + 0.08]},
                    "identical": {"equal": 40, "total": 40, "unexplained": 0},
                }
            )
    settings = {"sampling": SAMPLING, "max_tokens": 128, "seed": 0, "repeats": 5, "prompts": ["prompts/math.jsonl"]}
    pair = {"target": "a-target", "drafter": "runs/one/drafter", "dtype": "bfloat16", "weights": "bfloat16"}
    return pair | settings | {"machine": MACHINE, "rows": rows, "costs": None}


def calibration(block: int = 5) -> Row:
    def scores(off: float) -> Row:
        return {
            "ece": [off / k for k in range(1, block + 1)],
            "perfect_ece": [0.01 / k for k in range(1, block + 1)],
            "brier": [(0.17 + off / 3) / k for k in range(1, block + 1)],
            "auc": [0.8 + 0.02 * k for k in range(block)],
        }

    def curves(off: float) -> list[Row]:
        found = []
        for k in range(block):
            predicted = [(i + 0.5) / 15 * 0.95**k for i in range(15)]
            found.append({"predicted": predicted, "rate": [p + off * p * (1 - p) for p in predicted]})
        return found

    thresholds = [0.05 * i for i in range(20)]

    def sweep(bend: float) -> Row:
        verified = [block * (1 - t) ** bend for t in thresholds]
        return {
            "threshold": thresholds,
            "acceptance": [0.4 + 0.55 * t**bend for t in thresholds],
            "verified": verified,
            "tau": [1 + 0.4 * v**0.7 for v in verified],
        }

    return {
        "rounds": 20000,
        "judged_rounds": 10000,
        "before": scores(0.1),
        "after": scores(0.06),
        "chosen": {"kind": "logistic", **scores(0.03)},
        "tilted": scores(0.02),
        "constant": scores(0.12),
        "oracle": scores(0.001),
        "reliability": {"before": curves(-0.5), "chosen": curves(0.15), "tilted": curves(0.05)},
        "thresholds": {"before": sweep(1.5), "chosen": sweep(1.0)},
        "sampling": SAMPLING,
        "max_tokens": 128,
        "seed": 0,
        "drafter": "runs/one/drafter",
        "prompts": ["prompts/calibration.jsonl"],
        "judge": [],
    }


def costs() -> Row:
    tokens, requests = [1, 2, 4, 8, 16, 32, 64], [1, 2, 3, 4, 8, 16]

    def step(n: int, drafting: int) -> float:
        return 8 + 0.5 * n + (1.5 + 0.15 * drafting if drafting else 0)

    timed = [
        {
            "tokens": n,
            "requests": max(1, n // 4),
            "context": 256,
            "drafting": drafting,
            "measured_ms": step(n, drafting) * (1 + 0.04 * ((n + drafting) % 5 - 2)),
            "foretold_ms": step(n, drafting),
            "fitted": n != 8,
        }
        for n in tokens
        for drafting in (0, 5, 40)
    ]
    return {
        "batch_tokens": tokens,
        "step_ms": [step(n, 0) for n in tokens],
        "requests": requests,
        "draft_ms": [1.5 + 0.75 * n for n in requests],
        "steps": len(timed),
        "timed": timed,
        "median_error": 0.042,
        "target": "a-target",
        "drafter": "runs/one/drafter",
        "machine": MACHINE,
    }


def log(best: float = 2.2) -> list[Row]:
    rows: list[Row] = []
    for step in range(10, 401, 10):
        rows.append({"step": step, "seconds": 0.4 * step, "loss": 1.2 + 2.0 / (1 + step / 60), "l1": 0.8})
        if step % 100 == 0:
            tau = best - 0.8 / (1 + step / 80)
            rates = [0.6 + 0.1 * (tau - 2), 0.55, 0.5]
            figures = {"tau": tau, "greedy_tau": tau + 0.3, "conditional_acceptance": rates, "blocks": 500}
            rows.append({"step": step, "validation": figures | {"greedy_acceptance": rates}})
    return rows


RECIPE = """target: a-target
dtype: float32
data: {responses: [answers/train.xz], max_tokens: 512}
drafter: {kind: dspark, layers: 3, block_size: 5}
trainer: {steps: 400, seed: 0}
"""


def decoded(tau: float, block: int, few: bool = False) -> Row:
    reached = [max(20, int(2000 * 0.55**k)) for k in range(block)]
    contexts = [(0, 128), (128, 256), (256, 512)]
    return {
        "tau": tau,
        "macro_tau": tau + 0.05,
        "tau_interval": [tau - 0.12, tau + 0.12],
        "rounds": 2000,
        "prompts": 60,
        "domains": {
            name: {"tau": tau + d, "rounds": 700} for name, d in (("math", 0.3), ("code", 0.1), ("chat", -0.3))
        },
        "conditional_acceptance": [min(0.98, 0.25 * tau + 0.1 - 0.02 * k) for k in range(block)],
        "reached": [150] * block if few else reached,
        "contexts": [
            {"from": a, "to": b, "tau": tau - 0.1 * i, "rounds": 900 if i < 2 else 120}
            for i, (a, b) in enumerate(contexts)
        ],
    }


def run(arm: str, tau: float, tables: Sequence[str], seed: int = 0, **changes: Any) -> Row:
    values: Row = {"layers": 3, "block_size": 5, "lr": 0.0015, "kind": "dspark", "head_share": None, **changes}
    block = int(values["block_size"])
    rates = [0.6] * block
    held = {"tau": tau - 0.2, "greedy_tau": tau - 0.05, "conditional_acceptance": rates, "greedy_acceptance": rates}
    both = {"greedy": decoded(tau, block), "temperature 1": decoded(tau - 0.35, block)}
    return {
        "record": "comparison",
        "arm": arm,
        "tables": list(tables),
        "seed": seed,
        "steps": 400,
        "step_price": 1.0,
        "tokens": 1_234_567,
        "seconds": 160.2,
        "validation": held | {"blocks": 500},
        "decoded": both,
        **values,
    }


def comparison() -> list[Row]:
    arms = {
        "DSpark vanilla": 2.3,
        "DSpark gated": 2.32,
        "DSpark RNN": 2.35,
        "DFlash": 2.0,
        "Eagle3": 1.9,
        "MTP-1": 1.55,
    }
    also = {arm: ["longer"] for arm in ("DSpark vanilla", "DFlash", "Eagle3")}
    rows = [
        run(
            arm,
            tau + 0.04 * seed,
            ["tokens", "time", *also.get(arm, [])] + (["depth"] * (seed == 0 and arm[0] == "D")),
            seed,
        )
        for arm, tau in arms.items()
        for seed in (0, 1)
    ]
    for row in rows:
        if row["seed"] == 0:
            row["speed"] = {"greedy": {"speedup": 1.5, "interval": [1.4, 1.6], "tau": 2.0}}
            row["speed"]["temperature 1"] = {"speedup": 1.1, "interval": None, "tau": 1.7}
    lookup = {"layers": None, "lr": None, "kind": "ngram", "validation": None, "seconds": 0.0, "tokens": 0}
    rows.append(run("prompt lookup", 1.5, ["tokens", "time"], **lookup))
    for layers in (1, 2):
        for arm, tau in (("DSpark vanilla", 2.0), ("DFlash", 1.7)):
            rows.append(
                run(f"{arm}, {layers} layer{'s' * (layers > 1)}", tau + 0.12 * layers, ["depth"], layers=layers)
            )
    for block, share in ((3, 0.004), (7, 0.008), (11, 0.011), (15, 0.013)):
        for arm, tau, head in (("DSpark vanilla", 2.3, share), ("DFlash", 2.0, None)):
            name = f"{arm}, K = {block}"
            rows.append(run(name, tau - 0.6 / block, ["lengths"], block_size=block, head_share=head))
    for arm, tau in (("DSpark vanilla", 3.3), ("DFlash", 2.75), ("Eagle3", 2.5)):
        rows.append(run(arm, tau, ["longer"], steps=1600))
    rows.append(run("DFlash, DSpark's losses", 2.1, ["losses"]))
    for lr in (0.0005, 0.001, 0.002, 0.004):
        for arm, best in (("DSpark vanilla", 0.0015), ("DFlash", 0.002)):
            tau = 2.2 - 90 * abs(lr - best)
            rows.append(run(arm, tau, ["sweep"], lr=lr, decoded=None))
    return rows


def write_all(folder: Path) -> list[Path]:
    """One record of each kind; returns what to name to `dspark report`, in the order of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {"eval": evaluation(), "calibrate": calibration(), "bench": bench(), "profile": costs()}
    for name, data in made.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    write_rows(folder / "comparison.jsonl", comparison())
    run_folder = folder / "a-run"
    run_folder.mkdir(exist_ok=True)
    write_rows(run_folder / "log.jsonl", log())
    (run_folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    names = ("eval.json", "comparison.jsonl", "calibrate.json", "bench.json", "profile.json", "a-run")
    return [folder / name for name in names]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
