"""What each token of a vocabulary stands for, so that two vocabularies can be held against each other.

A vocabulary writes the same piece of text in its own way: `Ġthe`, `▁the`, or `the` where decoding joins
tokens by a space. Compared are the bytes that a token adds to a text, and special tokens by their names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietreasoning.config import UserError, suggest

Key = bytes | str | None  # bytes of a text, name of a special token; None: an id that no token has
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_keys(tokenizer: Any) -> list[Key]:
    """What each id stands for; as many as the tokenizer has ids, gaps included."""
    raw = token_strings(tokenizer)
    kinds = decoders_of(tokenizer)
    added = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items()}
    special = special_ids(tokenizer)
    keys: list[Key] = []
    for id, token in enumerate(raw):
        if token is None or id in special:
            keys.append(token)
        elif id in added:  # written out, in no alphabet
            keys.append(added[id].encode())
        else:
            keys.append(_bytes_of(token, kinds))
    return keys


def token_strings(tokenizer: Any) -> list[str | None]:
    """The tokens as the vocabulary spells them, by id; None in gaps."""
    vocabulary = tokenizer.get_vocab()
    strings: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, id in vocabulary.items():
        strings[id] = token
    return strings


def special_ids(tokenizer: Any) -> frozenset[int]:
    marked = (id for id, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*marked, *tokenizer.all_special_ids])


def decoders_of(tokenizer: Any) -> frozenset[str]:
    """Which of the ways to spell it uses: ByteLevel, ByteFallback, Metaspace, Joined, WordPiece."""
    if not tokenizer.is_fast:
        return frozenset({"Metaspace", "ByteFallback"})  # SentencePiece
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    parts = decoder.get("decoders", [decoder]) if decoder else []
    kinds = {part["type"] for part in parts}
    if any(part["type"] == "Replace" and "▁" in part["pattern"].values() for part in parts):
        kinds.add("Metaspace")
    if not kinds or "WordPiece" in kinds:
        kinds.add("Joined")
    return frozenset(kinds)


def _bytes_of(token: str, kinds: frozenset[str]) -> bytes:
    if "ByteLevel" in kinds:
        table = byte_alphabet()
        if all(char in table for char in token):
            return bytes(table[char] for char in token)
        return token.encode()
    if "ByteFallback" in kinds and (found := _BYTE.fullmatch(token)):
        return bytes([int(found[1], 16)])
    if "Metaspace" in kinds:
        return token.replace("▁", " ").encode()
    if "Joined" in kinds:
        inner = "WordPiece" in kinds and token.startswith("##")
        return (token.removeprefix("##") if inner else f" {token}").encode()
    return token.encode()


@cache
def byte_alphabet() -> Mapping[str, int]:
    """The character that byte-level vocabularies write for each byte (that of GPT-2)."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(b): b for b in own} | {chr(256 + n): b for n, b in enumerate(others)}


def id_map(source: Any, target: Any, specials: Mapping[str, str | None] | None = None) -> NDArray[np.int64]:
    """[ids of the source] -> id of the target that stands for the same, or -1; no two have the same.

    Tokens that are spelled alike come first, then those that stand for the same bytes. specials: name of a
    token of the source -> that of the target's it corresponds to, or None for none; of the others those that
    have the same name correspond. UserError for a name that is not there.
    """
    known = token_strings(source), token_strings(target)
    keys = token_keys(source), token_keys(target)
    found = np.full(len(keys[0]), -1, np.int64)
    named = {_id(source, a): None if b is None else _id(target, b) for a, b in (specials or {}).items()}
    for id, other in named.items():
        found[id] = -1 if other is None else other
    taken = {other for other in named.values() if other is not None}
    orders = [_bytes_last(names) for names in known]
    for spelled in (True, False):
        places: dict[Any, int] = {}
        for id in orders[1]:
            if (key := keys[1][id]) is not None and id not in taken:
                places.setdefault((key, known[1][id] if spelled else None), id)
        for id in orders[0]:
            if (key := keys[0][id]) is None or found[id] >= 0 or id in named:
                continue
            other = places.pop((key, known[0][id] if spelled else None), None)
            if other is not None:
                found[id] = other
                taken.add(other)
    return found


def _bytes_last(names: Sequence[str | None]) -> list[int]:
    """Ids, those that are spelled as a byte behind the others: `▁` is the space that a model writes, and not
    `<0x20>`."""
    return sorted(range(len(names)), key=lambda id: bool(_BYTE.fullmatch(names[id] or "")))


def same_roles(source: Any, target: Any, roles: Sequence[str] = ROLES) -> dict[str, str]:
    """Names of the source's special tokens -> those of the target that have the same role (end of sequence,
    ...), where both have one: for `id_map`. One name has one counterpart: the first role's."""
    pairs: dict[str, str] = {}
    for role in roles:
        mine, other = getattr(source, role), getattr(target, role)
        if mine is not None and other is not None and mine not in pairs and other not in pairs.values():
            pairs[mine] = other
    return pairs


def _id(tokenizer: Any, token: str) -> int:
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        names = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
        raise UserError(f"specials: a tokenizer has no token {token!r}. {suggest(token, names)}")
    return vocabulary[token]
