"""Where a target comes from: a folder, a .gguf file, a hub id, or the bundled SmolLM2."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dspark.foundation.artifacts import folder_atomic, sha256_file
from dspark.foundation.cache import cache_dir
from dspark.foundation.errors import UserError, first_line
from dspark.speculation.sampling import Sampling
from dspark.targets.bundled import bundled_gguf

BUNDLED = "smollm2-135m"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A target in Hugging Face layout on disk, with what its files do not say.

    ``sampling`` is the recommended one where the files carry none (GGUF files never do); ``name`` is what people call
    it.
    """

    name: str
    folder: Path
    sampling: Sampling | None = None


def resolve_source(target: str) -> Source:
    """Find the target named ``target``; converts a GGUF file once and keeps the result in the user's cache folder.

    Raises UserError that says what was found and what is accepted.
    """
    if target == BUNDLED:
        # A GGUF file has no generation config: these are the model card's settings.
        return Source(BUNDLED, _converted(bundled_gguf()), Sampling(temperature=0.2, top_p=0.9))
    path = Path(target).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"{path} has no config.json; a target folder is a Hugging Face model as save_pretrained leaves it"
            )
        return Source(path.name, path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"there is no file {path}; give the path of an existing .gguf file")
        return Source(path.stem, _converted(path))
    if _HUB_ID.fullmatch(target) and not target.startswith((".", "/")):
        return Source(target, _from_hub(target))
    raise UserError(
        f"no target at {target!r}: expected a model folder, a .gguf file, a hub id (owner/name)"
        f" or the bundled {BUNDLED!r}"
    )


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.jinja", "tokenizer*"]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted))
    except Exception as error:  # the hub client raises many kinds: offline, gated, missing
        raise UserError(
            f"the hub gave no model {repo!r} ({first_line(error)}); check id and network, or give a local folder"
        ) from error


def _converted(gguf: Path) -> Path:
    """The GGUF's de-quantised weights as an ordinary fp32 folder, made once per file content."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = cache_dir() / "converted" / f"{gguf.stem}-{sha256_file(gguf)[:16]}"
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    needed = 8 * gguf.stat().st_size
    if free < needed:
        raise UserError(
            f"{folder.parent} has {free >> 20} MiB free, {needed >> 20} MiB are needed to unpack {gguf.name}; free some"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    except Exception as error:  # readers raise many kinds on a damaged or unknown file
        raise UserError(
            f"{gguf} can't be read as a GGUF language model ({first_line(error)}); get the file again or use another"
        ) from error
    # The weights are ordinary numbers now: without its quantiser the model saves like any other.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    setattr(model, "hf_quantizer", None)  # noqa: B010  # not declared by transformers
    with folder_atomic(folder, marker="config.json") as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder
