"""Answer at once, from what lies outside the weights as well."""

from quietreasoning.methods.recall.method import Recall

__all__ = ["Recall"]
