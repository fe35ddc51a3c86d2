"""Tapped layers: the hidden states that a drafter reads.

Transformers can return hidden states, but the hooks it leaves on every layer for that are paid by every later step
(docs/lab_log.md). Here hooks stand for one forward pass, on the tapped layers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def tapped(layers: nn.ModuleList, taps: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Outputs ``[1, T, d]`` of the layers ``taps`` (0-based) in the forward pass inside; -1 is the first's input."""
    found: dict[int, Tensor] = {}

    def entered(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        found[-1] = given[0] if given else named["hidden_states"]

    def left(index: int) -> Any:
        def note(_: nn.Module, given: Any, out: Any) -> None:
            found[index] = out[0] if isinstance(out, tuple) else out

        return note

    hooks = [layers[tap].register_forward_hook(left(tap)) for tap in taps if tap >= 0]
    if -1 in taps:
        hooks.append(layers[0].register_forward_pre_hook(entered, with_kwargs=True))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
