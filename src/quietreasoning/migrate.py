"""`quiet migrate FOLDER OUT`: a model folder with another vocabulary.

Tokens are added, cut to what a corpus uses, or taken from another tokenizer. A row belongs to what its token
stands for, whatever its number: rows whose token is known stay as they are to the last bit, the others are
made. What was written is loaded back and asked: of the tokens that stayed it must say what it said before.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from tokenizers import AddedToken
from torch import Tensor, nn

from quietreasoning.backbone.vocabulary import WAYS, NewRows, open_folder, renumber, replace_rows, save_folder
from quietreasoning.config import UserError, suggest
from quietreasoning.data.made import refused_by_disk
from quietreasoning.data.token_text import id_map, same_roles, special_ids, token_keys, token_strings
from quietreasoning.data.tokenizers import load_tokenizer, save_tokenizer
from quietreasoning.data.trim import trimmed
from quietreasoning.disk import sync

ASKED = (8, 16)  # rows and tokens of the text that both are asked about
NEAR = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the largest logit; others below
FAR = 3e-2
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for, in the order in which it is done."""

    tokenizer: str | None = None
    trim: str | None = None
    add: tuple[str, ...] = ()
    special: tuple[str, ...] = ()
    rows: str = "mean"
    multiple: int = 1


@dataclass(frozen=True)
class Migrated:
    """Rows of tokens that stayed, were made and were dropped; padding: rows that no token has. distance: of
    the logits of tokens that stayed, the largest difference; near: the largest allowed. folder: None where
    it is not kept."""

    folder: Path | None
    rows_before: int
    rows: int
    kept: int
    made: int
    dropped: int
    padding: int
    tied: bool
    distance: float
    near: float
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """A tokenizer, and for each of its ids the id of before that stood for the same, or -1."""

    tokenizer: Any
    old_N: NDArray[np.int64]
    moved: bool  # ids may have other numbers than before
    notes: tuple[str, ...] = ()


def migrate(folder: str, out: str, wishes: Wishes) -> Migrated:
    """Write OUT, whole or not at all; nothing where the logits differ. UserError names what cannot be."""
    source, target = Path(folder), Path(out)
    check(source, target, wishes)
    before = load_tokenizer(str(source))
    plan = planned(source, before, wishes)
    model = open_folder(source)
    rows_before = model.get_input_embeddings().num_embeddings
    rows, counts = rows_for(plan, before, rows_before, wishes)
    ids_N, old_N = asked_about(plan, rows)
    said_BTN = answers(model, old_N)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is table.weight
    replace_rows(model, rows, plan.tokenizer.pad_token_id)
    renumber(
        model, {int(old): id for id, old in enumerate(plan.old_N) if old >= 0}, plan.tokenizer.eos_token_id
    )
    draft = write(model, plan.tokenizer, target)
    try:
        distance = apart(answers(open_folder(draft), ids_N), said_BTN)
        near = NEAR.get(model.dtype, FAR) * float(said_BTN.abs().max())
        if good := distance <= near:
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Migrated(
        target if good else None,
        rows_before,
        len(rows.old_N),
        **counts,
        tied=tied,
        distance=distance,
        near=near,
        notes=list(plan.notes),
    )


def check(source: Path, target: Path, wishes: Wishes) -> None:
    """UserError for wishes that cannot be met."""
    if target.exists():
        raise UserError(f"OUT={target}: is there already; name a new folder")
    if not source.is_dir():
        raise UserError(
            f"FOLDER={source}: no such folder; give one written by save_pretrained or quiet export"
        )
    if (source / "config.yaml").is_file():
        raise UserError(f"FOLDER={source}: is a run; quiet export {source} MODEL writes the folder to give")
    if not any((source / name).is_file() for name in _FILES):
        raise UserError(
            f"FOLDER={source}: has no tokenizer, so no row has a name; put its tokenizer.json beside the "
            "weights"
        )
    if wishes.rows not in WAYS:
        raise UserError(f"--rows {wishes.rows}: no such way to make rows. {suggest(wishes.rows, WAYS)}")
    if wishes.multiple < 1:
        raise UserError(f"--pad-to-multiple {wishes.multiple}: give 1 or more, such as 64")
    if wishes == Wishes(rows=wishes.rows):
        raise UserError("nothing to do: give --add, --add-special, --trim, --tokenizer or --pad-to-multiple")


def planned(source: Path, before: Any, wishes: Wishes) -> Plan:
    """The new tokenizer. UserError where it shares no token with the one of before."""
    tokenizer, notes = load_tokenizer(str(source)), []
    old_N = np.arange(len(token_strings(before)))
    if wishes.tokenizer is not None:
        tokenizer = load_tokenizer(wishes.tokenizer)
        old_N = inverse(before, tokenizer)
        special = special_ids(tokenizer)
        if not any(old >= 0 for id, old in enumerate(old_N) if id not in special):
            raise UserError(
                f"--tokenizer {wishes.tokenizer}: shares no token with that of FOLDER={source}, so every row "
                "would be made anew; train from scratch with it, or choose a nearer one"
            )
    if wishes.trim is not None:
        tokenizer, kept_N = trimmed(tokenizer, Path(wishes.trim))
        old_N = old_N[kept_N]
    for names, special in ((wishes.add, False), (wishes.special, True)):
        known = [name for name in names if name in tokenizer.get_vocab()]
        notes += [f"{name} is a token already; its row stays" for name in known]
        with_tokens(tokenizer, [name for name in names if name not in known], special)
    more = len(token_strings(tokenizer)) - len(old_N)
    old_N = np.concatenate([old_N, np.full(more, -1)])
    return Plan(tokenizer, old_N, bool(wishes.tokenizer or wishes.trim), tuple(notes))


def with_tokens(tokenizer: Any, names: Sequence[str], special: bool) -> None:
    """Add them, in place; UserError where one is not one id in a text then."""
    tokenizer.add_tokens([AddedToken(name, special=special, normalized=False) for name in names])
    for name in names:
        ids = tokenizer(f"a{name}a", add_special_tokens=False)["input_ids"]
        if tokenizer.get_vocab().get(name) not in ids:
            option = "--add-special" if special else "--add"
            raise UserError(f"{option} {name!r}: this tokenizer does not write it as one token; name another")


def inverse(before: Any, after: Any) -> NDArray[np.int64]:
    """[ids of after] -> the id of before that stands for the same or has the same role, or -1."""
    known = before.get_vocab(), after.get_vocab()
    roles = {a: b for a, b in same_roles(before, after).items() if a not in known[1] and b not in known[0]}
    new_V = id_map(before, after, roles)
    old_N = np.full(len(token_strings(after)), -1)
    old_N[new_V[new_V >= 0]] = np.flatnonzero(new_V >= 0)
    return old_N


def rows_for(plan: Plan, before: Any, rows_before: int, wishes: Wishes) -> tuple[NewRows, dict[str, int]]:
    """Where each row comes from, and how many of which kind. As many as the tokenizer has ids, rounded up."""
    names, known = token_strings(plan.tokenizer), token_strings(before)
    size = -(-len(names) // wishes.multiple) * wishes.multiple
    old_N = np.full(size, -1)
    old_N[: len(names)] = plan.old_N
    beyond = [id for id in range(size) if id >= len(names) or names[id] is None]
    if not plan.moved:  # what was padding stays what it was
        old_N[beyond] = beyond
    old_N[old_N >= rows_before] = -1  # a token that had no row
    tokens_M = [id for id, name in enumerate(known) if name is not None and id < rows_before]
    taken = set(old_N[old_N >= 0].tolist())
    new = [id for id in range(len(names)) if old_N[id] < 0 and names[id] is not None]
    counts = {
        "kept": len(names) - names.count(None) - len(new),
        "made": len(new),
        "dropped": sum(id not in taken for id in tokens_M),
        "padding": len(beyond),
    }
    pieces = pieces_of(plan.tokenizer, before, new, rows_before) if wishes.rows == "pieces" else {}
    padding = frozenset(beyond)
    return NewRows(torch.from_numpy(old_N), wishes.rows, pieces, padding, torch.tensor(tokens_M)), counts


def pieces_of(tokenizer: Any, before: Any, new: Sequence[int], rows: int) -> Mapping[int, list[int]]:
    """Made id -> ids of before that write what it stands for, without unknown ones."""
    keys = token_keys(tokenizer)
    found = (keys[id] or "" for id in new)
    texts = [key if isinstance(key, str) else key.decode(errors="ignore") for key in found]
    first = before("a", add_special_tokens=False)["input_ids"][:1]
    if first and token_keys(before)[first[0]] == b" a":  # it writes a space before every text
        texts = [text.removeprefix(" ") for text in texts]
    written = before(texts, add_special_tokens=False)["input_ids"] if texts else []
    return {
        id: [piece for piece in pieces if piece != before.unk_token_id and piece < rows]
        for id, pieces in zip(new, written, strict=True)
    }


def asked_about(plan: Plan, rows: NewRows) -> tuple[Tensor, Tensor]:
    """Ids of the tokens that stayed, now and before."""
    ids_N = (rows.old_N[: len(plan.old_N)] >= 0).nonzero()[:, 0]
    return ids_N, rows.old_N[ids_N]


@torch.no_grad()
def answers(model: nn.Module, ids_N: Tensor) -> Tensor:
    """Logits [B, T, N] of these ids, asked about a text of them: the same places in both lists give the same
    text."""
    places_BT = torch.randint(0, len(ids_N), ASKED, generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids_N[places_BT]).logits[..., ids_N].float()


def apart(said_BTN: Tensor, before_BTN: Tensor) -> float:
    """The largest difference; infinite where one is no number."""
    distance = float((said_BTN - before_BTN).abs().max())
    return distance if distance == distance else float("inf")


def write(model: nn.Module, tokenizer: Any, target: Path) -> Path:
    """A folder beside the target under a temporary name, synced; UserError where the disk refuses."""
    draft = target.with_name(f".tmp-{target.name}")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # of one that was killed
        draft.mkdir(parents=True)
        save_folder(model, draft)
        save_tokenizer(tokenizer, draft)
        for path in (*draft.iterdir(), draft):
            sync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise refused_by_disk(target, error) from error
    return draft
