"""What autocast would do to the same rows again and again, done once."""

from __future__ import annotations

import torch
from torch import Tensor


def under_autocast(x: Tensor) -> bool:
    """Whether products of ``x`` are cast where it lives."""
    return torch.is_autocast_enabled(x.device.type)


def product_dtype(x: Tensor) -> torch.dtype:
    """In which products take ``x``: autocast's, or its own without."""
    return torch.get_autocast_dtype(x.device.type) if under_autocast(x) else x.dtype


def for_products(x: Tensor) -> Tensor:
    """``x`` as the products under autocast take it, for several of them to share; ``x`` itself without autocast."""
    return x.to(product_dtype(x))


def narrowed(wide: Tensor, like: Tensor) -> Tensor:
    """A result computed in fp32 back in the dtype of ``like``; under autocast it stays as it is for what follows."""
    return wide if under_autocast(wide) else wide.to(like.dtype)
