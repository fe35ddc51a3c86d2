"""How well anything could foretell which drafts stand: the confidence that ships, networks on all that is known when a
slot is drafted, and the oracle c*, on answers that neither drafter nor fit has seen.

    python benchmarks/confidence_bound.py --fit TRAIN.jsonl --judge FILE... [--temperature 1] [--json FILE]

Known of slot k are the drafter's hidden state, what its sequential head makes of the tokens before, its law (the eight
largest logarithms, the entropy, how sure it is of the likeliest token), its confidence head, the embedding of that
likeliest token, and of the anchor what the target thought: its last hidden state there, the entropy of its law and the
anchor's own probability. Never x_k. Contexts are the target's own answers, teacher-forced; a slot counts where all
before it stood. Fates at a temperature are drawn from c* once, the same for all that are judged; fits see c* itself.
A network stops where prompts that are left out of its fit (one in five) say so.

Beside the AUC of each slot stands what it is worth: the speed over plain decoding of one user whose every block is
verified as far as that estimate of its chances says, at the prices of ``--prices`` (a plain step, a block's draft, a
verified draft: any unit), where each round of a block earns what c* expects of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from sequential_head import contexts
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dspark.cli.pair import load_quietly, resolve_drafter
from dspark.data.features import FeatureBatch, OnlineFeatures
from dspark.drafters.checkpoint import load_drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.heads import peaks, with_bias
from dspark.foundation.artifacts import write_json
from dspark.speculation.sampling import Sampling
from dspark.speculation.scores import auc
from dspark.targets.model import Target
from dspark.training.anchors import blocks_at, choose_anchors
from dspark.training.losses import Slots
from dspark.training.objective import supervised_slots

_SEQUENCES, _ROWS, _LARGEST = 8, 512, 8
_WIDTH, _STEPS, _EVERY, _PATIENCE, _BATCH = 128, 20000, 50, 8, 1024
_SCALARS = ("head", "peak", "largest", "entropy", "anchor")
_EACH = ("chance", "label", "stood", "reached", "answer", "block")
# What is read, and whether by a network or by one weight each.
READS: dict[str, tuple[tuple[str, ...], bool]] = {
    "confidence head, logistic": (("head",), False),
    "head and peak, logistic": (("head", "peak"), False),
    "scalars, logistic": (_SCALARS, False),
    "head and peak, network": (("head", "peak"), True),
    "scalars, network": (_SCALARS, True),
    "scalars, hidden and Markov states, network": ((*_SCALARS, "hidden", "markov"), True),
    "everything, network": ((*_SCALARS, "hidden", "markov", "likeliest", "target"), True),
}


@dataclass(frozen=True)
class Known:
    """Of N drafts of one slot: what was known ``[N, ...]`` by name, c* ``[N]`` (greedy: its fate), c* at temperature 1
    (what the head is taught), what became of each, whether all before it stood, and the numbers of answer and block.
    """

    of: dict[str, Tensor]
    chance: Tensor
    label: Tensor
    stood: Tensor
    reached: Tensor
    answer: Tensor
    block: Tensor

    def at(self, rows: Tensor) -> Known:
        """Some of them."""
        of = {name: x[rows] for name, x in self.of.items()}
        return Known(of, *(getattr(self, name)[rows] for name in _EACH))

    def inputs(self, names: Sequence[str]) -> Tensor:
        """``[N, w]``."""
        return torch.cat([self.of[name].reshape(len(self.chance), -1) for name in names], dim=1)


@torch.no_grad()
def known_of(
    target: Target, drafter: DSparkDrafter, source: OnlineFeatures, sampling: Sampling, anchors: int
) -> list[Known]:
    """By slot."""
    slots, generator = drafter.config.block_size, torch.Generator().manual_seed(0)
    found: list[list[Known]] = [[] for _ in range(slots)]
    for first in range(0, len(source), _SEQUENCES):
        batch = source.batch(range(first, min(first + _SEQUENCES, len(source))))
        positions_BA, valid_BA = choose_anchors(batch.supervised, anchors, generator)
        blocks = blocks_at(batch.ids, batch.supervised, positions_BA, valid_BA, slots)
        given, embedded_Nr = supervised_slots(drafter, batch, blocks)
        row_N, anchor_N, _ = blocks.supervised.nonzero(as_tuple=True)
        at_N = positions_BA[row_N, anchor_N]
        parts = []
        for c in torch.arange(len(row_N)).split(_ROWS):
            of, chance, label = _laws(target, drafter, given, c, sampling)
            of |= _of_anchor(target, batch, row_N[c], at_N[c])
            of |= {"hidden": given.hidden[c], "markov": given.summed[c]}
            of["head"] = drafter.taught_confidence(given.hidden[c], embedded_Nr[c])
            stood = torch.rand(len(c), generator=generator) < chance
            block = (first + row_N[c]) * anchors + anchor_N[c]
            parts.append(Known(of, chance, label, stood, torch.ones_like(stood), first + row_N[c], block))
        whole = _joined(parts)
        whole = replace(whole, reached=_reached(given.places, whole.stood))
        for slot in range(slots):
            found[slot].append(whole.at((given.places == slot).nonzero()[:, 0]))
    return [_joined(each) for each in found]


def _laws(
    target: Target, drafter: DSparkDrafter, given: Slots, c: Tensor, sampling: Sampling
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What the drafter's laws of some slots say of themselves, the chances of drafts from them, and the labels."""
    bias = given.summed[c] @ drafter.markov_head.output.T
    logits = with_bias(given.hidden[c] @ drafter.head.float().T, bias, drafter.markov_top_k)
    law = logits.log_softmax(dim=-1)
    best = law.argmax(dim=-1)
    ids = best if drafter.support is None else drafter.support[best]
    of = {
        "peak": peaks(logits),
        "largest": law.topk(_LARGEST, dim=-1).values,
        "entropy": _entropy(law),
        "likeliest": drafter.embed(ids),
    }
    truth = given.target_hidden[c] @ target.ends.head.float().T
    true_law = truth.softmax(dim=-1)
    inside = true_law if drafter.support is None else true_law[:, drafter.support]
    label = torch.minimum(law.exp(), inside).sum(dim=-1)
    return of, (ids == truth.argmax(dim=-1)).float() if sampling.greedy else label, label


def _of_anchor(target: Target, batch: FeatureBatch, row: Tensor, at: Tensor) -> dict[str, Tensor]:
    """What the target thought when it chose the anchors."""
    hidden, ids = batch.hidden[row, at - 1], batch.ids[row, at]
    law = (hidden @ target.ends.head.float().T).log_softmax(dim=-1)
    anchor = torch.stack((law.gather(1, ids[:, None])[:, 0], _entropy(law)), dim=1)
    return {"anchor": anchor, "target": hidden}


def _entropy(law: Tensor) -> Tensor:
    return -(law.exp() * law).sum(dim=-1)


def _joined(parts: Sequence[Known]) -> Known:
    of = {name: torch.cat([each.of[name] for each in parts]) for name in parts[0].of}
    return Known(of, *(torch.cat([getattr(each, name) for each in parts]) for name in _EACH))


def _reached(places: Tensor, stood: Tensor) -> Tensor:
    """Whether all slots of its block before each stood; blocks lie one behind the other."""
    found, before = torch.empty_like(stood), True
    for i, (place, mine) in enumerate(zip(places.tolist(), stood.tolist(), strict=True)):
        before = before or place == 0
        found[i] = before
        before = before and mine
    return found


Reader = Callable[[Known], Tensor]


def fitted(known: Known, names: Sequence[str], network: bool) -> Reader:
    """Log-odds of drafts by what is known of them, fitted to ``known``."""
    inputs = known.inputs(names)
    mean, spread = inputs.mean(dim=0), inputs.std(dim=0).clamp(min=1e-6)
    width = inputs.shape[1]
    torch.manual_seed(0)
    hidden = (nn.Dropout(0.1), nn.Linear(width, _WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(_WIDTH, 1))
    model = nn.Sequential(*hidden) if network else nn.Linear(width, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3 if network else 2e-2, weight_decay=1e-2 if network else 0)
    left_out = known.answer % 5 == 0
    x, y = (inputs - mean) / spread, known.chance
    generator, best, kept, since = torch.Generator().manual_seed(1), float("inf"), {}, 0
    mine = (~left_out).nonzero()[:, 0]
    for step in range(_STEPS):
        if step % _EVERY == 0:
            model.eval()
            with torch.no_grad():
                loss = float(binary_cross_entropy_with_logits(model(x[left_out])[:, 0], y[left_out]))
            since = 0 if loss < best else since + 1
            if loss < best:
                best, kept = loss, {name: each.clone() for name, each in model.state_dict().items()}
            if since > _PATIENCE:
                break
            model.train()
        rows = mine[torch.randint(len(mine), (_BATCH,), generator=generator)]
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(model(x[rows])[:, 0], y[rows]).backward()
        optimizer.step()
    model.load_state_dict(kept)
    model.eval()

    @torch.no_grad()
    def read(other: Known) -> Tensor:
        logits: Tensor = model((other.inputs(names) - mean) / spread)[:, 0]
        return logits

    return read


@dataclass(frozen=True)
class Judged:
    """What estimates of chances come to: AUC by slot, speed over plain decoding, and drafts verified in a round."""

    auc: list[float]
    speed: float
    verified: float

    def __str__(self) -> str:
        return " ".join(f"{each:.3f}" for each in self.auc) + f"   {self.speed:.3f} ({self.verified:.1f})"


def judged(judge: Sequence[Known], chances: Sequence[Tensor], prices: tuple[float, ...]) -> Judged:
    """``chances``: of every slot ``[N]`` that each draft stands if reached."""
    reached = [each.reached for each in judge]
    aucs = [
        auc(c[r].double().numpy(), each.stood[r].numpy()) for c, r, each in zip(chances, reached, judge, strict=True)
    ]
    whole = judge[-1].block  # blocks that have all slots
    at = [torch.isin(each.block, whole) for each in judge]
    believed, true = (
        torch.stack([c[rows].double() for c, rows in zip(each, at, strict=True)], dim=1).cumprod(dim=1)
        for each in (chances, [each.chance for each in judge])
    )
    tokens, earned = (torch.cat((torch.ones(len(x), 1), 1 + x.cumsum(dim=1)), dim=1) for x in (believed, true))
    plain, draft, row = prices
    takes = plain + draft + row * torch.arange(tokens.shape[1])
    rate, count = 1 / plain, torch.arange(len(tokens))
    for _ in range(20):  # the rate that verifying by it earns
        length = (tokens - rate * takes).argmax(dim=1)
        rate = float(earned[count, length].sum() / takes[length].sum())
    return Judged(aucs, rate * plain, float(length.double().mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--drafter", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--fit", type=Path, nargs="+", required=True)
    parser.add_argument("--judge", type=Path, nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=330, help="prompts to judge, and to fit to")
    parser.add_argument("--fit-limit", type=int, help="prompts to fit to, if not as many")
    parser.add_argument("--anchors", type=int, default=32, help="blocks of an answer")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--slots", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--prices", type=float, nargs=3, default=(4.0, 1.3, 0.5))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    target, sampling = load_quietly("smollm2-135m", options.dtype), Sampling(options.temperature)
    folder = resolve_drafter(options.drafter)
    drafter = load_drafter(folder, target.identity, target.ends, torch.float32, target.device)
    drafter.config = replace(drafter.config, block_size=options.slots)

    def known(files: list[Path], limit: int) -> list[Known]:
        source = contexts(target, drafter, files, limit, options.tokens, sampling)
        return known_of(target, drafter, source, sampling, options.anchors)

    fit, judge = known(options.fit, options.fit_limit or options.limit), known(options.judge, options.limit)
    counts = [[int(each.reached.sum()) for each in of] for of in (fit, judge)]
    print(f"drafts that are reached: to fit to {counts[0]}, to judge {counts[1]}", flush=True)
    prices = tuple(options.prices)
    found = {
        "oracle c*": judged(judge, [each.chance for each in judge], prices),
        "c* at temperature 1, the head's label": judged(judge, [each.label for each in judge], prices),
        "nothing: a constant for each slot": judged(judge, [0 * e.chance + e.chance.mean() for e in judge], prices),
    }
    for name, (reads, network) in READS.items():
        readers = [fitted(each, reads, network) for each in fit]
        chances = [read(each).sigmoid() for read, each in zip(readers, judge, strict=True)]
        found[name] = judged(judge, chances, prices)
    for name, each in found.items():
        print(f"{name:44s} {each}", flush=True)
    if options.json:
        readings = {name: asdict(each) for name, each in found.items()}
        write_json(options.json, {"temperature": options.temperature, "prices": prices, "readings": readings})


if __name__ == "__main__":
    main()
