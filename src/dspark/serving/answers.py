"""What is told of answers as they grow: text, ids, log-probabilities, and the rounds that they came in."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from dspark.decoding.logprobs import TokenLogprob
from dspark.serving.errors import ApiError
from dspark.serving.service import Job, Service
from dspark.serving.tokens import CONTEXT, AnswerText, TextStream, pieces
from dspark.serving.worker import Ended, Progress, Ticket
from dspark.speculation.acceptance import Round, RoundTally
from dspark.targets.chat import Chat

_STATUS = {
    "deadline": (504, "timeout"),
    "refused": (400, "invalid_value"),
    "shutdown": (503, "shutting_down"),
    "broken": (500, "not_finite"),
}


@dataclass
class Piece:
    """What is new of an answer: any number of rounds together. ``finish``: why it ends here, None: it goes on."""

    index: int
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    summary: dict[str, Any] | None = None

    @property
    def tells(self) -> bool:
        """Whether there is anything to say."""
        return bool(self.text or self.logprobs or self.rounds or self.finish)

    def add(self, later: Piece) -> None:
        """What came next of the same answer."""
        self.text += later.text
        self.ids += later.ids
        self.logprobs += later.logprobs
        self.rounds += later.rounds
        self.finish, self.summary = later.finish, later.summary


class Answer:
    """One answer as it grows."""

    def __init__(self, ticket: Ticket, mode: str, chat: Chat, summary: bool) -> None:
        self.tokens = 0
        self._ticket, self._mode, self._chat, self._summary = ticket, mode, chat, summary
        self._text = AnswerText(chat.decode, ticket.request.stops)
        self._rounds: list[Round] = []
        self._pieces = TextStream(chat.decode)
        self._before = list(ticket.request.prompt_ids[-CONTEXT:])

    def piece(self, progress: Progress) -> Piece:
        """What a round adds."""
        round = progress.round
        ids = list(round.tokens)
        self.tokens += len(ids)
        self._rounds.append(round)
        piece = Piece(self._ticket.index, self._text.push(ids, round.finish is not None), ids, list(progress.logprobs))
        if self._ticket.trace:
            piece.rounds = [self._traced(progress)]
        if round.finish is not None:
            piece.finish = round.finish
            piece.summary = self._summed() if self._summary else None
        return piece

    def _traced(self, progress: Progress) -> dict[str, Any]:
        """Pieces of the text, token by token; of drafts that were rejected, what they would have added."""
        round, decode = progress.round, self._chat.decode
        tokens = [self._pieces.push([token]) for token in round.tokens]
        if round.finish is not None:
            tokens[-1] += self._pieces.finish()
        accepted = [*self._before, *round.tokens[: round.accepted]]
        rejected = pieces(decode, accepted[-CONTEXT:], progress.drafts[round.accepted :])
        self._before = [*self._before, *round.tokens][-CONTEXT:]
        return {
            "source": round.source if progress.drafts else None,
            "drafts": [*tokens[: round.accepted], *rejected],
            "accepted": round.accepted,
            "tokens": tokens,
        }

    def _summed(self) -> dict[str, Any]:
        tally = RoundTally()
        tally.extend(self._rounds)
        seconds = time.monotonic() - self._ticket.asked
        return {
            "mode": self._mode,
            "tau": 1.0 if math.isnan(tally.tau) else tally.tau,
            "rounds": tally.rounds,
            "drafted": tally.drafted,
            "verified": tally.verified,
            "accepted": tally.accepted,
            "verify_lengths": [each.verified for each in self._rounds if each.index],
            "tokens": self.tokens,
            "seconds": seconds,
            "tok_s": self.tokens / seconds,
        }


async def pieces_of(service: Service, job: Job) -> AsyncGenerator[Piece]:
    """Of all answers of a job, as they come; what came while nobody read comes as one. Whoever leaves early gives up
    the rest. ApiError for an answer that does not come to its end.
    """
    chat, summary = service.target.chat, job.asked.speculation.summary
    answers = {ticket: Answer(ticket, job.mode, chat, summary) for ticket in job.tickets}
    going_on = len(answers)
    try:
        while going_on:
            fresh: dict[int, Piece] = {}
            ended: Ended | None = None
            for ticket, event in await job.events.take():
                if isinstance(event, Ended):
                    ended = event  # what was written before it came is told first
                    break
                piece = answers[ticket].piece(event)
                going_on -= piece.finish is not None
                if ticket.index in fresh:
                    fresh[ticket.index].add(piece)
                else:
                    fresh[ticket.index] = piece
            for piece in fresh.values():
                yield piece
            if ended is not None:
                raise error_of(ended)
    finally:
        service.worker.cancel(job.tickets)


def error_of(ended: Ended) -> ApiError:
    """What a client is told of a request that ended before its answer did."""
    status, code = _STATUS.get(ended.reason, (503, "engine_failed"))
    return ApiError(status, ended.message, code=code)


async def whole(service: Service, job: Job) -> list[Piece]:
    """Every answer of a job, in one piece each."""
    answers = [Piece(ticket.index) for ticket in job.tickets]
    async for piece in pieces_of(service, job):
        answers[piece.index].add(piece)
    return answers


def chat_logprobs(chat: Chat, found: list[TokenLogprob]) -> dict[str, Any]:
    """As chat completions tell them."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        text = chat.piece(token)
        return {"token": text, "logprob": _finite(logprob), "bytes": None if "\ufffd" in text else list(text.encode())}

    return {
        "content": [
            one(each.token, each.logprob) | {"top_logprobs": [one(*top) for top in each.top]} for each in found
        ],
        "refusal": None,
    }


def completion_logprobs(chat: Chat, found: list[TokenLogprob], offset: int) -> dict[str, Any]:
    """As completions tell them; ``offset``: characters of the answer's tokens before these."""
    tokens = [chat.piece(each.token) for each in found]
    offsets, at = [], offset
    for text in tokens:
        offsets.append(at)
        at += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(each.logprob) for each in found],
        "top_logprobs": [{chat.piece(token): _finite(value) for token, value in each.top} for each in found],
        "text_offset": offsets,
    }


def _finite(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, -9999.0)
