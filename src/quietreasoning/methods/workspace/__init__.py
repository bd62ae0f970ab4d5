"""The workspace family: train and run a Quiet Reasoning language model."""

from quietreasoning.methods.workspace.method import Workspace

__all__ = ["Workspace"]
