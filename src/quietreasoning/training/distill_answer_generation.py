"""`python -m quietreasoning.training.distill_answer_generation`: Answers after a tool's result."""

from quietreasoning.training._shim import run

if __name__ == "__main__":
    run("distill/answer-tiny", "Answers after a tool's result.")
