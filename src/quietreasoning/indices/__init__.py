"""`quiet index`: the files that a model reads beyond its weights, made and checked.

Every command takes and gives plain values; what it returns is what `--json` writes.
"""
