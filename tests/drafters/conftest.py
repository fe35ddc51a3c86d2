"""A tiny drafter whose every weight matters, the golden folder, and ways to draw from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_checkpoints import golden_of
from torch import Tensor

from dspark.drafters.config import DSparkConfig
from dspark.drafters.dspark import DSparkDrafter
from dspark.foundation.identity import ModelIdentity
from dspark.nn.ends import Ends
from dspark.speculation.loop import Sample
from dspark.speculation.sampling import Sampling, distribution, greedy_ids

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_target_layers": 6,
    "target_layer_ids": (-1, 2, 4),
    "mask_token_id": 7,
    "block_size": 4,
    "markov_rank": 5,
}


@pytest.fixture
def sizes() -> dict[str, Any]:
    return dict(SIZES)


@pytest.fixture
def make_drafter() -> Callable[..., DSparkDrafter]:
    def make(seed: int = 0, **changes: Any) -> DSparkDrafter:
        config = DSparkConfig(**(SIZES | changes))
        generator = torch.Generator().manual_seed(seed)
        size = config.vocab_size, config.hidden_size
        # Logits of a few units, as a trained model's: their rounding stays below the tolerances of the tests.
        ends = Ends(torch.randn(size, generator=generator), 0.3 * torch.randn(size, generator=generator))
        drafter = DSparkDrafter(config, ends)
        with torch.no_grad():
            for parameter in drafter.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                # Norm weights stay around one; everything else is large enough to be seen in the logits.
                parameter.copy_(1 + 0.3 * noise if parameter.dim() == 1 else 0.3 * noise)
        return drafter.eval()

    return make


@pytest.fixture
def identity() -> ModelIdentity:
    return ModelIdentity("org/tiny", "TinyForCausalLM", 24, 50, 6, "config", "weights" * 4, "tokenizer")


@pytest.fixture
def golden() -> Path:
    return golden_of("vanilla")


@pytest.fixture
def greedy() -> Callable[[list[Tensor]], Sample]:
    """A greedy sampler that notes the logits of every slot."""

    def sampler(seen: list[Tensor]) -> Sample:
        def sample(slot: int, logits: Tensor, support: Tensor | None) -> tuple[int, Tensor]:
            assert slot == len(seen)
            seen.append(logits.clone())
            return int(greedy_ids(logits)), distribution(logits, Sampling())

        return sample

    return sampler


@pytest.fixture
def forced() -> Callable[[list[Tensor], list[int]], Sample]:
    """A sampler that takes given indices whatever the logits, as teacher forcing does."""

    def sampler(seen: list[Tensor], indices: list[int]) -> Sample:
        def sample(slot: int, logits: Tensor, support: Tensor | None) -> tuple[int, Tensor]:
            seen.append(logits.clone())
            return indices[slot], distribution(logits, Sampling(temperature=1.0))

        return sample

    return sampler
