"""Answers from OpenAI-compatible servers that run the target: any number of them, each watched for its health.

A prompt travels as token ids, so that every server reads the same; answers come back as token ids where the server
gives them (vLLM: ``return_token_ids``). Elsewhere the text is tokenised again, and answers that do not fit what the
server counted are themselves counted.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import openai

from dspark.data.answering import Failure
from dspark.decoding.request import Completion, Request
from dspark.foundation.errors import UserError, first_line

# What another try, or another server, may mend.
_PASSING = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError)


class Ids(Protocol):
    """Text to ids, for servers that give text alone."""

    @property
    def end_id(self) -> int | None:
        """The id that ends an answer where only a stop is reported."""
        ...

    def continuation_ids(self, text: str) -> list[int]:
        """Ids of text in the middle of a conversation."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for, and how often a request is tried (by every server once before again); seconds.

    After its n-th failure in a row a server rests ``first_rest * 2^(n-1)``, ``longest_rest`` at most.
    """

    attempts: int = 6
    timeout: float = 600.0
    first_rest: float = 1.0
    longest_rest: float = 60.0


class Endpoint:
    """One server: how much it is doing, how it has been, and what its model is called."""

    def __init__(self, url: str, key: str, model: str, patience: Patience) -> None:
        self.url, self.model = url, model
        self.client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=patience.timeout)
        self.busy = 0
        self._failures, self._rests_until = 0, 0.0
        self._patience = patience

    @property
    def rest(self) -> float:
        """Seconds until it may be asked again."""
        return max(0.0, self._rests_until - time.monotonic())

    def failed(self) -> None:
        """Let it rest, longer each time."""
        self._failures += 1
        rest = self._patience.first_rest * 2.0 ** (self._failures - 1)
        self._rests_until = time.monotonic() + min(rest, self._patience.longest_rest)

    def succeeded(self) -> None:
        """Forget what was."""
        self._failures, self._rests_until = 0, 0.0


class EndpointAnswerer:
    """``urls`` up to and including ``/v1``; ``slots`` requests at most are under way at each.

    ``model``: its name at the servers (None: the only one that each has). ``need_ids`` refuses answers without token
    ids. Raises UserError where no server answers, and for one whose model can't be told.
    """

    def __init__(
        self,
        urls: Sequence[str],
        ids: Ids,
        stop_ids: Collection[int],
        *,
        slots: int,
        model: str | None = None,
        key: str = "none",
        need_ids: bool = False,
        patience: Patience | None = None,
    ) -> None:
        self.mismatched = 0
        self._ids, self._stops, self._need_ids = ids, frozenset(stop_ids), need_ids
        self._patience = patience or Patience()
        self._capacity, self._slots = slots * len(urls), slots
        self._submitted: deque[Request] = deque()
        self._endpoints = [Endpoint(url, key, name_at(url, key, model), self._patience) for url in urls]

    def submit(self, request: Request) -> None:
        """See ``Answerer``."""
        self._submitted.append(request)

    def run(self, requests: Iterable[Request]) -> Iterator[Completion | Failure]:
        """See ``Answerer``; requests are taken as others are answered, so that a file of any length may be given."""
        coming = iter(requests)
        under_way: set[Future[Completion | Failure]] = set()
        with _loop(self._close) as loop:
            while True:
                while len(under_way) < self._capacity:
                    request = self._submitted.popleft() if self._submitted else next(coming, None)
                    if request is None:
                        break
                    under_way.add(asyncio.run_coroutine_threadsafe(self._answer(request), loop))
                if not under_way:
                    return
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()

    async def _close(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.client.close()

    async def _answer(self, request: Request) -> Completion | Failure:
        reason = ""
        failed: list[Endpoint] = []
        for _ in range(self._patience.attempts):
            untried = [each for each in self._endpoints if each not in failed]
            if not untried:  # all have failed it: start again
                untried, failed = self._endpoints, []
            endpoint = await self._ready(untried)
            endpoint.busy += 1
            try:
                reply = await endpoint.client.completions.create(**_body(request, endpoint.model))
                endpoint.succeeded()
                return self._completion(request, reply)
            except _PASSING as error:
                endpoint.failed()
                failed.append(endpoint)
                reason = f"{endpoint.url}: {first_line(error)}"
            except (openai.APIError, ValueError) as error:  # refused, or not what the protocol says
                return Failure(request, f"{endpoint.url}: {first_line(error)}")
            finally:
                endpoint.busy -= 1
        return Failure(request, f"{self._patience.attempts} attempts failed, the last at {reason}")

    async def _ready(self, among: Sequence[Endpoint]) -> Endpoint:
        """The least busy of these servers that may be asked; waits until there is one."""
        while True:
            able = [each for each in among if not each.rest and each.busy < self._slots]
            if able:
                return min(able, key=lambda each: each.busy)
            rests = [each.rest for each in among if each.rest]
            await asyncio.sleep(min([*rests, 0.05]))

    def _completion(self, request: Request, reply: Any) -> Completion:
        choices = getattr(reply, "choices", None)
        if not choices:  # some other page, or another protocol
            raise ValueError("it did not answer with a completion")
        choice = choices[0]
        if choice.finish_reason not in ("stop", "length"):
            raise ValueError(f"it finished for the reason {choice.finish_reason!r}, expected 'stop' or 'length'")
        given = (choice.model_extra or {}).get("token_ids")
        if given is None and self._need_ids:
            raise ValueError("it gives no token ids; use a server that does (vLLM: return_token_ids)")
        ids = list(given) if given is not None else self._ids.continuation_ids(choice.text)
        if choice.finish_reason == "stop" and (not ids or ids[-1] not in self._stops):
            if self._ids.end_id not in self._stops:
                raise ValueError("it stopped without saying at which id, and the target has no certain one")
            ids.append(self._ids.end_id)
        if not ids or not all(type(each) is int for each in ids):
            raise ValueError("its answer holds no token ids")
        counted = getattr(reply.usage, "completion_tokens", None)
        if given is None and (counted not in (None, len(ids)) or self._ids.decode(ids) != choice.text):
            self.mismatched += 1
        return Completion(request, ids, choice.finish_reason, ())


def name_at(url: str, key: str, model: str | None) -> str:
    """What the target is called at ``url``; UserError where nobody answers, or where it has several models."""
    try:
        names = [each.id for each in openai.OpenAI(base_url=url, api_key=key, max_retries=1, timeout=10).models.list()]
    except openai.APIError as error:
        raise UserError(f"--endpoint {url}: no models could be listed ({first_line(error)}); is it up?") from error
    if model is None and len(names) == 1:
        return names[0]
    if model in names:
        return str(model)
    raise UserError(f"--endpoint {url} serves {', '.join(names) or 'no model'}; name one of them with --endpoint-model")


def _body(request: Request, model: str) -> dict[str, Any]:
    """The request as servers read it; settings outside OpenAI's own are sent only where they are used."""
    sampling = request.sampling
    extra: dict[str, Any] = {"return_token_ids": True}
    extra |= {"top_k": sampling.top_k} if sampling.top_k else {}
    extra |= {"min_p": sampling.min_p} if sampling.min_p else {}
    return {
        "model": model,
        "prompt": request.prompt_ids,
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": request.seed % 2**31,
        "extra_body": extra,
    }


@contextmanager
def _loop(close: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own; in the end what still runs in it is cancelled, and ``close`` is awaited."""

    async def end() -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await close()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="endpoints", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
