"""Gemma 3 270M itself: read from its GGUF file as Hugging Face reads it, beyond its window too, and exact with drafts.

Its terms of use are its makers', so nothing here fetches it (docs/families.md says where it is). By name:

    DSPARK_GEMMA_GGUF=gemma-3-270m-q4_k_m.gguf python -m pytest -m slow -rs tests/real/test_gemma.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dspark.decoding.modes import Mode
from dspark.decoding.request import Request
from dspark.decoding.single import Decoder
from dspark.evaluation.identity import judge, replay
from dspark.foundation.settings import load_settings
from dspark.speculation.acceptance import RoundTally
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target, load_target
from dspark.targets.session import TargetSession
from dspark.targets.sources import resolve_source
from dspark.training.recipe import Recipe
from dspark.training.start import new_drafter

VARIABLE = "DSPARK_GEMMA_GGUF"
FILE = os.environ.get(VARIABLE, "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FILE, reason=f"{VARIABLE} does not name the file of Gemma 3 270M (docs/families.md)"),
]
RECIPE = Path(__file__).parents[2] / "src" / "dspark" / "recipes" / "gemma3-270m.yaml"
TEXTS = [
    "The capital of France is",
    "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n    return",
    "Question: A train goes 60 miles in 2 hours. How far does it go in 5 hours?\nAnswer:",
]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """The recipe's drafter before its first step: wrong most of the time, which is what a proof wants."""
    recipe = load_settings(Recipe, RECIPE)
    target = load_target(FILE, "float32", "cpu", pack=False)
    drafter = new_drafter(recipe, target, []).eval()
    target.pack()
    drafter.pack()
    return Decoder(target, drafter)


def test_its_layers_are_a_program_and_most_weights_bytes(decoder: Decoder) -> None:
    target = decoder.target
    assert target.vocab_size == 262_144 and target.config.sliding_window == 512
    assert target._compiled is not None and target.weights["int8"] > target.weights["float32"]
    assert decoder.drafter is not None and decoder.drafter.program is not None


def test_it_is_hugging_faces_own_model_within_its_window_and_beyond(decoder: Decoder) -> None:
    target = decoder.target
    ids = (target.chat.encode("\n".join(TEXTS * 12)))[:640]
    assert len(ids) == 640
    model = AutoModelForCausalLM.from_pretrained(
        resolve_source(FILE).folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=100).logits[0]
        model.config.sliding_window = 640
        unseen = model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=100).logits[0]
    found = TargetSession(target, 640).extend(ids, 100).logits_NV
    largest = expected.abs().max()
    assert (found - expected).abs().max() < 1e-4 * largest
    assert (found - unseen).abs().max() > 1e-3 * largest, "control: the window matters here"


@pytest.mark.parametrize("mode", ["dspark", "ngram"])
def test_greedy_texts_are_its_own(decoder: Decoder, mode: Mode) -> None:
    total = RoundTally()
    for text in TEXTS:
        prompt = decoder.target.chat.encode(text)
        plain, drafted = ([*decoder.stream(Request("raw", prompt, Sampling(), 0, 40), m)] for m in ("plain", mode))
        texts = [[token for each in rounds for token in each.tokens] for rounds in (plain, drafted)]
        size = len(prompt) + 64
        logits_at = replay(lambda size=size: TargetSession(decoder.target, size), prompt, texts[0])
        assert not judge(*texts, logits_at, torch.float32).unexplained
        total.extend(drafted)
    assert total.drafted > total.accepted > 0


def test_a_base_model_has_no_template(decoder: Decoder) -> None:
    target: Target = decoder.target
    target.chat.raw = True
    assert target.chat.prompt_ids([{"role": "user", "content": TEXTS[0]}])[0] == target.config.bos_token_id
