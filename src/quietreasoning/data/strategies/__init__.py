"""Eight ways to think: how each is written, how it is judged, and the prompts that ask for them.

`forms` has names and tags, `validators` judge a written thought, `prompts` are what a teacher reads,
`overlap` finds evaluation questions in training text. The problems stand with the task `strategies`.
"""
