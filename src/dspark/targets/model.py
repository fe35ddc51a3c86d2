"""A frozen Hugging Face causal language model behind the attention seam.

Legend: T tokens of a ragged batch, d hidden size, F = taps * d, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dspark.foundation.devices import resolve_device, resolve_dtype
from dspark.foundation.errors import UserError, first_line
from dspark.foundation.identity import ModelIdentity
from dspark.nn.cache import KVCache
from dspark.nn.ends import Ends
from dspark.nn.packed import (
    bytes_by_form,
    exact_products,
    join_linears,
    pack_linears,
    round_products,
    rounded_rows,
)
from dspark.nn.rope import RotationTable
from dspark.targets.attention import SEAM
from dspark.targets.captured import SIZES, CapturedSteps, captured_steps
from dspark.targets.card import recommended_of, stop_ids_of
from dspark.targets.chat import Chat
from dspark.targets.compiled import FEW_ROWS, CompiledSteps, compiled_steps, rotations_of
from dspark.targets.family import kv_layers, rope_types, scales_of
from dspark.targets.lean import (
    WATCHED,
    WatchedBatch,
    drafting_weights,
    lean_attention,
    lean_mlps,
    lean_norms,
    plain_norm,
    watch,
)
from dspark.targets.probe import probe, probe_ids
from dspark.targets.ragged import RaggedBatch, Step, complex_of
from dspark.targets.rounding import round_weights, rounds_weights, rows_of
from dspark.targets.sources import Source, resolve_source
from dspark.targets.taps import tapped


@dataclass(frozen=True)
class Forward:
    """What one step leaves: last hidden states ``[T, d]`` (after the final norm) and tapped features ``[T, F]`` or
    None.
    """

    hidden_TD: Tensor
    features_TF: Tensor | None


class Target:
    """Public face of a target: ``embed``, ``head``, ``forward`` over a ragged batch, ``new_cache``; nothing is
    trained.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        chat: Chat,
        source: Source,
        *,
        pack: bool = True,
        rounding: torch.dtype | None = None,
    ) -> None:
        """Put ``model`` behind the seam and probe it; raises UserError where it can't be served exactly.

        ``rounding``: round its weights to float16, bfloat16, or int8 in groups of 32, first; sums stay in the model's
        dtype. A CPU that multiplies bf16 rounds rows as well before bfloat16 weights multiply them. int16 rounds rows
        (in groups of 32), and only those weights that are in no blocks of 4 or 8 bits.
        """
        self.name = source.name
        _refuse_unservable(model, self.name)
        config = model.config
        self.config = config
        self.architecture = type(model).__name__
        self.chat = chat
        self.device = model.device
        self.dtype = model.dtype
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.num_layers: int = config.num_hidden_layers
        self.max_positions: int = config.max_position_embeddings
        self.stop_ids = stop_ids_of(model.generation_config, config)
        self.recommended = source.sampling or recommended_of(model.generation_config)
        self._model = model.eval().requires_grad_(False)
        self._base: Any = model.base_model
        embedding: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()
        self._embedding = embedding
        self._matrices = Ends(embedding.weight, head.weight)
        self._scales = scales_of(config)
        self._kv_layers = kv_layers(config)
        self._compiled: CompiledSteps | None = None
        self._captured: CapturedSteps | None = None
        packs = (self.device.type, self.dtype) == ("cpu", torch.float32)
        self._rounds = rows_of(rounding) if packs else None
        self.weights_hash  # noqa: B018  # hashed before rounding, and before packing replaces the head
        if rounding is not None:
            round_weights(model, rounding, self.name, self._rounds)
        with torch.inference_mode():
            model.set_attn_implementation("eager")
            ids = probe_ids(self.vocab_size).to(self.device)
            eager_logits_TV = model(input_ids=ids[None], use_cache=False).logits[0]
            model.set_attn_implementation(SEAM)
            if pack:
                self._freeze()
            probe(self, eager_logits_TV)
            if pack:
                self._round_products()
                self._compile()

    @property
    def rounds(self) -> torch.dtype | None:
        """What rows are rounded to before they are multiplied: bfloat16 where the hardware multiplies it, int16 as
        whole numbers; None where they are not.
        """
        return None if self._rounds is None else rounded_rows(self._model)

    @property
    def precision(self) -> torch.dtype:
        """What it multiplies in: what rows are rounded to, or its dtype."""
        return self.rounds or self.dtype

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens that steps are padded to, as far as these go; none where they take what they take."""
        return () if self._captured is None else SIZES

    @property
    def agreement(self) -> torch.dtype:
        """Whose rounding the logits of a token may differ by in other company: that of its dtype, but that of rows
        where these are rounded behind steps of PyTorch's kernels (half precision's where they become whole numbers).
        """
        if self._compiled is not None:
            return self.dtype
        return torch.float16 if self.rounds == torch.int16 else self.precision

    def pack(self) -> None:
        """Drop the readable weights for faster frozen forms of the same numbers."""
        self._freeze()
        self._round_products()
        self._compile()

    def _freeze(self) -> None:
        self._lean()
        join_linears(self._model)
        pack_linears(self._model)

    def _round_products(self) -> None:
        """Behind the probe, whose comparison rounded rows would blur."""
        if self._rounds is None:
            return
        round_products(self._model, self._rounds)
        if exact := exact_products(self._model):
            warnings.warn(
                f"{exact} of the products of {self.name} multiply in float32 whatever --dtype says: their inputs do not"
                " come in groups of 32",
                stacklevel=2,
            )

    @torch.inference_mode()
    def _lean(self) -> None:
        """Put lean twins in place wherever they give the same numbers as the modules of the model."""
        lean_norms(self._model)
        lean_mlps(self._model)
        ids_T = probe_ids(self.vocab_size).to(self.device)
        cache = self.new_cache(blocks=1, size=len(ids_T))
        batch = WatchedBatch(cache, cache.tables(), [len(ids_T)], end=self.max_positions)
        self._model.set_attn_implementation(WATCHED)
        with watch(self._model) as calls:
            self._run(ids_T, batch)
        self._model.set_attn_implementation(SEAM)
        lean_attention(self._model, calls)

    @torch.inference_mode()
    def _compile(self) -> None:
        """Run steps as one program where that gives the numbers of the modules to the bit; on a GPU as recorded ones
        (not run there yet).
        """
        if self.device.type == "cuda":
            ids_T = probe_ids(self.vocab_size).to(self.device)
            self._captured = captured_steps(self._run, self.new_cache(1, len(ids_T)), ids_T, (-1, 0), record=True)
        compiled = compiled_steps(self._base, self._scales.embedding)
        if compiled is None or self.device.type != "cpu" or self.dtype != torch.float32:
            return
        ids_T, taps, runs = probe_ids(self.vocab_size), range(-1, self.num_layers), []
        for self._compiled in (None, compiled):
            cache = self.new_cache(blocks=1, size=len(ids_T))
            step = self.forward(ids_T, RaggedBatch(cache, cache.tables(), [len(ids_T)]), taps)
            runs.append([*cache.keys, *cache.values, step.hidden_TD, step.features_TF])
        if not all(torch.equal(a, b) for a, b in zip(*runs, strict=True)):
            self._compiled = None

    @cached_property
    def weights(self) -> dict[str, int]:
        """Bytes of the weights that steps multiply with, by the form they are kept in."""
        return bytes_by_form(self._model)

    @cached_property
    def weights_hash(self) -> str:
        """Hash of the bf16-rounded embedding and head: what a drafter was trained against."""
        digest = hashlib.sha256()
        for matrix in {id(m): m for m in (self._matrices.embedding, self._matrices.head)}.values():
            digest.update(matrix.detach().to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().tobytes())
        return digest.hexdigest()

    @property
    def identity(self) -> ModelIdentity:
        """Who this target is, as checkpoints of drafters record it."""
        fields = (
            "model_type",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
        )
        shape = {name: getattr(self.config, name, None) for name in fields}
        return ModelIdentity(
            name=self.name,
            architecture=self.architecture,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            num_layers=self.num_layers,
            config_hash=hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest(),
            weights_hash=self.weights_hash,
            tokenizer_hash=self.chat.tokenizer_hash,
        )

    @cached_property
    def ends(self) -> Ends:
        """Embedding and head as a drafter borrows them, with the family's scales; a tied matrix stays one tensor unless
        logits are scaled.

        UserError for a target whose logits are capped, which no matrix can express and no drafter here does yet.
        """
        if self._scales.softcap is not None:
            raise UserError(f"{self.name} caps its logits, which drafters can't do yet: it can be decoded plainly only")
        embedding, head, logits = self._matrices.embedding, self._matrices.head, self._scales.logits
        scale = self._scales.embedding * float(getattr(self._embedding, "embed_scale", 1.0))
        rounded = float(torch.tensor(scale, dtype=embedding.dtype))  # as the target itself multiplies
        return Ends(embedding, head if logits == 1.0 else head * logits, scale=rounded)

    def new_cache(self, blocks: int, size: int, exact: bool = True) -> KVCache:
        """An empty K/V cache of ``blocks`` blocks of ``size`` positions each; ``exact``: see there.

        Keys and values are kept in bfloat16 where what makes and reads them is rounded to it.
        """
        kept = torch.bfloat16 if self.rounds == torch.bfloat16 else self.dtype
        return KVCache(self._kv_layers, blocks, size, kept, self.device, exact)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings ``[..., d]`` as the first layer receives them."""
        return self._scales.embedded(self._embedding(ids))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of last hidden states ``[..., d]``."""
        return self._scales.scored(self._model.get_output_embeddings()(hidden))

    def forward(self, ids_T: Tensor, batch: RaggedBatch, taps: Sequence[int] = ()) -> Forward:
        """Run one ragged step and append its keys and values to the cache.

        ``taps``: 0-based layer ids whose OUTPUT is returned, concatenated in that order; -1 is the embedding output,
        and the last layer's is behind the final norm (as in transformers' hidden states).
        """
        if self._compiled is not None and (len(ids_T) <= FEW_ROWS or not batch.plan.hurried):
            rotations = [each.at(batch.positions, batch.positions_T) for each in self._rotations]
            where = batch.cache, batch.rows_T, batch.plan.seen
            left = self._compiled.run(ids_T, rotations, *where, tuple(taps))
        else:
            found = None if self._captured is None else self._captured.run(ids_T, batch, tuple(taps))
            left = found or self._run(ids_T, batch, taps)
        batch.commit()
        return Forward(*left)

    def _run(self, ids_T: Tensor, batch: Step, taps: Sequence[int] = ()) -> tuple[Tensor, Tensor | None]:
        """The model's modules: what ``forward`` leaves."""
        positions_1T = batch.positions_T[None]
        with tapped(self._base.layers, taps) as rows:
            out = self._base(input_ids=ids_T[None], position_ids=positions_1T, use_cache=False, ragged_batch=batch)
        last_Td: Tensor = out.last_hidden_state[0]
        left = {tap: each[0] for tap, each in rows.items()} | {self.num_layers - 1: last_Td}
        return last_Td, torch.cat([left[tap] for tap in taps], dim=-1) if taps else None

    @cached_property
    def _rotations(self) -> list[RotationTable]:
        """Of each kind of layers; angles that depend on the length were refused."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)

        def table(kind: tuple[str, ...]) -> RotationTable:
            return RotationTable(lambda at_T: complex_of(*self._base.rotary_emb(like, at_T[None], *kind)))

        return [table(kind) for kind in rotations_of(self._base)]

    def layer_weights(self, index: int) -> dict[str, Tensor]:
        """Weights of decoder layer ``index`` by their Hugging Face names; before ``pack`` only.

        As a draft layer has them: norms multiply by their weights, and scores are scaled by D^-0.5 and nothing else.
        """
        layers: Any = self._base.layers
        return drafting_weights(layers[index])

    def final_norm_weight(self) -> Tensor:
        """What the norm before the head multiplies by, ``[d]``."""
        norm = self._base.norm
        weight: Tensor = (plain_norm(norm) or norm).weight
        return weight


def load_target(target: str, dtype: str = "auto", device: str = "auto", pack: bool = True) -> Target:
    """Load the target named ``target`` (see ``resolve_source``); ``pack=False`` keeps its weights readable."""
    where = resolve_device(device)
    precision = resolve_dtype(dtype, where)
    source = resolve_source(target)
    rounding = precision if where.type == "cpu" and rounds_weights(precision) else None
    try:
        config = AutoConfig.from_pretrained(source.folder)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            config=config,
            dtype=torch.float32 if rounding else precision,
            attn_implementation="eager",
            output_loading_info=True,
        )
        model, found = loaded
        tokenizer = AutoTokenizer.from_pretrained(source.folder)
    except Exception as error:  # readers raise many kinds on a damaged or unknown file
        raise UserError(
            f"{source.folder} does not load as a Hugging Face causal language model ({first_line(error)});"
            " get its files again, or use another target"
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers fills them with random numbers and says so in its log alone
        raise UserError(
            f"{source.folder} lacks {len(missing)} weights of its model, {missing[0]} among them; get its files again"
        )
    torch.nn.Module.to(model, device=where)  # transformers' own wrapper of it is not typed
    return Target(model, Chat(tokenizer), source, pack=pack, rounding=rounding)


# What a decoder-only transformer's configuration says; a model without them is of another kind.
_NEEDED = ("hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def _refuse_unservable(model: PreTrainedModel, name: str) -> None:
    """Raise UserError for what the configuration alone rules out; the self-probe finds the rest.

    Recurrent state can't be rolled back after a rejection, and length-switched RoPE changes with a neighbour's length.
    """
    config = model.config
    if getattr(model, "_is_stateful", False):
        raise UserError(
            f"{name} keeps recurrent state, which can't be rolled back after a rejected draft; use another target"
        )
    missing = [field for field in (*_NEEDED, "max_position_embeddings") if getattr(config, field, None) is None]
    if missing:
        raise UserError(
            f"{name} ({type(model).__name__}) has no {', '.join(missing)} in its config; use another target"
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise UserError(f"{name} has layers of type {', '.join(sorted(kinds))}; only attention layers can be served")
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        raise UserError(f"{name} lets tokens see later ones, so its text can't be grown; use another target")
    switching = sorted(rope_types(config) & {"dynamic", "longrope"})
    if switching:
        raise UserError(
            f"{name} uses RoPE of type {switching[0]!r}, which changes logits with the length; use another target"
        )
