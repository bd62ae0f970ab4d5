"""`python -m quietreasoning.training.distill_kd`: Knowledge distillation with every term."""

from quietreasoning.training._shim import run

if __name__ == "__main__":
    run("distill/kd-tiny", "Knowledge distillation with every term.")
