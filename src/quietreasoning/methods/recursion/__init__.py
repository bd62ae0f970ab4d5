"""A tiny recursive reasoner that thinks for a frozen language model."""

from quietreasoning.methods.recursion.method import Recursion

__all__ = ["Recursion"]
