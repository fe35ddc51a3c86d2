"""The kinds of drafters, by what their configurations are."""

from __future__ import annotations

from typing import Any

from dspark.drafters.config import DrafterConfig
from dspark.drafters.drafter import Drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.drafters.mtp import MTPDrafter
from dspark.nn.ends import Ends

DRAFTERS: dict[str, type[Drafter]] = {
    each.config_type.kind: each for each in (DSparkDrafter, Eagle3Drafter, MTPDrafter)
}


def drafter_of(config: DrafterConfig, ends: Ends) -> Drafter:
    """A new drafter of that configuration, with random weights."""
    return DRAFTERS[config.kind](config, ends)


def config_of(kind: str, values: dict[str, Any]) -> DrafterConfig:
    """The configuration of that kind with these values."""
    return DRAFTERS[kind].config_type(**values)
