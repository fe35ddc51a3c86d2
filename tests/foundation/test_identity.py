"""An identity survives a JSON file; a damaged one is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dspark.foundation.errors import UserError
from dspark.foundation.identity import ModelIdentity

MODEL = ModelIdentity("smol", "LlamaForCausalLM", 576, 49152, 30, "c0", "w0", "t0")


def test_an_identity_survives_json_whatever_else_lies_beside_it() -> None:
    written = json.loads(json.dumps({**MODEL.asdict(), "note": "more"}))
    assert ModelIdentity.from_dict(written) == MODEL


@pytest.mark.parametrize("change", [{"hidden_size": "576"}, {"vocab_size": True}, {"name": None}, {"config_hash": 7}])
def test_a_damaged_identity_is_refused_by_the_name_of_the_field(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        ModelIdentity.from_dict({**MODEL.asdict(), **change})
    missing = {key: value for key, value in MODEL.asdict().items() if key not in change}
    with pytest.raises(UserError, match=next(iter(change))):
        ModelIdentity.from_dict(missing)
