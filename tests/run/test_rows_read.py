"""A run draws the rows that its steps read, however many the split has."""

from quietreasoning.build import resolve
from quietreasoning.data.tasks.base import GeneratedTask
from quietreasoning.run import train_run

SMALL = ["backbone.scratch={layers: 1, width: 16, heads: 2, context: 128}", "data.tokenizer.examples=20"]
SMALL += ["train.batch_size=4", "train.steps=3", "train.eval_every=0", "track.console=false"]


def test_a_large_split_is_not_rendered_before_the_first_step(tmp_path, monkeypatch):
    drawn, example = [], GeneratedTask.example

    def noted(self, split, i):
        drawn.append((split, i))
        return example(self, split, i)

    monkeypatch.setattr(GeneratedTask, "example", noted)
    train_run(resolve("plain/pointer", [*SMALL, "data.train=5000"], str(tmp_path / "run")), doctor=False)
    trained = {i for split, i in drawn if split == "train"}
    assert 12 <= len(trained) <= 12 + 20  # the steps' and the tokenizer's
