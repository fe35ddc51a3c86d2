"""Weights in panels: every form gives the numbers it stands for, and a row's result knows nothing of its neighbours."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dspark.kernels import machine
from dspark.kernels.product import Form, product_kernel
from dspark.nn.forms import _panels, rounded_to_bytes, smallest
from dspark.nn.panels import Panels

QUANTISED = {
    "Q4_0": (gguf.GGMLQuantizationType.Q4_0, Form.NIBBLE),
    "Q4_1": (gguf.GGMLQuantizationType.Q4_1, Form.NIBBLE),
    "Q5_0": (gguf.GGMLQuantizationType.Q5_0, Form.BYTE),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, Form.BYTE),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantised(kind: str, weight: Tensor) -> Tensor:
    """What a GGUF file of that kind gives back, by the format's own library."""
    found = gguf.quantize(weight.numpy(), QUANTISED[kind][0])
    return torch.from_numpy(gguf.dequantize(found, QUANTISED[kind][0]).copy())


def weight_of(form: Form, outputs: int, width: int) -> Tensor:
    weight = random(outputs, width)
    if form is Form.NIBBLE:
        return quantised("Q4_1", weight)
    if form is Form.BYTE:
        return rounded_to_bytes(weight)
    return weight.half().float() if form is Form.HALF else weight.bfloat16().float() if form is Form.BRAIN else weight


def floats(weight: Tensor) -> Panels:
    return _panels(Form.FLOAT, weight, [])


@pytest.mark.parametrize("outputs", [16, 50])
@pytest.mark.parametrize("form", Form)
def test_every_form_gives_its_weight_back(form: Form, outputs: int) -> None:
    # Half precision is tried first; it does not reach so low.
    weight = weight_of(form, outputs, 96) * (2.0**-30 if form is Form.BRAIN else 1.0)
    panels = smallest(weight)
    assert panels.form is form and torch.equal(panels.weight(), weight)


@given(
    form=st.sampled_from(list(Form)),
    rows=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 24, 25, 49, 97, 200]),
    outputs=st.sampled_from([1, 16, 40, 100]),
    width=st.integers(1, 5),
)
def test_every_form_gives_the_same_bits_and_so_does_every_number_of_rows(
    form: Form, rows: int, outputs: int, width: int
) -> None:
    width = 32 * width if form.grouped else 32 * width + 3
    weight = weight_of(form, outputs, width)
    if form is Form.BRAIN:
        weight[0, 0] = 2.0**-90  # beyond half precision
    panels = smallest(weight)
    assert panels.form is form
    x = random(rows, width, seed=1)
    found = panels(x)
    assert torch.equal(found, floats(weight)(x)), "the weight is read as the fp32 number it stands for"
    alone = torch.cat([panels(row[None]) for row in x])
    assert torch.equal(found, alone), "a row's result does not depend on its neighbours"
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("form", Form)
def test_the_number_of_threads_changes_no_bit(form: Form) -> None:
    panels, x = smallest(weight_of(form, 100, 64)), random(30, 64, seed=1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(panels(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", QUANTISED)
def test_the_blocks_of_a_gguf_file_are_found_again(kind: str) -> None:
    weight = random(50, 96)
    weight[0] = 0.0
    weight[1, :32] = 0.25
    weight[2] = weight[2].abs()
    weight[3] = -weight[3].abs()
    weight[4] *= 1e-3
    dequantised = quantised(kind, weight)
    assert smallest(dequantised).form is QUANTISED[kind][1]
    turned = dequantised.view(5, 2, 5, 96).transpose(1, 2).reshape(50, 96)  # as loaders reorder the rows of heads
    assert smallest(turned).form is QUANTISED[kind][1]
    assert torch.equal(smallest(turned)(torch.eye(96)), turned.T)


@pytest.mark.parametrize("kind", QUANTISED)
def test_control_one_number_beside_the_grid_is_not_rounded_to_it(kind: str) -> None:
    dequantised = quantised(kind, random(50, 96))
    dequantised[41, 70] = torch.nextafter(dequantised[41, 70], torch.tensor(9.0))
    assert smallest(dequantised).form is Form.FLOAT


def test_control_a_panel_with_one_count_changed_gives_another_product() -> None:
    panels, x = smallest(quantised("Q4_1", random(16, 32))), random(2, 32, seed=1)
    before = panels(x)
    panels.weights[0, 3, 5] ^= 16
    assert (panels(x) != before).any(dim=0).tolist() == [i == 5 for i in range(16)]


def test_rounding_to_bytes_is_a_fixed_point_half_a_step_away_at_most() -> None:
    weight = random(20, 64)
    rounded = rounded_to_bytes(weight)
    step = weight.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
    assert ((rounded - weight).unflatten(1, (-1, 32)).abs() <= 0.57 * step).all(), "the step itself is rounded"
    assert torch.equal(rounded_to_bytes(rounded), rounded)
    odd = random(3, 40)
    assert torch.equal(rounded_to_bytes(odd), odd)


def test_sixteen_and_thirty_two_outputs_a_panel_are_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x, found = random(9, 64, seed=1), []
    for lanes in (16, 32):  # 32 is for wider registers than this machine may have
        for module in ("nn.panels", "kernels.product", "nn.forms"):
            monkeypatch.setattr(f"dspark.{module}.lanes", lambda lanes=lanes: lanes)
        product_kernel.cache_clear()
        found.append([smallest(weight_of(form, 70, 64))(x) for form in Form])
    product_kernel.cache_clear()
    assert all(torch.equal(narrow, wide) for narrow, wide in zip(*found, strict=True))


def test_machine_code_is_kept_and_a_damaged_file_is_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "cache_dir", lambda: tmp_path)
    x, weight = random(3, 64, seed=1), random(16, 64)
    expected = floats(weight)(x)
    for damage in (None, b"", b"x" * 40):
        for path in tmp_path.glob("kernels/*"):
            whole = path.read_bytes()
            assert hashlib.sha256(whole[32:]).digest() == whole[:32]
            if damage is not None:
                path.write_bytes(damage)
        product_kernel.cache_clear()
        assert torch.equal(floats(weight)(x), expected)
        assert len(list(tmp_path.glob("kernels/*"))) == 1
    product_kernel.cache_clear()


def test_a_folder_that_cannot_be_written_to_costs_time_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("a file where the folder should be")
    monkeypatch.setattr(machine, "cache_dir", lambda: tmp_path)
    product_kernel.cache_clear()
    assert floats(random(16, 8))(random(2, 8)).shape == (2, 16)
    product_kernel.cache_clear()


def test_a_large_weight_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = quantised("Q4_1", random(50, 64))
    expected = smallest(weight)
    monkeypatch.setattr("dspark.nn.forms._CHUNK", 16)
    found = smallest(weight)
    assert found.form is Form.NIBBLE and found.scales is not None and expected.scales is not None
    assert torch.equal(found.weights, expected.weights) and torch.equal(found.scales, expected.scales)
    weight[49, 0] = 1 / 3
    assert smallest(weight).form is Form.FLOAT, "one number of the last part"
