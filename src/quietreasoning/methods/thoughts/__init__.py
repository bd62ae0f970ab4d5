"""Hidden thoughts of tokens before hard words: Quiet-STaR."""

from quietreasoning.methods.thoughts.method import Thinker

__all__ = ["Thinker"]
