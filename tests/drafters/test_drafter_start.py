"""A drafter started from target layers is those layers."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dspark.drafters.initialise import initialise_from_target
from dspark.foundation.errors import UserError

HEAD_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")


@pytest.fixture
def source(make_drafter):
    """State dicts of two layers, as a target would hand them over."""
    donor = make_drafter(seed=9)
    return [{name: tensor.clone() for name, tensor in layer.state_dict().items()} for layer in donor.layers]


def test_every_weight_has_a_source(make_drafter, source):
    drafter = make_drafter()
    del source[0][HEAD_NORMS[0]], source[0][HEAD_NORMS[1]]
    final, hidden = torch.rand(24), torch.rand(24)
    initialise_from_target(drafter, source, final_norm=final, hidden_norm=hidden)
    assert torch.equal(drafter.norm.weight, final) and torch.equal(drafter.hidden_norm.weight, hidden)
    for layer, given in zip(drafter.layers, source, strict=True):
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor, given.get(name, torch.ones(8))), name
    taps = torch.randn(1, 3, 72)
    assert_close(drafter.fc(taps), taps[..., -24:])
    head = drafter.markov_head
    assert head.bias(head.embed(torch.arange(50))).abs().max() == 0
    assert drafter.markov_head.markov_w1.weight.abs().max() > 0
    assert drafter.markov_head.markov_w1.weight.std() < 0.05
    assert all(parameter.requires_grad for parameter in drafter.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda layers: layers.pop(), "1 source layers were given for 2"),
        (lambda layers: layers[1].pop("mlp.up_proj.weight"), "source layer 1 lacks mlp.up_proj.weight"),
        (
            lambda layers: layers[0].update({"self_attn.q_proj.bias": torch.zeros(48)}),
            "has self_attn.q_proj.bias",
        ),
        (
            lambda layers: layers[0].update({"self_attn.k_proj.weight": torch.zeros(8, 24)}),
            r"k_proj.weight is \[8, 24\], the drafter's is \[16, 24\]",
        ),
    ],
)
def test_layers_of_another_kind_are_refused(make_drafter, source, change, words):
    change(source)
    with pytest.raises(UserError, match=words):
        initialise_from_target(make_drafter(), source, final_norm=torch.ones(24), hidden_norm=torch.ones(24))
