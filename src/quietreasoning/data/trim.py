"""A tokenizer with fewer tokens: what a corpus uses, and what any other text still needs.

A text whose tokens all stay is written as before: a merge that it never made, or a piece that it never
held, was no choice at any step. Special and added tokens stay, as do the pieces that kept tokens are merged
from and those that write any text (bytes; single characters where there are none).
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietreasoning.config import UserError
from quietreasoning.data.token_text import byte_alphabet, decoders_of, token_strings
from quietreasoning.data.tokenizers import load_tokenizer, save_tokenizer

KINDS = ("BPE", "WordLevel", "WordPiece", "Unigram")
_LINES = 1000  # of a text that are encoded at once
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def read_texts(path: Path) -> Iterator[str]:
    """A text in stretches of whole lines; of JSON lines (`.jsonl`) every string. UserError where it cannot be
    read."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines: list[str] = []
            for number, line in enumerate(file, 1):
                if path.suffix == ".jsonl":
                    lines += _strings(_parsed(line, path, number))
                    continue
                lines.append(line)
                if number % _LINES == 0:
                    yield "".join(lines)
                    lines = []
            yield from lines if path.suffix == ".jsonl" else ["".join(lines)]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8"
        raise UserError(f"--trim {path}: cannot be read ({reason}); give a text or JSON lines") from error


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line) if line.strip() else []
    except ValueError:
        raise UserError(f"--trim {path}:{number}: no JSON; give a text, or one JSON value a line") from None


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in _strings(each)]


def trimmed(tokenizer: Any, path: Path) -> tuple[Any, NDArray[np.int64]]:
    """(the same tokenizer with the tokens of a file's texts, [new ids] -> old id), in the order of the old
    ids. The file is read twice, a stretch at a time.

    UserError where there is no text, the vocabulary is of a kind that cannot be cut, or what was cut writes
    the texts otherwise than before.
    """
    used = {id for ids in _written(tokenizer, path) for id in ids}
    if not used:
        raise UserError(f"--trim {path}: holds no text; give one like those that the model reads")
    body = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = body["model"]["type"]
    if kind not in KINDS:
        raise UserError(f"--trim: a vocabulary of kind {kind} cannot be cut; choices are {', '.join(KINDS)}")
    names = token_strings(tokenizer)
    kept = used | {each["id"] for each in body["added_tokens"]} | _alphabet(tokenizer, names)
    kept |= set(tokenizer.all_special_ids)
    if kind == "BPE":
        kept |= _parts(body["model"], names, kept)
    if kind == "Unigram" and body["model"]["unk_id"] is not None:
        kept.add(body["model"]["unk_id"])
    if (unknown := body["model"].get("unk_token")) is not None:
        kept.add(names.index(unknown))
    old_N = np.array(sorted(kept), np.int64)
    small = _reloaded(tokenizer, _cut(body, names, old_N), old_N)
    for new, old in zip(_written(small, path), _written(tokenizer, path), strict=True):
        if old_N[new].tolist() == old:
            continue
        raise UserError(f"--trim {path}: the smaller tokenizer writes the text otherwise; leave --trim out")
    return small, old_N


def _written(tokenizer: Any, path: Path) -> Iterator[list[int]]:
    for text in read_texts(path):
        yield tokenizer(text, add_special_tokens=False)["input_ids"]


def _alphabet(tokenizer: Any, names: list[str | None]) -> set[int]:
    """Ids that write whatever else a text may hold."""
    kinds = decoders_of(tokenizer)
    in_bytes = {id for id, name in enumerate(names) if name and name.startswith("<0x") and len(name) == 6}
    if "ByteFallback" in kinds and in_bytes:
        return in_bytes
    single = {id for id, name in enumerate(names) if name and len(name.removeprefix("##")) == 1}
    if "ByteLevel" in kinds:
        return {id for id in single if names[id] in byte_alphabet()}
    return single


def _parts(model: dict[str, Any], names: list[str | None], kept: set[int]) -> set[int]:
    """Ids that the kept ones are merged from, step by step."""
    made_from = defaultdict(list)
    for merge in model["merges"]:
        made_from[_merged(merge, model)].append(_pair(merge))
    found: set[int] = set()
    open_ids, ids = list(kept), model["vocab"]
    while open_ids:
        for pair in made_from.get(names[open_ids.pop()], ()):
            new = {ids[part] for part in pair} - found - kept
            found |= new
            open_ids += new
    return found


def _pair(merge: Any) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _merged(merge: Any, model: dict[str, Any]) -> str:
    first, second = _pair(merge)
    return first + second.removeprefix(model.get("continuing_subword_prefix") or "")


def _cut(body: dict[str, Any], names: list[str | None], old_N: NDArray[np.int64]) -> dict[str, Any]:
    """The content of a tokenizer.json with these ids alone, numbered anew."""
    new = {int(old): id for id, old in enumerate(old_N)}
    model = body["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for id, entry in enumerate(model["vocab"]) if id in new]
        model["unk_id"] = new.get(model["unk_id"])
    else:
        model["vocab"] = {token: new[id] for token, id in model["vocab"].items() if id in new}
    if model["type"] == "BPE":
        known = model["vocab"]
        model["merges"] = [
            merge
            for merge in model["merges"]
            if _merged(merge, model) in known and all(part in known for part in _pair(merge))
        ]
    for each in body["added_tokens"]:
        each["id"] = new[each["id"]]
    body["post_processor"] = _renumbered(body["post_processor"], new)
    return body


def _renumbered(value: Any, new: dict[int, int]) -> Any:
    """Ids of special tokens inside a post-processor: `ids: [1]` of templates, `sep: [name, 1]` of pairs."""
    if isinstance(value, list):
        return [_renumbered(each, new) for each in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for name, each in value.items():
        if name == "ids":
            each = [new[id] for id in each]
        elif name in ("sep", "cls"):
            each = [each[0], new[each[1]]]
        found[name] = _renumbered(each, new)
    return found


def _reloaded(tokenizer: Any, body: dict[str, Any], old_N: NDArray[np.int64]) -> Any:
    """A tokenizer with the settings of another and this content."""
    new = {str(old): str(id) for id, old in enumerate(old_N)}
    with tempfile.TemporaryDirectory(prefix="quiet-trim-") as name:
        folder = Path(name)
        save_tokenizer(tokenizer, folder)
        for path in folder.iterdir():
            if path.name not in _FILES:  # other forms of the same vocabulary, whole
                path.unlink()
        (folder / "tokenizer.json").write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        if decoder := settings.get("added_tokens_decoder"):
            settings["added_tokens_decoder"] = {new[id]: each for id, each in decoder.items()}
        path.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        small = load_tokenizer(name)
    names = token_strings(tokenizer)
    if token_strings(small) != [names[old] for old in old_N]:
        raise UserError(
            f"--trim: a tokenizer of class {type(tokenizer).__name__} cannot be cut; leave --trim out"
        )
    return small
