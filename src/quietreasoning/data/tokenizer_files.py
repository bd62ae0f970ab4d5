"""A tokenizer from what is on disk or on the hub."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from quietreasoning.config import UserError
from quietreasoning.data.spm import from_sentencepiece
from quietreasoning.disk import missing_run, no_folder, whole_sentences


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer from a folder, a hub id or a SentencePiece `.model` file.

    UserError where nothing is there, the tokenizer has no fast form, or no end of sequence is set.
    """
    if path.endswith(".model"):
        return from_sentencepiece(path)
    if missing_run(path):
        raise UserError(f"tokenizer of {path}: {no_folder(path)}")
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # what it warns of is refused below, in one line
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except Exception as error:  # the Rust half raises bare Exceptions, a file of another shape KeyErrors
        raise UserError(f"tokenizer of {path}: {_refusal(path, error)}") from error
    finally:
        logging.set_verbosity(told)
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer of {path}: it has no fast form; save one with a tokenizer.json")
    return checked(tokenizer, path)


def _refusal(path: str, error: Exception) -> str:
    text = whole_sentences(error)
    if "custom code" in text:
        return "it needs code from its own repository, which is never run here"
    if isinstance(error, OSError) and (absent := no_folder(path, error)):
        return absent
    if not isinstance(error, OSError):
        return (
            f"no tokenizer could be loaded; its files are missing or damaged ({type(error).__name__}: {text})"
        )
    return f"no tokenizer could be loaded ({text})"


def checked(tokenizer: PreTrainedTokenizerFast, origin: str) -> PreTrainedTokenizerFast:
    """The same tokenizer, or UserError where it lacks an end of sequence."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer of {origin} has no end-of-sequence token; set eos_token in its tokenizer_config.json"
        )
    return tokenizer
