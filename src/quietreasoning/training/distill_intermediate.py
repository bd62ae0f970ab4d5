"""`python -m quietreasoning.training.distill_intermediate`: gone, and says where."""

from quietreasoning.config import UserError
from quietreasoning.training._shim import refuse

POINTER = (
    "Matching hidden states is a term of distillation: set method.weights.hidden and method.hidden, or "
    "use_intermediate_layers and intermediate_layer_weight in an old file, and run "
    "python -m quietreasoning.training.distill_kd"
)

if __name__ == "__main__":
    refuse(UserError(POINTER))
