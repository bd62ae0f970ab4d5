"""Events written as a text goes by: the tokens between two surprises, under the mean of their states.

Shapes: R streams, T tokens, D width of the states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from quietreasoning.memory.episodic import EpisodicStore, Written
from quietreasoning.memory.journal import Entry
from quietreasoning.memory.surprise import SurpriseBoundaries


@dataclass
class _Open:
    """The event that a stream is in."""

    tokens: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)  # [*, D] float32 on the CPU


class EventWriter:
    """Cuts R streams into events and writes each when the next begins.

    decode turns token ids into text. keep_states stores the states of every token too, in float16, for
    attention over what is retrieved; the vector of an event is their mean either way.
    """

    def __init__(
        self,
        store: EpisodicStore,
        boundaries: SurpriseBoundaries,
        decode: Callable[[Sequence[int]], str],
        *,
        source: str = "",
        keep_states: bool = False,
    ):
        self.store, self.boundaries, self.decode = store, boundaries, decode
        self.source, self.keep_states = source, keep_states
        self._open = [_Open() for _ in range(boundaries.streams)]
        self._closed: list[Entry] = []

    @torch.no_grad()
    def observe(
        self, tokens_RT: Tensor, states_RTD: Tensor, surprise_RT: Tensor, valid_RT: Tensor | None = None
    ) -> list[Written]:
        """Take in what was read: states of the last layer at these tokens, and how surprising each token was.

        Returns what was written, by stream. Tokens that are not valid do not exist.
        """
        if valid_RT is None:
            valid_RT = torch.ones_like(tokens_RT, dtype=torch.bool)
        begins_RT = self.boundaries.observe(surprise_RT, valid_RT)
        for row, event in enumerate(self._open):
            kept_T = valid_RT[row].cpu().bool()
            tokens, states_TD = tokens_RT[row].cpu()[kept_T], states_RTD[row].float().cpu()[kept_T]
            edges = [0, *begins_RT[row][kept_T].nonzero()[:, 0].tolist(), len(tokens)]
            for number, (start, end) in enumerate(pairwise(edges)):
                if number:
                    self._close(row)
                    event = self._open[row]
                event.tokens += tokens[start:end].tolist()
                event.states.append(states_TD[start:end])
        return self._write()

    def finish(self, row: int) -> list[Written]:
        """The stream has ended: write its last event and begin it anew."""
        self._close(row)
        self.boundaries.reset(slice(row, row + 1))
        return self._write()

    def _close(self, row: int) -> None:
        event, self._open[row] = self._open[row], _Open()
        if event.tokens:
            states_TD = torch.cat(event.states)
            kept_TD = states_TD.half().numpy() if self.keep_states else None
            text, tokens = self.decode(event.tokens), tuple(event.tokens)
            vector_D = event_vector(states_TD).numpy()
            self._closed.append(Entry(vector_D, text, tokens, self.source, states_TD=kept_TD))

    def _write(self) -> list[Written]:
        """What cannot be written now is tried again with the next."""
        written = self.store.write_many(self._closed)
        self._closed = []
        return written


def event_vector(states_TD: Tensor) -> Tensor:
    """What an event stands under and a query is made by: the mean of the states at length 1, [D] float32."""
    return torch.nn.functional.normalize(states_TD.float().mean(0), dim=-1)
