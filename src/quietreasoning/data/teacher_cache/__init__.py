"""What a teacher says at every learned position, kept on disk: a few likely tokens and what is left.

`keys` names rows, `targets` cuts a distribution down to what is kept, `header` says what a folder was made
with, `shards` writes and lists its files, `work` fills it, `reading` gives targets back to a trainer.
"""
