"""Frozen linear layers in layouts made for few rows: the fast fp32 path of a CPU without bf16 units.

``torch.nn.functional.linear`` hands fp32 products of few rows to a general matrix product that re-reads and re-orders
the weight at every call; a weight re-ordered once costs far less, and one that fits into half precision less again
(docs/lab_log.md). The same sums in another order: results agree with ``linear`` to fp32 rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

# The layout is chosen by oneDNN for this many rows; 64 was the best or equal best from 1 to 64 rows.
ROWS_HINT = 64
# Up to this many rows a half-precision weight is faster, the head's included (docs/lab_log.md). A constant and no
# measurement: another form is another rounding, and a run that is repeated or resumed must give the same bits.
FEW_ROWS = 8


class PackedLinear(nn.Module):
    """A frozen ``y = x W^T + b`` whose weight lives in oneDNN's own layout; not differentiable, not saveable."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS_HINT)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` fp32 to ``[..., out]``."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return result

    def extra_repr(self) -> str:
        """Shape, as ``nn.Linear`` prints it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class HalfLinear(nn.Module):
    """A frozen fp32 ``y = x W^T + b`` whose weight is kept in half precision: half the bytes to read, the same sums.

    Only for weights that lose nothing by it, as those of a bf16 checkpoint do. PyTorch has announced the end of these
    kernels; where they are missing ``can_halve`` says no.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fbgemm", category=UserWarning)  # the announced end
            self.packed = torch.fbgemm_pack_gemm_matrix_fp16(weight.detach())
            self.bias = weight.new_zeros(self.out_features) if bias is None else bias.detach()
            self.forward(weight.new_zeros(1, self.in_features))  # warns once, here

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` fp32 to ``[..., out]``."""
        rows = torch.fbgemm_linear_fp16_weight_fp32_activation(x.reshape(-1, self.in_features), self.packed, self.bias)
        return rows.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Shape, as ``nn.Linear`` prints it."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class TwoFormLinear(nn.Module):
    """A frozen product of half-precision numbers, summed in fp32, in the faster form for the number of rows.

    Few rows wait for the weight and read half the bytes (``HalfLinear``); many rows are bound by the sums, which
    ``PackedLinear`` does faster. Both hold the same numbers, six bytes a weight together.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.few, self.many = HalfLinear(weight, bias), PackedLinear(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` fp32 to ``[..., out]``."""
        rows = x.numel() // self.in_features
        out: Tensor = self.few(x) if rows <= FEW_ROWS else self.many(x)
        return out

    def extra_repr(self) -> str:
        """Shape, as ``nn.Linear`` prints it."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def can_pack(weight: Tensor) -> bool:
    """Whether this weight can be packed here: fp32 on a CPU whose torch was built with oneDNN."""
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return on_cpu and bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def can_halve(weight: Tensor) -> bool:
    """Whether this weight can be kept in half precision here, and is the same number there (or within 2^-25)."""
    if not can_pack(weight) or "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    exact = bool(((weight.half().float() - weight).abs() <= 2.0**-25).all())
    return exact and hasattr(torch, "fbgemm_linear_fp16_weight_fp32_activation")


def few_rows_linear(weight: Tensor, bias: Tensor | None = None) -> PackedLinear | HalfLinear:
    """The fastest form of a packable weight for the few rows of a draft."""
    return HalfLinear(weight, bias) if can_halve(weight) else PackedLinear(weight, bias)


class JoinedProduct:
    """Several products of the same rows as one: a call costs as much again as a small weight's bytes.

    Modules ask for their own parts one after another; the first computes all, and what is kept is dropped with the
    last. Rows are known by identity, so that parts of other rows are never mixed up.
    """

    def __init__(self, linears: list[nn.Linear], make: Callable[[Tensor, Tensor | None], nn.Module]) -> None:
        biases = [each.bias for each in linears]
        bias = None if biases[0] is None else torch.cat([b.detach() for b in biases])
        self.product = make(torch.cat([each.weight.detach() for each in linears]), bias)
        self._widths = [each.out_features for each in linears]
        self._held: tuple[Tensor, dict[int, Tensor]] | None = None

    def part(self, index: int, x: Tensor) -> Tensor:
        """The product of ``x`` with the weight of that number."""
        held = self._held  # one read and one write of the pair: another thread's rows can't come between
        if held is None or held[0] is not x or index not in held[1]:
            held = (x, dict(enumerate(self.product(x).split(self._widths, dim=-1))))
        part = held[1].pop(index)
        self._held = held if held[1] else None
        return part


class JoinedLinear(nn.Module):
    """One of the products of a ``JoinedProduct``."""

    def __init__(self, joined: JoinedProduct, index: int, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.joined, self._index = joined, index

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``, a view of the joined result."""
        return self.joined.part(self._index, x)


# Projections of one parent that read the same rows, in the families that name them so.
_SAME_ROWS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def join_linears(module: nn.Module, make: Callable[[Tensor, Tensor | None], nn.Module] = PackedLinear) -> int:
    """Replace packable projections of the same rows by parts of one product; returns how many products are saved."""
    saved = 0
    for parent in list(module.modules()):
        for names in _SAME_ROWS:
            linears = [child for name in names if type(child := getattr(parent, name, None)) is nn.Linear]
            alike = {(each.in_features, each.bias is None) for each in linears}
            if len(linears) < len(names) or len(alike) > 1 or not all(can_pack(each.weight) for each in linears):
                continue
            joined = JoinedProduct(linears, make)
            for index, (name, linear) in enumerate(zip(names, linears, strict=True)):
                setattr(parent, name, JoinedLinear(joined, index, linear))
            saved += len(names) - 1
    return saved


def pack_linears(module: nn.Module, make: Callable[[Tensor, Tensor | None], nn.Module] = PackedLinear) -> int:
    """Replace every packable ``nn.Linear`` below ``module`` in place by ``make(weight, bias)``; returns how many.

    For inference only: the originals are dropped, so the weights can't be trained or saved afterwards.
    """
    replaced = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and can_pack(child.weight):
                setattr(parent, name, make(child.weight, child.bias))
                replaced += 1
    return replaced
