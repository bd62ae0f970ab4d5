"""`quiet export RUN FOLDER`: the language model of a run as a folder that transformers opens.

Adapters are merged. Layers that were trained for integers may be written as such. Thinking tokens that no
training row holds are cut off again. What was written is loaded back and asked: it must say what the run
says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from quietreasoning.backbone import torchao_folder
from quietreasoning.backbone.export import merge, reopened, save, trim
from quietreasoning.backbone.quant import prepare_model
from quietreasoning.build import Loaded, open_run
from quietreasoning.config import UserError
from quietreasoning.data.config import build_task
from quietreasoning.data.tags import THINKING
from quietreasoning.data.thinking import forget_new, new_rows
from quietreasoning.data.tokenizers import load_tokenizer, save_tokenizer
from quietreasoning.nn.fake_quant import Bits, restore, switch
from quietreasoning.run_config import StageConfig
from quietreasoning.train.checkpoint import read_json
from quietreasoning.train.settings import QuantConfig

# methods that answer as the language model alone would
ALONE = ("plain", "cot", "lm", "bake", "distill", "cross", "prefer")
DTYPES = ("float32", "bfloat16", "float16")
ASKED = (8, 16)  # rows and tokens of the text that both are asked about
NEAR = {torch.float32: 1e-4, torch.float64: 1e-8}  # relative distance of logits; others below
FAR = 3e-2


@dataclass(frozen=True)
class Exported:
    """What was written. distance: of its logits from the run's, relative."""

    folder: Path
    files: list[tuple[str, int]]
    distance: float
    notes: list[str]


def export(
    path: str, out: str, dtype: str | None = None, *, int8: bool = False, torchao: bool = False
) -> Exported:
    """int8: write linear layers as the integers they were trained for, or as int8. torchao: in its tensors.

    UserError where there is no such run, dtype or integers, the folder holds files, or what was written says
    something else.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name a new folder")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: no such precision; choose one of {', '.join(DTYPES)}")
    if torchao and not int8:
        raise UserError("--torchao: has no effect without --int8")
    loaded = open_run(path)
    model, tokenizer = loaded.method.backbone.model, loaded.encoder.tokenizer
    name, notes = loaded.method.config.name, []
    if name not in ALONE:
        notes.append(
            f"method {name} answers through more than its language model, and a model folder holds that alone"
        )
    cut = unused_thinking(loaded)
    vocab_size = loaded.method.backbone.vocab_size - len(cut)
    ids_BT = torch.randint(0, vocab_size, ASKED, generator=torch.Generator().manual_seed(0)).to(loaded.device)
    stage = loaded.config.stages[read_json(loaded.checkpoint / "state.json")["stage_index"]]
    said_BTV = said(model, ids_BT, stage.train.quant, int8, torchao, notes)[..., :vocab_size]
    if cut:
        trim(model, vocab_size)
        notes.append(f"no training row holds a thinking token: the {len(cut)} that were added are cut off")
    precision = getattr(torch, dtype) if dtype else model.dtype
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder, eos=loaded.encoder.markers().eos, dtype=precision, torchao=torchao)
    save_tokenizer(forget_new(tokenizer), folder)
    forget(folder, cut)
    distance = compare(folder, said_BTV, ids_BT)
    files = [(str(p.relative_to(folder)), p.stat().st_size) for p in sorted(folder.rglob("*")) if p.is_file()]
    return Exported(folder, files, distance, notes)


def said(
    model: nn.Module, ids_BT: Tensor, quant: QuantConfig | None, int8: bool, torchao: bool, notes: list[str]
) -> Tensor:
    """What the folder must say, [B, T, V]; leaves `model` merged, and countable for integers alone."""
    restore(model)
    floats_BTV = answers(model, ids_BT)
    merge(model)
    if quant is not None and not int8:
        notes.append("trained for integers, written in floats: --int8 writes what the run was evaluated as")
    if not int8:
        return floats_BTV
    bits = Bits() if quant is None else Bits(quant.weight_bits, quant.activation_bits, quant.group)
    if torchao:
        torchao_folder.require(bits)
    prepare_model(model, bits, () if quant is None else quant.exclude)
    switch(model, True)
    counted_BTV = answers(model, ids_BT)
    away = float((counted_BTV - floats_BTV).norm() / floats_BTV.norm())
    trained = "" if quant is not None else "; nothing was trained for it, see train.quant"
    notes.append(f"{bits.weight}-bit weights move the logits by {away:.1e} of the floats'{trained}")
    return counted_BTV


def unused_thinking(loaded: Loaded) -> list[str]:
    """Thinking tokens that were added at the end of the vocabulary and that no training row holds.

    None are called unused where that cannot be told: after another run, or where the rows are gone.
    """
    if loaded.config.init is not None:
        return []
    tokenizer = loaded.encoder.tokenizer
    added = sorted(new_rows(tokenizer))
    last = list(range(len(tokenizer) - len(added), len(tokenizer)))
    if added != last or loaded.method.backbone.vocab_size != len(tokenizer):
        return []
    if any(uses_thinking(stage) for stage in loaded.config.stages):
        return []
    return tokenizer.convert_ids_to_tokens(added)


def uses_thinking(stage: StageConfig) -> bool:
    """Whether a stage trains on a thinking token."""
    if stage.method.name == "thoughts" or stage.data.format.tags:
        return True
    try:
        examples = build_task(stage.data).split("train", stage.data.train)
    except UserError:  # its files are not here any more
        return True
    texts = (text for each in examples for text in (each.prompt, *each.steps, each.answer))
    return any(token in text for text in texts for token in THINKING)


def forget(folder: Path, tokens: list[str]) -> None:
    """Take tokens at the end of its vocabulary out of the tokenizer in a folder."""
    if not tokens:
        return
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"] = [each for each in content["added_tokens"] if each["content"] not in tokens]
    for token in tokens:
        content["model"]["vocab"].pop(token, None)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    decoder = settings.get("added_tokens_decoder", {})
    settings |= {"added_tokens_decoder": {k: v for k, v in decoder.items() if v["content"] not in tokens}}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(settings.get(key), list):
            settings[key] = [each for each in settings[key] if each not in tokens]
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")
    kept = load_tokenizer(str(folder)).get_vocab().keys() & set(tokens)
    if kept:
        raise UserError(f"{path}: its tokenizer still holds {', '.join(sorted(kept))}, which the model lacks")


@torch.no_grad()
def answers(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Logits [B, T, V]."""
    return model(input_ids=ids_BT).logits.double()


def compare(folder: Path, said_BTV: Tensor, ids_BT: Tensor) -> float:
    """Relative distance of what the folder says from `said_BTV`; UserError beyond rounding."""
    again = reopened(folder).to(said_BTV.device)
    distance = float((answers(again, ids_BT) - said_BTV).norm() / said_BTV.norm())
    if not distance <= NEAR.get(again.dtype, FAR):
        raise UserError(f"{folder}: says something else than the run (relative distance {distance:.2g})")
    return distance
