"""A drafter's configuration: refused where it can't work, and DeepSpec's to the letter."""

from __future__ import annotations

import json

import pytest
import torch
from golden_checkpoints import golden_of

from dspark.drafters.config import DSparkConfig
from dspark.drafters.deepspec import config_from_deepspec, config_to_deepspec
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.vocabulary import d2t_from_ids, ids_from_d2t
from dspark.foundation.errors import UserError
from dspark.nn.ends import Ends


@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn"])
def test_deepspec_config_round_trip(kind):
    values = json.loads((golden_of(kind) / "config.json").read_text())
    config = config_from_deepspec(values)
    assert (config.target_layer_ids, config.block_size, config.rope_theta) == ((0, 2, 4), 5, 1e4)
    values.pop("transformers_version")  # of the program that wrote the file, not of the model
    assert config_to_deepspec(config, "float32") == values
    assert config_from_deepspec(config_to_deepspec(config, "bfloat16")) == config


@pytest.mark.parametrize("name", ["markov_top_k", "draft_window"])
def test_what_is_not_the_formats_is_written_where_it_is_used(sizes, name):
    config = DSparkConfig(**sizes, **{name: 8})
    assert config_from_deepspec(config_to_deepspec(config, "float32")) == config
    assert name not in config_to_deepspec(DSparkConfig(**sizes), "float32")


def test_rope_theta_may_stand_by_itself(golden):
    values = json.loads((golden / "config.json").read_text())
    del values["rope_parameters"]
    assert config_from_deepspec(values | {"rope_theta": 100000}).rope_theta == 1e5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_layer_ids": (1, 5)}, "expected -1 .* to 4: the target has 6 layers"),
        ({"target_layer_ids": (-2, 1)}, "expected -1"),
        ({"target_layer_ids": (3, 1)}, "ascending"),
        ({"target_layer_ids": (1, 1)}, "without repeats"),
        ({"target_layer_ids": ()}, "at least one"),
        ({"mask_token_id": -1}, "mask_token_id is -1"),
        ({"mask_token_id": 50}, "0 to 49"),
        ({"num_attention_heads": 5}, "multiple of num_key_value_heads, 2"),
        ({"head_dim": 7}, "even"),
        ({"block_size": 0}, "block_size is 0; expected more than 0"),
        ({"block_size": True}, "block_size is True; expected a whole number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'; expected a number"),
        ({"markov_head_type": ["vanilla"]}, "expected a name"),
        ({"markov_head_type": "lstm"}, "'lstm', which is not supported"),
        ({"markov_rank": -1}, "markov_rank is -1; expected 0 or more"),
        ({"markov_top_k": -1}, "markov_top_k is -1"),
        ({"draft_window": 1}, "expected 0 or at least the block_size"),
        ({"draft_ids": ()}, "empty"),
        ({"draft_ids": (1, 1)}, "id 1 follows 1"),
        ({"draft_ids": (1, 50)}, "1 to 50.*0 to 49"),
    ],
)
def test_what_does_not_fit_together_is_refused(sizes, changes, words):
    with pytest.raises(UserError, match=words):
        DSparkConfig(**(sizes | changes))


@pytest.mark.parametrize("which", ["embedding", "head"])
def test_matrices_of_another_shape_are_refused(sizes, which):
    shapes = {"embedding": (50, 24), "head": (50, 24), which: (51, 24)}
    with pytest.raises(UserError, match=rf"{which} is \[51, 24\].*\[50, 24\]"):
        DSparkDrafter(DSparkConfig(**sizes), Ends(**{name: torch.zeros(s) for name, s in shapes.items()}))


def test_d2t_is_the_offset_of_every_id():
    ids = (0, 3, 4, 48)
    assert d2t_from_ids(ids).tolist() == [0, 2, 2, 45]
    assert ids_from_d2t(d2t_from_ids(ids)) == ids
