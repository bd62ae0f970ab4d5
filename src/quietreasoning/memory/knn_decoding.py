"""kNN-LM while a model reads or writes: as a logits processor, at the head of a model, and over given texts.

All three take the query from the model's own last forward, and mix by `KNNLM.mixed`.
Shapes: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from quietreasoning.config import UserError
from quietreasoning.memory.ffn_input import joined, watch_ffn
from quietreasoning.memory.knn_lm import KNNLM


class KNNLogits(LogitsProcessor):
    """For one call of `generate` with this model, greedy or sampling:

        with knn_logits(model, knn) as processor:
            model.generate(ids, logits_processor=[processor])

    stop: ids after which a row is over and costs no look-up. Beams are refused: their rows change places, and
    the budget of an answer with them.
    """

    def __init__(self, knn: KNNLM, seen: list[Tensor], stop: Sequence[int] = ()):
        self.knn, self.seen, self.stop = knn, seen, torch.tensor(list(stop))
        self.spent: list[int] = []
        self.begun: Tensor | None = None  # ids of the call before
        self.prompt = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] of the next token behind input_ids [B, T]."""
        if self.begun is None or input_ids.shape[1] != self.begun.shape[1] + 1:
            self.spent, self.prompt = [0] * len(input_ids), input_ids.shape[1]
        elif not torch.equal(input_ids[:, :-1], self.begun):
            raise UserError(
                "num_beams: kNN-LM keeps a budget for each row and takes no beams; use num_beams=1"
            )
        self.begun = input_ids
        if not self.seen:
            raise UserError(
                "no forward of the model came before these scores; give generate the model itself"
            )
        query_BD = self.seen[-1][:, -1]
        self.seen.clear()
        if len(query_BD) != len(scores):
            raise UserError(
                f"{len(query_BD)} states for {len(scores)} rows of scores: kNN-LM goes with plain generate"
            )
        written_BN = input_ids[:, self.prompt :]
        over_B = torch.isin(written_BN, self.stop.to(written_BN.device)).any(1)
        return self.knn.mixed(scores, query_BD, self.spent, (~over_B).tolist())


@contextmanager
def knn_logits(model: nn.Module, knn: KNNLM, stop: Sequence[int] | None = None) -> Iterator[KNNLogits]:
    """A processor that sees this model's states inside the block. stop: by default its end of sequence.

    Prompts are padded on the left, as `generate` wants it; UserError for a family without such states.
    """
    if stop is None:
        end = model.generation_config.eos_token_id
        stop = [] if end is None else [end] if isinstance(end, int) else list(end)
    with watch_ffn(model) as seen:
        yield KNNLogits(knn, seen, stop)


@contextmanager
def at_head(model: nn.Module, knn: KNNLM) -> Iterator[Head]:
    """Inside the block the model's head gives the mixture for the last position of each forward.

    For whatever decodes with the model token by token and reads the head at its newest state, in whatever
    cache: `Backbone` and `Writer` among others. `Head.begin` starts new answers. A row that is over goes on
    asking until its budget is spent, which costs time and changes nothing.
    """
    head = Head(knn)
    hooks = [
        model.get_decoder().register_forward_hook(head.after_forward),
        model.get_output_embeddings().register_forward_hook(head.at_logits),
    ]
    with watch_ffn(model) as head.seen:
        try:
            yield head
        finally:
            for hook in hooks:
                hook.remove()


class Head:
    """The mixture where hidden states become logits; budgets of the rows that are being written."""

    def __init__(self, knn: KNNLM):
        self.knn = knn
        self.seen: list[Tensor] = []
        self.spent: list[int] | None = None
        self.newest: tuple[Tensor, Tensor] | None = (
            None  # what the head will read [B, D], and the query [B, D]
        )

    def begin(self) -> None:
        """New answers: nothing is spent."""
        self.spent = None

    def after_forward(self, base: nn.Module, args: tuple, output) -> None:
        query_BD = self.seen[-1][:, -1]
        self.seen.clear()
        self.newest = output[0][:, -1].detach(), query_BD

    def at_logits(self, head: nn.Module, args: tuple, logits: Tensor) -> Tensor:
        hidden_BD = args[0] if args[0].dim() == 2 else args[0][:, -1]
        if self.newest is None or not torch.equal(hidden_BD.detach(), self.newest[0].to(hidden_BD)):
            raise UserError(
                "the head reads other states than the model's last; kNN-LM mixes at the newest token"
            )
        if self.spent is None or len(self.spent) != len(hidden_BD):
            self.spent = [0] * len(hidden_BD)
        last_BV = logits if logits.dim() == 2 else logits[:, -1]
        mixed_BV = self.knn.mixed(last_BV, self.newest[1], self.spent, [True] * len(last_BV))
        if logits.dim() == 2:
            return mixed_BV
        return torch.cat([logits[:, :-1], mixed_BV[:, None]], 1)


@torch.no_grad()
def score(model: nn.Module, knn: KNNLM, ids_T: Tensor, answer_from: int) -> Tensor:
    """log p [A] of the tokens of an answer, ids_T[answer_from:], as generation would have given them.

    Look-ups are counted from the answer's first token on, and end with the budget, as when it is written.
    """
    with watch_ffn(model) as seen:
        logits_TV = model(ids_T[None], use_cache=False).logits[0]
    query_TD = joined(seen, 1, len(ids_T))[0]
    spent, found = [0], []
    for t in range(answer_from, len(ids_T)):
        mixed_1V = knn.mixed(logits_TV[t - 1][None], query_TD[t - 1][None], spent, [True])
        found.append(mixed_1V[0].float().log_softmax(-1)[ids_T[t]])
    return torch.stack(found)
