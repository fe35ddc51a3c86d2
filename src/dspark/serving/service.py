"""What one server serves and within which bounds; how a request of a client becomes requests of the engine."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import TemplateError

from dspark.decoding.engine import Engine, Limits
from dspark.decoding.named import NGRAM, OFF, Speculation
from dspark.decoding.planners import Adaptive
from dspark.decoding.request import Request
from dspark.decoding.wishes import Wishes
from dspark.drafters.drafter import Drafter
from dspark.foundation.errors import UserError
from dspark.serving.errors import ApiError
from dspark.serving.mailbox import Mailbox
from dspark.serving.metrics import Metrics
from dspark.serving.protocol import Asked, ChatRequest, CompletionRequest, Message
from dspark.serving.worker import Event, Ticket, Worker
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target

FIXED = "fixed"
# Drafts of a request that asks for mode "fixed" and does not say how many.
_USUAL_DRAFTS = 4
_COMPLETION_TOKENS = 16  # OpenAI's default for completions
# Texts longer than this are tokenised beside the event loop.
_LONG = 4096


@dataclass(frozen=True)
class Bounds:
    """What a server lets anybody do: bytes of a body, tokens of a prompt (None: the context) and of an answer, answers
    to a request, requests that wait, seconds of a request and of reading a body.
    """

    body_bytes: int = 2**20
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    answers: int = 16
    waiting: int = 128
    seconds: float = 600.0
    body_seconds: float = 30.0


@dataclass(frozen=True)
class Job:
    """The engine's requests of one request of a client, and where their events arrive."""

    id: str
    created: int
    asked: Asked
    mode: str
    prompts: Sequence[Sequence[int]]
    tickets: Sequence[Ticket]
    events: Mailbox[tuple[Ticket, Event]]
    started: float

    @property
    def prompt_tokens(self) -> int:
        """Each prompt once."""
        return sum(map(len, self.prompts))


@dataclass
class Service:
    """One engine with its worker and metrics, under the name ``model``; ``mode`` is every request's own where it does
    not choose. ``key``: what clients must know, None for nothing. ``hosts``: names that it is asked by besides this
    machine's own, None for any.
    """

    model: str
    target: Target
    mode: Speculation
    block: int
    engine: Engine
    worker: Worker
    metrics: Metrics
    bounds: Bounds = Bounds()
    key: str | None = None
    hosts: frozenset[str] | None = None
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        # One thread: tokenizers may be shared between threads, but not changed in two at once.
        self._tokenising = ThreadPoolExecutor(1, "tokenizer")
        self.since = time.monotonic()

    @classmethod
    def of(
        cls,
        target: Target,
        drafter: Drafter | None,
        mode: Speculation,
        adaptive: Adaptive | None,
        limits: Limits,
        bounds: Bounds = Bounds(),  # frozen
        *,
        model: str | None = None,
        key: str | None = None,
    ) -> Service:
        """With an engine of its own."""
        block = drafter.config.block_size if drafter is not None and mode.name not in (OFF, NGRAM) else 0
        name = model or target.name
        worker: Worker | None = None
        engine = mode.engine(
            target,
            drafter,
            (),
            limits,
            mode.choosing(adaptive, limits.slots, block),
            lambda work, verdict, logits_NV: worker.observe(work) if worker else None,
        )
        metrics = Metrics(name, engine)
        worker = Worker(engine, limits.slots + bounds.waiting, metrics)
        return cls(name, target, mode, block, engine, worker, metrics, bounds, key)

    @property
    def modes(self) -> list[str]:
        """What requests may choose."""
        fixed = [f"{FIXED}{drafts}" for drafts in range(1, self.block + 1)]
        return [OFF, *fixed, *({self.mode.name} - {OFF, *fixed})]

    @property
    def longest_prompt(self) -> int:
        """Tokens that a prompt may have, so that an answer has room."""
        most = min(self.target.max_positions, self.engine.room) - 1
        return min(most, self.bounds.prompt_tokens or most)

    def check_model(self, name: str | None) -> None:
        """ApiError 404 for another model than this."""
        if name is not None and name != self.model:
            said = f"there is no model {name[:200]!r} here; this server has {self.model!r}"
            raise ApiError(404, said, param="model", code="model_not_found")

    async def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation as the template renders it; ApiError where it refuses."""
        turns = [{"role": _role(each.role), "content": each.text} for each in messages]
        return await self._tokenised(self.target.chat.prompt_ids, turns, sum(len(each["content"]) for each in turns))

    async def text_ids(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text, with whatever the tokenizer puts in front unless that is not wanted."""
        chat = self.target.chat
        return await self._tokenised(chat.encode if special else chat.continuation_ids, text, len(text))

    def checked_ids(self, ids: Sequence[int], param: str) -> list[int]:
        """The same; ApiError where one is no token."""
        if max(ids, default=0) >= self.target.vocab_size:
            said = f"{param}: an id is {max(ids)}; the target has 0 to {self.target.vocab_size - 1}"
            raise ApiError(400, said, param=param)
        return list(ids)

    async def chat_job(self, asked: ChatRequest) -> Job:
        """A conversation as requests, handed in."""
        self._check(asked, 1)
        tokens = asked.max_completion_tokens or asked.max_tokens
        return self._job("chatcmpl", asked, [await self.chat_ids(asked.messages)], tokens, "messages")

    async def completion_job(self, asked: CompletionRequest) -> Job:
        """Prompts as requests, handed in."""
        texts, ids = _prompts(asked.prompt)
        self._check(asked, len(texts) + len(ids))
        prompts = [await self.text_ids(text) for text in texts] + [self.checked_ids(each, "prompt") for each in ids]
        return self._job("cmpl", asked, prompts, asked.max_tokens or _COMPLETION_TOKENS, "prompt")

    def _check(self, asked: Asked, prompts: int) -> None:
        """What can be said before anything is tokenised."""
        self.check_model(asked.model)
        if asked.n * prompts > self.bounds.answers:
            raise ApiError(
                400, f"n: {asked.n * prompts} answers are asked for, this server gives {self.bounds.answers}", param="n"
            )
        self.worker.check(asked.n * prompts)

    def _job(self, kind: str, asked: Asked, prompts: list[list[int]], tokens: int | None, param: str) -> Job:
        identity, mode = uuid.uuid4().hex, self._mode(asked)
        events = Mailbox[tuple[Ticket, Event]]()
        seed = random.getrandbits(62) if asked.seed is None else asked.seed
        tickets = []
        drafts = self._drafts(mode)
        for index in range(asked.n * len(prompts)):
            ids = prompts[index // asked.n]
            request = self._request(
                f"{identity}-{index}", asked, ids, seed + index % asked.n, self._tokens(ids, tokens, param)
            )
            tickets.append(Ticket(replace(request, drafts=drafts), index, events, asked.speculation.trace))
        self.worker.submit(tickets)
        name = f"{kind}-{identity}"
        return Job(name, int(time.time()), asked, mode, prompts, tickets, events, time.monotonic())

    def _tokens(self, ids: Sequence[int], tokens: int | None, param: str) -> int:
        """Tokens of the answer at most; ApiError where the prompt is too long, or too many are asked for."""
        if not ids:
            raise ApiError(400, f"{param}: the prompt has no tokens; give some text", param=param)
        if len(ids) > self.longest_prompt:
            said = f"the prompt has {len(ids)} tokens, this server takes {self.longest_prompt}; shorten it"
            raise ApiError(400, said, param=param, code="context_length_exceeded")
        most = self.bounds.answer_tokens or self.target.max_positions
        if tokens is not None and tokens > most:
            raise ApiError(400, f"max_tokens is {tokens}, this server gives {most} at most", param="max_tokens")
        return min(tokens or most, self.target.max_positions - len(ids), self.engine.room - len(ids))

    def _request(self, identity: str, asked: Asked, ids: list[int], seed: int, tokens: int) -> Request:
        try:
            request = Request(
                identity,
                ids,
                self._sampling(asked),
                seed,
                tokens,
                ignore_stop=asked.ignore_eos,
                wishes=_wishes(asked, tokens),
                stop_ids=tuple(self.checked_ids(asked.stop_token_ids, "stop_token_ids")),
                stops=asked.stops,
                logprobs=asked.alternatives,
                priority=asked.priority,
                deadline=time.monotonic() + self.bounds.seconds,
            )
            self.engine.limit(request)
        except UserError as error:
            raise ApiError(400, str(error), code="invalid_value") from error
        return request

    def _sampling(self, asked: Asked) -> Sampling:
        """As asked, and what was left open as the target's makers recommend."""
        own = self.target.recommended
        temperature = own.temperature if asked.temperature is None else asked.temperature
        if temperature == 0:
            return Sampling()
        top_k = own.top_k if asked.top_k is None else max(0, asked.top_k)
        top_p = own.top_p if asked.top_p is None else asked.top_p
        return Sampling(temperature, top_k, top_p, own.min_p if asked.min_p is None else asked.min_p)

    def _mode(self, asked: Asked) -> str:
        """By its full name; ApiError for one that this server does not have."""
        options = asked.speculation
        name = options.mode or (FIXED if options.draft_tokens else self.mode.name)
        if name == FIXED:
            name = f"{FIXED}{options.draft_tokens or self.mode.fixed or min(_USUAL_DRAFTS, max(1, self.block))}"
        elif options.draft_tokens is not None:
            raise ApiError(400, "speculative.draft_tokens goes with mode fixed", param="speculative.draft_tokens")
        if name not in self.modes:
            raise ApiError(400, f"no mode {name!r} here; this server has {', '.join(self.modes)}", param="speculative")
        return name

    def _drafts(self, mode: str) -> int | None:
        """A request's own number of drafts; None where its mode is the server's."""
        if mode == self.mode.name:
            return None
        return 0 if mode == OFF else Speculation.named(mode, self.block).fixed

    async def _tokenised(self, tokenise: Any, what: Any, size: int) -> list[int]:
        try:
            if size < _LONG:
                found: list[int] = tokenise(what)
                return found
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._tokenising, tokenise, what)
        except UserError as error:
            raise ApiError(400, str(error), param="messages") from error
        except TemplateError as error:
            raise ApiError(400, f"the chat template refuses these messages: {error}", param="messages") from error


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> tuple[list[str], list[list[int]]]:
    """Texts, and lists of ids; one of the two is empty."""
    if isinstance(prompt, str):
        return [prompt], []
    texts = [each for each in prompt if isinstance(each, str)]
    lists = [each for each in prompt if isinstance(each, list)]
    return texts, lists or ([] if texts else [[each for each in prompt if isinstance(each, int)]])


def _wishes(asked: Asked, tokens: int) -> Wishes | None:
    if asked.min_tokens > tokens:
        raise ApiError(400, f"min_tokens is {asked.min_tokens}, the answer has {tokens} at most", param="min_tokens")
    wishes = Wishes(
        {int(token): bias for token, bias in asked.logit_bias.items()},
        asked.repetition_penalty,
        asked.presence_penalty,
        asked.frequency_penalty,
        asked.min_tokens,
    )
    return None if wishes == Wishes() else wishes
