"""What the first line of a rows file says of the rows, and whether it is so.

`{"__header__": ..., "dataset_sha256": S}`: S must be the SHA-256 of all bytes after that line, with or
without the last end of line. `dataset_fingerprint` is anybody's; a run that goes on wants the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.data.records import Fault, lines
from quietreasoning.data.spans.rows import HEADER

SHA256, FINGERPRINT = "dataset_sha256", "dataset_fingerprint"


def header(path: Path) -> Mapping[str, Any]:
    """The first line where it is a header, with what stands inside of it; else nothing."""
    for _, line in lines(path):
        if isinstance(line, str) and line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                return {}
            if not isinstance(record, dict) or HEADER not in record:
                return {}
            inner = record[HEADER]
            return (inner if isinstance(inner, dict) else {}) | record
    return {}


def sums(path: Path) -> dict[str, str]:
    """What a file's header says that its rows are."""
    found = header(path)
    return {key: str(found[key]) for key in (SHA256, FINGERPRINT) if found.get(key) is not None}


def check_header(path: Path) -> None:
    """UserError where the rows are not those that the header was written for."""
    said = sums(path).get(SHA256)
    if said is None:
        return
    text, started = "", False
    for number, line in lines(path):
        if isinstance(line, Fault):
            raise UserError(f"{path}:{number}: {line}, so {SHA256} of its header cannot be checked; mend it")
        if started:
            text += line
        started = started or bool(line.strip())
    found = [hashlib.sha256(part.encode()).hexdigest() for part in (text, text.removesuffix("\n"))]
    if said.lower().removeprefix("sha256:") not in found:
        raise UserError(
            f"{path}:1: {SHA256} is {said:.16}..., the rows after it have {found[0]:.16}...: they have "
            f"changed since, or it was taken of something else. Take the rows back, write {found[0]}, or "
            f"call it {FINGERPRINT}, which is compared at a resume alone"
        )
