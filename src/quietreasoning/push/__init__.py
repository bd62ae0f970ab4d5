"""`quiet push`: a trained run on the Hugging Face hub, with a card that says what it was measured to do."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from quietreasoning.build import folder_of
from quietreasoning.config import UserError
from quietreasoning.push.card import make_card
from quietreasoning.push.staging import PUSHED, Contents, stage_run
from quietreasoning.push.upload import Hub, check_repo, upload
from quietreasoning.train import checkpoint

CARD = "README.md"


@dataclass(frozen=True)
class Pushed:
    """What was staged, and where it went: None for a dry run."""

    folder: Path
    files: tuple[tuple[str, int], ...]  # name and bytes
    notes: tuple[str, ...]
    checkpoint: str
    address: str | None = None

    @property
    def card(self) -> Path:
        return self.folder / CARD


def stage(
    run: str | Path,
    repo: str,
    out: str | Path | None = None,
    *,
    license_id: str | None = None,
    revision: str | None = None,
    base: str | None = None,
    with_base: bool = False,
) -> Pushed:
    """Collect a run and its card in `out` (RUN/push), which opens as a run; nothing is sent.

    license_id, revision: for the card. base, with_base: see `portable.portable`. UserError names what is
    missing.
    """
    check_repo(repo)
    run = Path(run)
    out = Path(out) if out is not None else folder_of(run) / "push"
    check_out(out)
    draft = out.with_name(f"{checkpoint.TEMPORARY}{out.name}")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        contents: Contents = stage_run(run, draft, base=base, with_base=with_base)
        make_card(contents, repo, license_id=license_id, revision=revision).save(draft / CARD)
        shutil.rmtree(out, ignore_errors=True)
        draft.rename(out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written: {error.strerror}. Free some space, or give --out."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    sizes = tuple((path.relative_to(out).as_posix(), path.stat().st_size) for path in files)
    return Pushed(out, sizes, contents.notes, contents.checkpoint)


def push(
    staged: Pushed, repo: str, *, private: bool = True, revision: str | None = None, api: Hub | None = None
) -> Pushed:
    """Send what `stage` collected. UserError with the cure where the hub refuses.

    private: of a repository that is made now; one that exists keeps what it is. revision: a branch, made if
    need be. api: in place of `huggingface_hub.HfApi()`.
    """
    check_repo(repo)
    message = f"quiet push of {staged.checkpoint}"
    address = upload(staged.folder, repo, private=private, revision=revision, message=message, api=api)
    return replace(staged, address=address)


def check_out(out: Path) -> None:
    """UserError where something else than an earlier staging stands."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        ours = PUSHED in checkpoint.read_json(out / "run.json")
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UserError(f"--out {out}: something else stands there; name an empty or new folder")
