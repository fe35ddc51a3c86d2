"""How `dspark eval` decodes: every prompt plainly, with each drafter and by prompt lookup; what is kept, and when."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dspark.evaluation.evaluate import NGRAM, PLAIN, Heard, Measuring, Task, Trial, ways_of

if TYPE_CHECKING:
    from dspark.calibration.record import Recorded
    from dspark.cli.eval_prompts import Asked, Dialogue
    from dspark.cli.pair import Pair
    from dspark.decoding.modes import Mode
    from dspark.decoding.request import Request
    from dspark.decoding.single import Decoder
    from dspark.evaluation.samples import Samples
    from dspark.speculation.acceptance import Round
    from dspark.speculation.sampling import Sampling

_DIGITS = 4  # of logits and peaks that are kept: a probability is off by less than 3e-5


@dataclass(frozen=True)
class Settings:
    """What decides, beside target and drafters, what an answer is and what it costs."""

    sampling: Sampling
    max_tokens: int
    seed: int
    coupled: bool
    planned: bool
    lookup: bool
    raw: bool
    """Prompts are asked without a chat template."""

    def asdict(self) -> dict[str, Any]:
        """Values for a JSON file."""
        return vars(self) | {"sampling": vars(self.sampling)}


class Evaluator:
    """The decoders of all drafters by name, beside one target."""

    def __init__(self, decoders: Mapping[str, Decoder], settings: Settings) -> None:
        from dspark.cli.judging import judge_of

        self._decoders, self._settings = dict(decoders), settings
        self._plain = next(iter(self._decoders.values()))
        self.target = self._plain.target
        sampling = settings.sampling
        judge = judge_of(self.target, sampling) if sampling.greedy or settings.coupled else None
        self._measuring = Measuring(ways_of([*self._decoders]), self._decode, time.perf_counter, judge)

    def run(
        self, asked: Sequence[Asked], samples: Samples | None
    ) -> tuple[list[Trial], list[dict[str, str | int]], int]:
        """The trials of all turns, turns that were left out as too long, and how many trials ``samples`` had kept."""
        from dspark.cli.eval_prompts import Dialogue
        from dspark.foundation.garbage import what_is_loaded_stays
        from dspark.foundation.progress import progress
        from dspark.speculation.acceptance import RoundTally

        dialogues = [Dialogue.of(each) for each in asked]
        first, tally = next(iter(self._decoders)), RoundTally()
        trials: list[Trial] = []
        left_out: list[dict[str, str | int]] = []
        kept = 0
        with what_is_loaded_stays(), progress(sum(each.left for each in dialogues), "eval", "answers") as bar:
            for dialogue in dialogues:
                while dialogue.left:
                    task = dialogue.task(self.target.chat, self._settings.seed)
                    if len(task.prompt_ids) >= self.target.max_positions:
                        left_out.append(_named(task))
                        bar.advance(dialogue.left)
                        break
                    known = samples.kept(task) if samples is not None else None
                    kept += known is not None
                    trials.append(known or self._answered(task, len(trials), samples))
                    self._answer(dialogue, trials[-1])
                    tally.extend(trials[-1].runs[first].rounds)
                    bar.advance(1, tau=tally.tau)
        return trials, left_out, kept

    def _answered(self, task: Task, index: int, samples: Samples | None) -> Trial:
        trial = self._measuring.trial(task, index)
        if not self._settings.planned:
            # Heard in a decoding of its own: nothing that is timed is listened to.
            trial = replace(trial, heard={name: self._hear(task, each) for name, each in self._decoders.items()})
        if samples is not None:
            samples.keep(trial)
        return trial

    def _answer(self, dialogue: Dialogue, trial: Trial) -> None:
        dialogue.conversation.answers.append(self.target.chat.decode(trial.runs[PLAIN].ids))

    def _request(self, task: Task) -> Request:
        from dspark.decoding.request import Request

        asked = self._settings
        return Request(task.id, task.prompt_ids, asked.sampling, task.seed, asked.max_tokens, coupled=asked.coupled)

    def _decode(self, task: Task, way: str) -> Sequence[Round]:
        mode: Mode = "plain" if way == PLAIN else "ngram" if way == NGRAM else "dspark"
        completion = self._decoders.get(way, self._plain).answer(self._request(task), mode)
        self.target.chat.decode(completion.output_ids)
        return completion.rounds

    def _hear(self, task: Task, decoder: Decoder) -> Heard:
        from dspark.calibration.record import Recorder

        assert decoder.drafter is not None
        recorder = Recorder(decoder.drafter.config.block_size, self.target.stop_ids, {task.id: 0})
        replace(decoder, observe=recorder).answer(self._request(task), "dspark")
        found = recorder.recorded()
        outcomes = found.outcomes
        logits, peaks, oracle = (
            each.round(_DIGITS).tolist() for each in (outcomes.logits, outcomes.peaks, found.oracle)
        )
        return Heard(logits, peaks, oracle, outcomes.accepted.tolist())


def decoder_of(pair: Pair, settings: Settings) -> Decoder:
    """The pair's, with rounds that are planned as ``generate`` plans them, or with whole ones."""
    from dspark.speculation.planner.single import WHOLE

    decoder = replace(pair.decoder, lookup=settings.lookup)
    return decoder if settings.planned else replace(decoder, greedy=WHOLE, sampled=WHOLE)


def recorded_of(trials: Sequence[Trial], way: str, block: int) -> Recorded | None:
    """What was heard of a drafter, by the trial's number; None where nobody listened."""
    import numpy as np

    from dspark.calibration.outcomes import Outcomes
    from dspark.calibration.record import Recorded

    heard = [trial.heard[way] for trial in trials if way in trial.heard]
    if not heard:
        return None
    columns = zip(*((each.logits, each.peaks, each.oracle) for each in heard), strict=True)
    logits, peaks, oracle = (
        np.array([row for rows in column for row in rows], dtype=np.float64).reshape(-1, block) for column in columns
    )
    accepted = np.array([n for each in heard for n in each.accepted], dtype=np.int64)
    number = np.repeat(np.arange(len(trials)), [len(each.accepted) for each in heard])
    return Recorded(Outcomes(logits, peaks, np.full_like(accepted, block), accepted), oracle, number)


def _named(task: Task) -> dict[str, str | int]:
    domain, benchmark, identifier, turn = task.key
    return {"domain": domain, "benchmark": benchmark, "id": identifier, "turn": turn, "tokens": len(task.prompt_ids)}
