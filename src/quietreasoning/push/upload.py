"""To the Hugging Face hub, and what stands in the way in the user's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of whichever HTTP library the hub's library uses
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from quietreasoning.config import UserError

OURS = (
    "step-*",
    "base/*",
    "teacher/*",
    "compressor/*",
    "tokenizer/*",
    "eval/*",
    "compressor-*",
    "report.html",
)


class Hub(Protocol):
    """The part of `huggingface_hub.HfApi` that is used."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any: ...

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> Any: ...

    def upload_folder(self, *, repo_id: str, folder_path: Path, **how: Any) -> Any: ...


def check_repo(repo: str) -> None:
    """UserError unless it is OWNER/NAME as the hub takes it."""
    try:
        validate_repo_id(repo)
        if repo.count("/") == 1:
            return
        fault = "it has no owner"
    except HFValidationError as error:
        fault = " ".join(str(error).split()).rstrip(".")
    raise UserError(f"{repo}: no repository name: {fault}. Write OWNER/NAME, such as ada/slots-pointer.")


def upload(
    folder: Path, repo: str, *, private: bool, revision: str | None, message: str, api: Hub | None = None
) -> str:
    """Create the repository if need be, send the folder; returns its address.

    Files of an earlier push that this one lacks are deleted there: a checkpoint of more steps would be taken
    for the newest. UserError with the cure where the hub or the network refuses; the folder stays.
    """
    api = HfApi() if api is None else api
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            delete_patterns=list(OURS),
        )
    except Exception as error:  # of four libraries: the hub's, HTTP, the transfer's, the system's
        raise UserError(f"{refusal(error, repo)} What was to be sent is in {folder}.") from error
    return str(address)


def refusal(error: Exception, repo: str) -> str:
    """What went wrong and what to do about it."""
    said = " ".join(str(error).split())[:200]
    owner = repo.partition("/")[0]
    if isinstance(error, LocalTokenNotFoundError):
        return "no token of the hub is here: run hf auth login, or set HF_TOKEN."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be sent: unset it, or add --dry-run."
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        if code == 401:
            return f"{repo}: the hub does not know you: run hf auth login, or set HF_TOKEN to a valid token."
        if code == 403:
            return f"{repo}: this token may not write to {owner}: take one that may, or another owner."
        if code == 404:
            return f"{repo}: the hub has no such owner, repository or branch, or hides it from this token."
        if code in (408, 429) or code >= 500:
            return f"{repo}: the hub is busy (HTTP {code}): run the same command again later."
        return f"{repo}: the hub refused (HTTP {code}: {said})."
    if isinstance(error, ConnectionError | TimeoutError | HTTPError):
        return f"the hub cannot be reached ({said}): check the network, then run the same command again."
    return f"{repo}: could not be sent ({type(error).__name__}: {said}); run the same command again."
