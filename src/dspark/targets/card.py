"""What is known of a target without its weights: enough to ask others for its answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from dspark.foundation.errors import UserError, first_line
from dspark.speculation.sampling import Sampling
from dspark.targets.chat import Chat
from dspark.targets.sources import resolve_source


@dataclass(frozen=True)
class Card:
    """Name, tokenizer and template, what ends an answer, recommended sampling, and length of the context."""

    name: str
    chat: Chat
    stop_ids: frozenset[int]
    recommended: Sampling
    max_positions: int


def load_card(target: str) -> Card:
    """The card of the target named ``target`` (see ``resolve_source``); UserError where its files do not load."""
    source = resolve_source(target)
    try:
        config: Any = AutoConfig.from_pretrained(source.folder)
        tokenizer = AutoTokenizer.from_pretrained(source.folder)
    except Exception as error:  # readers raise many kinds on a damaged or unknown file
        raise UserError(
            f"{source.folder} has no tokenizer and configuration that load ({first_line(error)}); get its files again"
        ) from error
    generation = _generation(source.folder)
    recommended = source.sampling or recommended_of(generation)
    return Card(
        source.name, Chat(tokenizer), stop_ids_of(generation, config), recommended, config.max_position_embeddings
    )


def stop_ids_of(generation: GenerationConfig | None, config: Any) -> frozenset[int]:
    """Ids that end an answer, from the generation config or else from the model's own."""
    found = getattr(generation, "eos_token_id", None)
    if found is None:
        found = getattr(config, "eos_token_id", None)
    if found is None:
        return frozenset()
    return frozenset(found if isinstance(found, list) else [found])


def recommended_of(generation: GenerationConfig | None) -> Sampling:
    """The model's own recommended sampling, from its generation config; temperature 1 where it says nothing."""
    temperature = getattr(generation, "temperature", None)
    if getattr(generation, "do_sample", None) is False:
        return Sampling(temperature=0.0)
    return Sampling(
        temperature=1.0 if temperature is None else float(temperature),
        top_k=int(getattr(generation, "top_k", None) or 0),
        top_p=float(getattr(generation, "top_p", None) or 1.0),
    )


def _generation(folder: Path) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:  # there is none
        return None
