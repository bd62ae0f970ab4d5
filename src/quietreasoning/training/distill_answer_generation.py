"""`python -m quietreasoning.training.distill_answer_generation`: Answers after a tool's result."""

from quietreasoning.training._shim import run

# Its rows have no teacher and no calls to learn, whatever a file of weights says.
ABSENT = ("kd", "tool_name", "arg_key", "arg_value", "syntax")
SETTINGS = (*(f"method.weights.{name}=0" for name in ABSENT), "method.divergence.temperature=1")
WITH_DATA = ("data.tokenizer.train=bpe", "data.too_long=drop")  # the small recipe knows its own words alone

if __name__ == "__main__":
    run("distill/answer-tiny", "Answers after a tool's result.", settings=SETTINGS, with_data=WITH_DATA)
