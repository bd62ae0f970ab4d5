"""The Quiet Reasoning language model: a Llama-shaped trunk, a latent workspace, and what that steers.

Importing this room registers the model with transformers, so that AutoModelForCausalLM.from_pretrained
loads its folders like any other.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from quietreasoning.workspace.causal_lm import WorkspaceForCausalLM
from quietreasoning.workspace.config import FEATURES, WorkspaceConfig
from quietreasoning.workspace.model import WorkspaceModel
from quietreasoning.workspace.trace import Trace

AutoConfig.register(WorkspaceConfig.model_type, WorkspaceConfig, exist_ok=True)
AutoModel.register(WorkspaceConfig, WorkspaceModel, exist_ok=True)
AutoModelForCausalLM.register(WorkspaceConfig, WorkspaceForCausalLM, exist_ok=True)

__all__ = ["FEATURES", "Trace", "WorkspaceConfig", "WorkspaceForCausalLM", "WorkspaceModel"]
