"""What a figure of speed can't be read without: the machine, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import dspark

if TYPE_CHECKING:
    import torch


def load_now() -> str:
    """The system's load over the last minute, "unknown" where there is none; ask before any work is done."""
    try:
        return f"{os.getloadavg()[0]:.1f}"
    except OSError:
        return "unknown"


def machine_facts(device: torch.device, load: str) -> dict[str, str]:
    """Label to value, for people to read."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "processor": processor_name(Path("/proc/cpuinfo")),
        "cores": f"{cores}, {torch.get_num_threads()} threads for PyTorch",
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
    facts["system"] = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    facts["software"] = f"dspark {dspark.__version__}, torch {torch.__version__}"
    return facts | {"load before": load}


def processor_name(cpuinfo: Path) -> str:
    """The processor's name: from Linux's cpuinfo, else what Python knows."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, names), platform.processor() or platform.machine())
