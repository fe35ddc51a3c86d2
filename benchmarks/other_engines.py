"""Plain decoding beside what a CPU user would run instead: transformers, llama.cpp and vLLM, all in one run.

    python benchmarks/other_engines.py [--llama BIN/llama-batched-bench --gguf FILE] [--vllm PYTHON]
                                       [--prompts FILE...] [--json FILE]

``--vllm``: an interpreter of an environment of its own that has vLLM (built for CPUs). Every engine answers the same
number of prompts of 64 random ids with 128 tokens each, greedily and whatever they say, at 1, 8 and 32 requests (our
core with bfloat16 weights and transformers at 1 alone); the engines take turns, so that a machine that changes its
speed is unfair to none. ``--prompts``: 256 of these are then answered to their end (or 256 tokens), 64 at once, by the
core and by transformers in batches. Refuses to run on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from batched_core import throughput
from transformers import AutoModelForCausalLM

from dspark.data.prompts import read_in_turn
from dspark.decoding.engine import Engine, Limits
from dspark.decoding.request import Request
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target, load_target
from dspark.targets.sources import resolve_source

PROMPT, ANSWER = 64, 128
# (requests) -> tokens a second with the prompts counted in, and without; None where the engine does not tell.
Run = Callable[[int], tuple[float | None, float | None]]

# Run as a file of its own: vLLM starts further processes from it.
VLLM = """
import json, os, sys, time

def main():
    from vllm import LLM, SamplingParams, __version__
    folder, dtype, answer, channel = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    engine = LLM(model=folder, dtype=dtype, enforce_eager=True, max_model_len=1024, max_num_seqs=64,
                 enable_prefix_caching=False, seed=0)
    sampling = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True)
    answers = os.fdopen(channel, "w")
    print(json.dumps({"version": __version__}), file=answers, flush=True)
    for line in sys.stdin:
        prompts = [{"prompt_token_ids": ids} for ids in json.loads(line)]
        started = time.perf_counter()
        out = engine.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        print(json.dumps({"tokens": sum(len(each.outputs[0].token_ids) for each in out), "seconds": seconds}),
              file=answers, flush=True)

if __name__ == "__main__":
    main()
"""


def prompts(requests: int, vocabulary: int) -> list[list[int]]:
    """Random ids, the same for every engine."""
    made = torch.Generator().manual_seed(requests)
    return torch.randint(100, vocabulary, (requests, PROMPT), generator=made).tolist()


def own(target: Target) -> Run:
    """Plain decoding by the core."""

    def run(requests: int) -> tuple[float, float]:
        some = [
            Request(f"{i}", ids, Sampling(), i, ANSWER, ignore_stop=True)
            for i, ids in enumerate(prompts(requests, target.vocab_size))
        ]
        engine = Engine(target, some, Limits(requests, requests * (PROMPT + ANSWER + 128)))
        started, read = time.perf_counter(), 0.0
        while shares := engine.admission.shares():
            engine.step(shares)
            running = engine.admission.running
            if not read and len(running) == requests and all(row.rounds for row in running):
                read, answered = time.perf_counter(), sum(len(row.output_ids) for row in running)
        ended = time.perf_counter()
        tokens = requests * ANSWER
        return tokens / (ended - started), (tokens - answered) / (ended - read)

    return run


def with_transformers(folder: Path, dtype: torch.dtype) -> Run:
    """``transformers.generate`` in one batch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def run(requests: int) -> tuple[float, None]:
        ids = torch.tensor(prompts(requests, model.config.vocab_size))
        length: dict[str, Any] = {"max_new_tokens": ANSWER, "min_new_tokens": ANSWER}
        started = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **length)
        return requests * ANSWER / (time.perf_counter() - started), None

    return run


def with_llama(program: Path, gguf: Path, threads: int) -> Run:
    """llama.cpp's own benchmark of batches."""

    def run(requests: int) -> tuple[float, float]:
        sizes = {
            "-npp": PROMPT,
            "-ntg": ANSWER,
            "-npl": requests,
            "-c": requests * (PROMPT + ANSWER) + 64,
            "-t": threads,
        }
        command = [str(program), "-m", str(gguf), "--output-format", "jsonl"]
        command += [str(part) for pair in sizes.items() for part in pair]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        (found,) = (json.loads(line) for line in out.splitlines() if line.startswith("{"))
        tokens = requests * ANSWER
        return tokens / (found["t_pp"] + found["t_tg"]), tokens / found["t_tg"]

    return run


class Vllm:
    """vLLM in a process of its own, asked line by line; it has all of PyTorch's threads and 2 GiB of cache."""

    def __init__(self, python: Path, folder: Path, dtype: str, vocabulary: int) -> None:
        read, write = os.pipe()
        self._script = Path(tempfile.mkdtemp()) / "serve.py"
        self._script.write_text(VLLM)
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{torch.get_num_threads() - 1}",
        }
        self._process = subprocess.Popen(
            [str(python), str(self._script), str(folder), dtype, str(ANSWER), str(write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            pass_fds=[write],
            env=os.environ | settings,
        )
        os.close(write)
        self._answers = os.fdopen(read)
        self._vocabulary = vocabulary
        first = self._answers.readline()
        if not first:
            sys.exit(f"{python} could not start vLLM with {dtype}; try it by hand")
        self.version: str = json.loads(first)["version"]

    def __call__(self, requests: int) -> tuple[float, None]:
        """Tokens a second, prompts counted in."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(prompts(requests, self._vocabulary)) + "\n")
        self._process.stdin.flush()
        found = json.loads(self._answers.readline())
        return found["tokens"] / found["seconds"], None

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        shutil.rmtree(self._script.parent)


def measure(engines: dict[str, Run], requests: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Each engine in turn, one run to warm up."""
    found: dict[str, dict[str, list[float]]] = {name: {"whole": [], "decode": []} for name in engines}
    for repeat in range(1 + repeats):
        for name, run in engines.items():
            rates = run(requests)
            for kind, rate in zip(("whole", "decode"), rates, strict=True):
                if repeat and rate is not None:
                    found[name][kind].append(rate)
    return found


def show(requests: int, found: dict[str, dict[str, list[float]]]) -> None:
    """Medians, and the ratio of ours to each in the same repeat with its quartiles."""
    print(f"\n{requests} requests, tokens a second: median (ours / theirs: median [quartiles])")
    ours = found["dspark"]
    for name, kinds in found.items():
        cells = []
        for kind, rates in kinds.items():
            if rates:
                ratios = [a / b for a, b in zip(ours[kind], rates, strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
                cells.append(f"{kind} {statistics.median(rates):7.1f} ({middle:.2f} [{low:.2f}, {high:.2f}])")
        print(f"  {name:28s} {'   '.join(cells)}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--vllm", type=Path)
    parser.add_argument("--vllm-dtype", default="float32")
    parser.add_argument("--requests", default="1,8,32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer to a prompt, at most")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.getloadavg()[0] > 0.5:
        sys.exit(f"the load of this machine is {os.getloadavg()[0]:.2f}; run when it is below 0.5")
    folder = resolve_source(options.target).folder
    packed = load_target(options.target)
    engines: dict[str, Run] = {"dspark": own(packed)}
    slow = {"dspark, bfloat16": own(load_target(options.target, dtype="bfloat16"))}
    slow["transformers, float32"] = with_transformers(folder, torch.float32)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "weights": packed.weights}
    if options.llama is not None:
        engines["llama.cpp"] = with_llama(options.llama, options.gguf, torch.get_num_threads())
    vllm = None
    if options.vllm is not None:
        vllm = Vllm(options.vllm, folder, options.vllm_dtype, packed.vocab_size)
        engines[f"vLLM, {options.vllm_dtype}"] = vllm
        versions["vllm"] = vllm.version
    print(versions)
    results: dict[str, Any] = {}
    for requests in map(int, options.requests.split(",")):
        found = measure(engines | (slow if requests == 1 else {}), requests, options.repeats)
        show(requests, found)
        results[f"{requests}"] = found
    if vllm is not None:
        vllm.stop()
    if options.prompts is not None:
        chosen = [p.first_messages() for p in read_in_turn(options.prompts, 256)]
        ids = [packed.chat.prompt_ids(messages) for messages in chosen]
        results["prompts"] = throughput(packed, ids, options.tokens, batch=64)
        print("\nprompts", json.dumps(results["prompts"], indent=1), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"versions": versions, "results": results}, indent=1))


if __name__ == "__main__":
    main()
