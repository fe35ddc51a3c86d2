"""What "auto" means, and that a wrong name is a user's error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dspark.foundation import devices
from dspark.foundation.devices import (
    cpuinfo_has_bf16,
    multiplies_bf16,
    resolve_device,
    resolve_dtype,
)
from dspark.foundation.errors import UserError

CPU = torch.device("cpu")


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    for name in ("cuda", "cuda:1", "meta", "toaster", ""):
        with pytest.raises(UserError, match="device"):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto").type == resolve_device("cuda:0").type == "cuda"
    with pytest.raises(UserError, match="sees 1"):
        resolve_device("cuda:1")


def test_dtypes_by_name() -> None:
    assert resolve_dtype("float32", CPU) is torch.float32
    assert resolve_dtype("bfloat16", CPU) is torch.bfloat16
    assert resolve_dtype("float16", CPU) is torch.float16
    assert resolve_dtype("int8", CPU) is torch.int8
    for name in ("int8", "int16"):
        with pytest.raises(UserError, match=f"dtype {name} is for CPUs only"):
            resolve_dtype(name, torch.device("cuda:0"))
    with pytest.raises(
        UserError, match="'int4' is not supported; expected one of auto, bfloat16, float32, float16, int16, int8"
    ):
        resolve_dtype("int4", CPU)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, False),
        ({"architecture": "arm64"}, False),
    ],
)
def test_units_for_bf16_are_seen_but_a_target_on_a_cpu_is_fp32_with_or_without_them(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert multiplies_bf16(CPU) is expected
    assert resolve_dtype("auto", CPU) is torch.float32


def test_an_older_pytorch_is_answered_from_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for answer in (True, False):
        monkeypatch.setattr(devices, "cpuinfo_has_bf16", lambda path, answer=answer: answer)
        assert multiplies_bf16(CPU) is answer


def test_cpuinfo_is_read_by_whole_words(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: X\nflags\t\t: fpu avx512_bf16 sse\n", encoding="utf-8")
    assert cpuinfo_has_bf16(path)
    path.write_text("bugs\t: avx512_bf16\nflags\t\t: fpu avx512_bf16x sse\n", encoding="utf-8")
    assert not cpuinfo_has_bf16(path)
    assert not cpuinfo_has_bf16(tmp_path / "absent")


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), True), ((8, 0), True), ((7, 5), False)])
def test_a_gpu_before_ampere_gets_fp32(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert multiplies_bf16(torch.device("cuda:0")) is expected
    assert (resolve_dtype("auto", torch.device("cuda:0")) is torch.bfloat16) is expected
