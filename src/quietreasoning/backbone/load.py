"""A backbone from a folder, a hub id or fresh weights; whatever would be misused is refused here."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import MappingProxyType

import torch
from peft import LoraConfig as PeftLora
from peft import inject_adapter_in_model
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import pad
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
)
from transformers.utils import logging

from quietreasoning.backbone import int_folder, torchao_folder
from quietreasoning.backbone.config import BackboneConfig, ScratchConfig
from quietreasoning.backbone.model import Backbone, context_of, layer_types, role_of
from quietreasoning.backbone.new_rows import Starts, grow, train_new_rows
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.disk import missing_run, no_folder, whole_sentences
from quietreasoning.workspace import WorkspaceConfig, WorkspaceForCausalLM
from quietreasoning.workspace.warm_start import config_for_trunk, take_trunk

PATH, TRUNK = "backbone.path", "backbone.workspace.trunk"  # the setting that refusals name


def load_backbone(
    config: BackboneConfig,
    vocab_size: int,
    *,
    key: str = PATH,
    replaced: bool = False,
    starts: Starts = MappingProxyType({}),
) -> Backbone:
    """The backbone of a run, on the CPU. `vocab_size` is the tokenizer's; fresh models take it.

    key: the setting that named the path, for refusals.
    starts: tokens that the model of a folder has not met, and the word pieces at whose mean they start.
    replaced: a checkpoint will replace all weights that are not borrowed; where none is, a model folder with
    its configuration alone, as `quiet push` leaves it, will do.
    """
    dtype = getattr(torch, config.dtype)
    if config.workspace is not None:
        model = _workspace(config, vocab_size, replaced).to(dtype)
    elif config.path is None:
        model = AutoModelForCausalLM.from_config(
            _scratch_shape(config.scratch, vocab_size), dtype=dtype, attn_implementation=config.attention
        )
        _drop_idle_norm(model)
    else:
        model = _load_pretrained(config, dtype, key, shape_will_do=replaced and config.tune == "full")
        grow(model, vocab_size, starts, f"{key}={config.path}")
    _refuse_unsupported(model, f"{key}={config.path}")
    backbone = Backbone(_tuned(model, config, starts), config, _identity(config))
    _check_family(backbone, f"{key}={config.path}")
    return backbone


def meta_backbone(
    config: BackboneConfig,
    vocab_size: int,
    *,
    key: str = PATH,
    identified: bool = False,
    starts: Starts = MappingProxyType({}),
) -> Backbone:
    """The same backbone without weights: shapes for planning, on the meta device.

    A folder's configuration alone will do. identified: its weights are read, for what was made of them.
    """
    if config.workspace is not None:
        shape = _workspace_shape(config, vocab_size)
    elif config.path is None:
        shape = _scratch_shape(config.scratch, vocab_size)
    else:
        shape = _read_shape(config, key)
    identity = _identity(config) if identified else {"path": config.path} if config.path else {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            shape, dtype=getattr(torch, config.dtype), attn_implementation=config.attention
        )
        _drop_idle_norm(model)
        counted = int_folder.described(shape, f"{key}={config.path}")
        if counted:
            int_folder.hollow(model, *counted)
        if config.path is not None and starts:
            grow(model, vocab_size, starts, f"{key}={config.path}")
        return Backbone(_tuned(model, config, starts), config, identity)


def _workspace_shape(config: BackboneConfig, vocab_size: int) -> WorkspaceConfig:
    own = config.workspace
    if own.trunk is None:
        return WorkspaceConfig.preset(own.preset, vocab_size=vocab_size, features=(), **own.sizes)
    return config_for_trunk(_read_shape(_trunk(config), TRUNK), own.preset, own.sizes | {"features": ()})


def _trunk(config: BackboneConfig) -> BackboneConfig:
    """The trunk as a backbone of its own."""
    own = config.workspace
    return BackboneConfig(
        path=own.trunk, revision=own.revision, dtype=config.dtype, attention=config.attention
    )


def _workspace(config: BackboneConfig, vocab_size: int, replaced: bool) -> WorkspaceForCausalLM:
    """Fresh, or around the weights of a trunk: its first logits are the trunk's."""
    model = WorkspaceForCausalLM(_workspace_shape(config, vocab_size))
    model.model.set_features(())  # until a method switches them on
    if config.workspace.trunk is not None:
        trunk = _load_pretrained(_trunk(config), torch.float32, TRUNK, shape_will_do=replaced)
        held = trunk.get_input_embeddings().num_embeddings
        if held < vocab_size:
            raise UserError(
                f"backbone.workspace.trunk={config.workspace.trunk}: the tokenizer has {vocab_size} "
                f"tokens, the embedding only {held}. Give the tokenizer of this model."
            )
        take_trunk(model, trunk)
    return model


def _scratch_shape(shape: ScratchConfig, vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        intermediate_size=shape.mlp or -(-shape.width * 8 // 3 // 32) * 32,
        max_position_embeddings=shape.context,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=shape.tie,
        initializer_range=shape.init_std,
        attention_dropout=0.0,
    )


def _drop_idle_norm(model: nn.Module) -> None:
    """Embeddings and head alone: without blocks the final norm would be a weight that nobody asks for."""
    if model.config.num_hidden_layers == 0:
        model.get_decoder().norm = nn.Identity()


def _read_shape(config: BackboneConfig, key: str = PATH):
    """The model's configuration; UserError where transformers itself does not know the architecture."""
    where = f"{key}={config.path}"
    if missing_run(config.path):
        raise UserError(f"{where}: {no_folder(config.path)}")
    try:
        raw, _ = PreTrainedConfig.get_config_dict(config.path, revision=config.revision)
        if raw.get("model_type") is None:
            cure = "Give a folder written by save_pretrained or, of a run, by quiet export."
            raise UserError(f"{where}: holds no model. {cure}")
        if raw["model_type"] not in CONFIG_MAPPING:
            # asked first: AutoConfig would offer to run the folder's own code
            raise UserError(
                f"{where}: model_type {raw.get('model_type')!r} needs code from its own repository, which is "
                "never run here. Use a model whose architecture transformers ships."
            )
        return AutoConfig.from_pretrained(config.path, revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(_refusal(where, config.path, error)) from error


def _load_pretrained(
    config: BackboneConfig, dtype: torch.dtype, key: str, *, shape_will_do: bool
) -> nn.Module:
    where = f"{key}={config.path}"
    shape = _read_shape(config, key)
    folder = Path(config.path)
    if getattr(shape, "quantization_config", None) is not None:
        if config.tune != "frozen":
            raise UserError(
                f"{where}: its weights are integers, which do not train. Set backbone.tune=frozen."
            )
        if int_folder.described(shape, where):
            return int_folder.load(shape, folder, dtype, config.attention, where)
        torchao_folder.require_package(where, "write the folder without --torchao")
    if shape_will_do and folder.is_dir() and not any(folder.glob("*.safetensors")):
        return AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=config.attention)
    if not sys.stderr.isatty():  # in a log file the bar would be a long line of every load
        logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            config.path,
            revision=config.revision,
            config=shape,
            trust_remote_code=False,  # left out, transformers may ask on the terminal
            dtype=dtype,
            attn_implementation=config.attention,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are named and refused below
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(_refusal(where, config.path, error)) from error
    wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    if wrong or info["mismatched_keys"]:
        raise UserError(
            f"{where}: the weights do not fit the model: missing {sorted(info['missing_keys'])[:3]}, "
            f"unexpected {sorted(info['unexpected_keys'])[:3]}, "
            f"wrong shape {sorted(map(str, info['mismatched_keys']))[:3]}. Give a complete model folder."
        )
    return model


def _refusal(where: str, path: str, error: Exception) -> str:
    text = whole_sentences(error)
    if "remote" in text or "custom code" in text:
        return (
            f"{where}: this model needs code from its own repository, which is never run here. "
            "Use a model whose architecture transformers ships."
        )
    if isinstance(error, OSError) and (absent := no_folder(path, error)):
        return f"{where}: {absent}."
    if "attention implementation" in text:
        return f"{where}: this model does not support the implementation. Set backbone.attention=eager."
    if "no file named model.safetensors" in text:
        return f"{where}: no safetensors weights; pickled weights are never loaded. Convert the model first."
    return f"{where}: cannot be loaded: {text}. Give a folder written by save_pretrained, or a hub id."


def _identity(config: BackboneConfig) -> dict[str, str]:
    """What a checkpoint writes down in place of borrowed weights."""
    if config.workspace is not None:
        return {"workspace": config.workspace.model_dump_json()}
    if config.path is None:
        return {"scratch": config.scratch.model_dump_json()}
    identity = {"path": str(config.path), "revision": config.revision or ""}
    folder = Path(config.path)
    if folder.is_dir():
        identity["path"] = str(folder.resolve())
        digest = hashlib.sha256()
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        identity["sha256"] = digest.hexdigest()
    return identity


def _refuse_unsupported(model: nn.Module, where: str) -> None:
    kinds = set(layer_types(model.config)) - {"full_attention", "sliding_attention"}
    if isinstance(model, WorkspaceForCausalLM):
        return
    kinds |= {"state space"} if model._is_stateful else set()
    kinds |= {"encoder-decoder"} if model.config.is_encoder_decoder else set()
    kinds |= {"unbounded context"} if context_of(model.config) is None else set()
    if kinds:
        raise UserError(
            f"{where}: layers of kind {', '.join(sorted(kinds))} are not supported; "
            "choose a decoder with full or sliding attention (Llama, Qwen, Mistral, SmolLM, ...)."
        )


def _tuned(model: nn.Module, config: BackboneConfig, starts: Starts) -> nn.Module:
    if config.tune == "frozen":
        return model.requires_grad_(False)
    if config.tune == "lora":
        lora, model = config.lora, model.requires_grad_(False)
        head = model.get_output_embeddings()
        linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
        names = sorted({name.rsplit(".", 1)[-1] for name in linear})
        targets = names if lora.targets == "all-linear" else list(lora.targets)
        unknown = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in linear)]
        if unknown or not targets:
            raise UserError(
                f"backbone.lora.targets={','.join(unknown) or lora.targets}: this model has no such linear "
                f"layers. Choices: {', '.join(names) or 'none; use tune=full'}."
            )
        inject_adapter_in_model(PeftLora(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets), model)
        if starts:
            train_new_rows(model, list(starts))
    return model


@torch.no_grad()
def _check_family(backbone: Backbone, where: str) -> None:
    """Tries on four tokens what methods rely on, so that a family that differs is refused, not misused."""
    was_training = backbone.training
    backbone.eval()
    ids_BT = torch.arange(4)[None] % backbone.vocab_size
    role_BT = role_of(ids_BT, Role.PROMPT)
    try:
        own = backbone.model(input_ids=ids_BT).logits
        whole = backbone(ids_BT, role_BT).hidden_BTD
        padded = backbone(pad(ids_BT, (2, 0), value=IGNORE), pad(role_BT, (2, 0))).hidden_BTD
        start = backbone(ids_BT[:, :3], role_BT[:, :3], keep=True)
        end = backbone(ids_BT[:, 3:], role_BT[:, 3:], start.past).hidden_BTD
    except (TypeError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{where}: cannot read embeddings with a cache ({whole_sentences(error)})."
        ) from error
    backbone.train(was_training)
    counted = getattr(backbone.model.config, "quantization_config", None) is not None
    exact = whole.dtype == torch.float32 and not counted  # the last bit of a float may turn an integer over
    allowed = 1e-3 if exact else 3e-2
    for fault, got, wanted in (
        ("changes its logits after the head", backbone.logits(whole), own),
        ("lets a token see later ones", whole[:, :3], start.hidden_BTD),
        ("reads padding as text", padded[:, 2:], whole),
        ("reads with a cache what it does not read without", end, whole[:, 3:]),
    ):
        if not (got - wanted).norm() <= allowed * wanted.norm():
            family = type(backbone.model).__name__
            raise UserError(f"{where}: {family} {fault}; such a family is not supported.")
