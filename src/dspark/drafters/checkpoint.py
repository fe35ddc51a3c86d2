"""Drafters on disk: our native folder, and DeepSpec's folder that also carries the two frozen matrices.

Native: `config.json` (DeepSpec's keys, plus `draft_vocab_size` where pruned), `model.safetensors` (DeepSpec's
names without embedding and head, plus `d2t`), `manifest.json` (the target it was trained for, and how). A
wrong layout would only show as drafts that are never accepted, so everything that does not match exactly is
refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dspark
from dspark.drafters.config import DrafterConfig, DSparkConfig
from dspark.drafters.deepspec import config_from_deepspec, config_to_deepspec
from dspark.drafters.drafter import Drafter
from dspark.drafters.fit import check_identity, check_sizes, compare_matrices
from dspark.drafters.kinds import drafter_of
from dspark.drafters.tensors import check_tensors, read_tensors, write_tensors
from dspark.drafters.vocabulary import d2t_from_ids, ids_from_d2t
from dspark.foundation.artifacts import folder_atomic, read_json, write_json
from dspark.foundation.errors import UserError
from dspark.foundation.identity import ModelIdentity
from dspark.nn.ends import Ends
from dspark.speculation.confidence import Calibrations

CONFIG, WEIGHTS, MANIFEST = "config.json", "model.safetensors", "manifest.json"
CALIBRATION = "calibration.json"
FORMAT = "dspark-drafter"
_EMBEDDING, _HEAD, _D2T = "embed_tokens.weight", "lm_head.weight", "d2t"


def save_drafter(
    path: Path,
    drafter: Drafter,
    identity: ModelIdentity,
    training: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a native checkpoint folder, whole or not at all; weights in ``dtype`` (None: the one that they have).

    ``identity``: the target. ``training``: recipe, data, figures: JSON values that the manifest remembers.
    """
    config = drafter.config
    dtype = dtype or drafter.dtype
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in drafter.state_dict().items()}
    check_tensors(tensors, _expected(config), "the drafter to save")
    values = config_to_deepspec(config, str(dtype).removeprefix("torch."))
    if config.draft_ids is not None:
        tensors[_D2T] = d2t_from_ids(config.draft_ids)
        values["draft_vocab_size"] = config.draft_vocab_size
    if not isinstance(config, DSparkConfig):  # as readers of the format expect it
        values["target_model_name_or_path"] = identity.name
    manifest = {
        "format": FORMAT,
        "version": dspark.__version__,
        "target": identity.asdict(),
        "training": dict(training or {}),
    }
    with folder_atomic(path, marker=MANIFEST) as folder:
        write_json(folder / CONFIG, values)
        write_tensors(folder / WEIGHTS, tensors)
        write_json(folder / MANIFEST, manifest)


def load_drafter(
    path: Path, identity: ModelIdentity, ends: Ends, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Drafter:
    """Read a native or a DeepSpec checkpoint for the target ``identity``: in eval mode, weights in ``dtype``.

    A native drafter uses the target's ``ends`` as they are, a DeepSpec one its own copies. Raises UserError
    that names the mismatch: missing, unexpected or misshapen tensors, a damaged file, an unsupported
    architecture or head, another target. Warns where only the target's weights differ
    from those that it was trained for.
    """
    path = Path(path)
    values = _read_config(path)
    tensors = read_tensors(path / WEIGHTS)
    config = _config(path, values, tensors.pop(_D2T, None))
    own_ends = _EMBEDDING in tensors or _HEAD in tensors
    if not own_ends:
        check_identity(read_identity(path), identity, path)
    check_sizes(config, identity, path)
    check_tensors(tensors, _expected(config) | (_frozen(config) if own_ends else {}), str(path))
    if own_ends:
        own = Ends(*(tensors.pop(name).to(device=device, dtype=dtype) for name in (_EMBEDDING, _HEAD)))
        compare_matrices(own, ends, identity.name, path)
        ends = own
    with torch.random.fork_rng(devices=[]):  # the random weights that are replaced next cost nobody a draw
        drafter = drafter_of(config, ends).to(device=device, dtype=dtype)
    drafter.load_state_dict(tensors)
    return drafter.eval()


def read_identity(path: Path) -> ModelIdentity:
    """The target that a native checkpoint was trained for. UserError where the manifest doesn't say."""
    manifest = read_json(Path(path) / MANIFEST)
    target = manifest.get("target")
    if manifest.get("format") != FORMAT or not isinstance(target, dict):
        raise UserError(f"{path}: {MANIFEST} is not that of a drafter; expected format {FORMAT!r} and a target")
    return ModelIdentity.from_dict(target)


def read_survival(path: Path, greedy: bool = True) -> list[float]:
    """Share of blocks whose first 1..K drafts were accepted on held-out answers; empty where a manifest doesn't say.

    ``greedy``: of greedy drafts where that was measured, else at temperature 1. Nothing here is needed to draft,
    so what is not as we write it counts as not said.
    """
    found: Any = read_json(path / MANIFEST) if (path / MANIFEST).is_file() else {}
    for name in ("training", "validation"):
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not found.get("blocks"):
        return []
    shares: Any = (greedy and found.get("greedy_acceptance")) or found.get("conditional_acceptance")
    known = isinstance(shares, list) and all(isinstance(each, int | float) and 0 <= each <= 1 for each in shares)
    return list(accumulate(shares, mul)) if known else []


def read_calibrations(path: Path, block: int) -> Calibrations:
    """Confidence maps beside the weights, for blocks of ``block`` drafts; none where nobody calibrated the drafter.

    UserError for a file that holds none.
    """
    file = path / CALIBRATION
    return Calibrations.read(read_json(file), block, str(file)) if file.is_file() else Calibrations()


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected a drafter's checkpoint with {CONFIG} and {WEIGHTS}")
    return read_json(path / CONFIG)


def _config(path: Path, values: Mapping[str, Any], d2t: Tensor | None) -> DrafterConfig:
    try:
        ids = None if d2t is None else ids_from_d2t(d2t)
        size = values.get("draft_vocab_size")
        if size != (ids and len(ids)) and not (ids is None and size == values.get("vocab_size")):
            raise UserError(
                f"{CONFIG} says draft_vocab_size {size}, {WEIGHTS} has "
                f"{'no d2t' if ids is None else f'd2t for {len(ids)} ids'}; the files don't belong together"
            )
        return config_from_deepspec(values, ids)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _expected(config: DrafterConfig) -> dict[str, list[int]]:
    """Names and shapes of the trained tensors, from the module itself, so that there is one list of them."""
    with torch.device("meta"):
        # Indexing needs real ids; only the number of head rows matters for the shapes.
        size = config.vocab_size, config.hidden_size
        skeleton = drafter_of(replace(config, draft_ids=None), Ends(torch.empty(size), torch.empty(size)))
    shapes = {name: list(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    if isinstance(config, DSparkConfig) and config.markov_rank:
        shapes["markov_head.markov_w2.weight"] = [config.draft_vocab_size, config.markov_rank]
    return shapes


def _frozen(config: DrafterConfig) -> dict[str, list[int]]:
    """The two matrices that DeepSpec's format carries besides."""
    return {name: [config.vocab_size, config.hidden_size] for name in (_EMBEDDING, _HEAD)}
