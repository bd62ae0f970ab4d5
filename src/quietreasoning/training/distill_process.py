"""`python -m quietreasoning.training.distill_process`: calls by their grammar, tools by their names."""

from quietreasoning.training._shim import run

if __name__ == "__main__":
    run("distill/process-tiny", "Process supervision: calls by their grammar, tools by their names.")
