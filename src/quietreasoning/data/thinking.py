"""The eight thinking tokens in any tokenizer: `<think>` and `</think>` around a thought, six tags within.

Each is one id. A tokenizer may hold some already; the names of those that it did not hold travel with it, for
the rows that a model needs for them are made from their word pieces whenever the model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from quietreasoning.config import UserError
from quietreasoning.data.tags import THINKING

NEW = "thinking_new"  # in tokenizer_config.json: which of them were added


def with_thinking(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer with all eight as special tokens; UserError where one is not one id in a text."""
    known = tokenizer.get_vocab()
    new = [token for token in THINKING if token not in known]
    tokens = [AddedToken(token, special=True, normalized=False) for token in THINKING]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.init_kwargs[NEW] = [*tokenizer.init_kwargs.get(NEW, ()), *new]
    for token in THINKING:
        ids = tokenizer(token, add_special_tokens=False).input_ids
        if ids != [tokenizer.convert_tokens_to_ids(token)]:
            raise UserError(
                f"data.tokenizer.thinking=true: this tokenizer writes {token} as {len(ids)} tokens, not one; "
                "use data.tokenizer.path=ANOTHER"
            )
    return tokenizer


def forget_new(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer of a model that has trained rows for all its tokens."""
    tokenizer.init_kwargs.pop(NEW, None)
    return tokenizer


def new_rows(tokenizer: PreTrainedTokenizerFast) -> dict[int, tuple[int, ...]]:
    """Id of each thinking token that was added -> ids of its word's pieces, without unknown ones."""
    starts = {}
    for token in tokenizer.init_kwargs.get(NEW, ()):
        pieces = tokenizer(token.strip("</>"), add_special_tokens=False).input_ids
        known = tuple(piece for piece in pieces if piece != tokenizer.unk_token_id)
        starts[tokenizer.convert_tokens_to_ids(token)] = known
    return starts


def thinking_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The eight ids in the order of THINKING; none where the tokenizer lacks one as a special token."""
    added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(added[token] for token in THINKING) if added.keys() >= set(THINKING) else ()


def plain_ids(tokenizer: PreTrainedTokenizerFast, ids: Iterable[int]) -> list[int]:
    """The ids without special tokens, but for thinking tokens."""
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = (special | set(tokenizer.all_special_ids)).difference(thinking_ids(tokenizer))
    return [id for id in ids if id not in special]
