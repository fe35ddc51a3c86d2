"""Where tensors live and in which precision: "auto" is decided here and nowhere else.

PyTorch is imported inside the functions, so that naming a device costs nothing.
The CUDA branches follow PyTorch's documentation and have not been run on a GPU yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "bfloat16", "float32", "float16", "int16", "int8")
_BF16_FLAGS = (
    "avx512_bf16",
    "amx_bf16",
)  # instructions that multiply bf16; without them PyTorch emulates it, slower than fp32


def resolve_device(name: str = "auto") -> torch.device:
    """The device called ``name``: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises UserError for a name that PyTorch doesn't know, another kind of device, or a GPU that isn't there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r} is not known; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(f"device {name!r} asked for, but PyTorch sees {count} CUDA devices here; use --device cpu")
    elif device.type != "cpu":
        raise UserError(f"device {name!r} is not supported; expected auto, cpu, cuda or cuda:N")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called ``name`` (one of ``DTYPES``) on ``device``.

    "auto" is bfloat16 on a GPU from Ampere on, else float32: on a CPU, bf16 instructions or not, a step of one request
    is faster in fp32 with weights in their smallest exact form (docs/lab_log.md), and its numbers are the target's. On
    a CPU float16, int8 and bfloat16 are of weights alone (bfloat16 of all that is multiplied where it has instructions
    for that), and int16 is of what blocks of 4 or 8 bits are multiplied with. Raises UserError for another name.
    """
    import torch

    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and multiplies_bf16(device) else torch.float32
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not supported; expected one of {', '.join(DTYPES)}")
    if name in ("int8", "int16") and device.type != "cpu":
        raise UserError(f"dtype {name} is for CPUs only; use --dtype bfloat16 on a GPU")
    precision: torch.dtype = getattr(torch, name)
    return precision


def multiplies_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bf16 in hardware: a GPU from Ampere on (compute capability 8.0), a CPU with
    avx512_bf16 or AMX. Large products are about twice as fast in it there.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    report = getattr(torch.cpu, "get_capabilities", None)  # not in every version we accept
    if report is not None:
        capabilities = report()
        return any(bool(capabilities.get(flag, False)) for flag in _BF16_FLAGS)
    return cpuinfo_has_bf16(Path("/proc/cpuinfo"))


def cpuinfo_has_bf16(path: Path) -> bool:
    """Whether the first processor in a Linux cpuinfo file has the instructions; False without such a file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return any(flag in flags for flag in _BF16_FLAGS)
