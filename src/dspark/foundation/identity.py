"""Which model something was made with or for, in a form that can be written down and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dspark.foundation.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """A frozen model as manifests record it.

    ``config_hash`` covers the sizes, ``weights_hash`` the bf16-rounded embedding and head (cheap, and the
    same for one model stored in several precisions), ``tokenizer_hash`` the id of every token.
    """

    name: str
    architecture: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    config_hash: str
    weights_hash: str
    tokenizer_hash: str

    def asdict(self) -> dict[str, Any]:
        """The fields as plain values for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelIdentity:
        """Rebuild what ``asdict`` gave, whatever else is there. UserError for a missing or mistyped field."""
        types = {field.name: int if field.type == "int" else str for field in dataclasses.fields(cls)}
        for name, kind in types.items():
            found = values.get(name)
            if not isinstance(found, kind) or isinstance(found, bool):
                raise UserError(
                    f"model identity: {name} is {found!r}, expected {'a number' if kind is int else 'text'}; "
                    "the manifest was not written by dspark or is damaged"
                )
        return cls(**{name: values[name] for name in types})
