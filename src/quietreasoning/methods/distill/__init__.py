"""A student of a teacher: divergence, spans of the gold text, layers, and the student's own text."""

from quietreasoning.methods.distill.method import Distill

__all__ = ["Distill"]
