"""Quiet Reasoning: train, prove and serve language models that think without saying it."""

__version__ = "0.1.0"
