"""What cannot be done is refused in one line with the cure, before anything is written."""

import json

import pytest

from quietreasoning.config import UserError
from quietreasoning.data.made import move_aside
from quietreasoning.data.pairs.folder import PAIRS, kept_rows, read_rows
from quietreasoning.data.pairs.shards import PairStates, writing
from quietreasoning.harvest import Request, harvest, identity_of


@pytest.fixture
def ask(run, tmp_path):
    return lambda **wishes: harvest(
        Request(**{"model": str(run), "out": tmp_path / "p", "max_new_tokens": 16, "num_samples": 3} | wishes)
    )


@pytest.fixture
def copy(whole, tmp_path):
    """A folder of pairs that may be broken."""
    for path in whole.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"keep": "some"}, "--keep some: choices are correct and all"),
        ({"target": "end"}, "--target end: choices are close and pre_answer"),
        ({"dtype": "int8"}, "--dtype int8: choices are float32"),
        ({"temperature": -1.0}, "must not be negative"),
        ({"stop_at_close": True}, "give --keep all with it"),
        ({"stop_at_close": True, "keep": "all", "target": "pre_answer"}, "--target pre_answer has no place"),
        ({"samples_per_problem": 2}, "all samples are the same. Give --temperature 0.7"),
        ({"layers": "9"}, "2 blocks. Choices: 0 to 2"),
        ({"layers": "1,1"}, "name each once"),
        ({"dataset": "pointre"}, "no such data set. Did you mean 'pointer'"),
        ({"dataset": "pairs"}, "no such data set"),
        ({"dataset": "pointer,pointer"}, "name each data set once"),
        ({"dataset": "gsm8k"}, "reads files: give --path gsm8k=FOLDER"),
        ({"settings": ("arithmetic.counts=2",)}, "names of --dataset: pointer"),
        ({"settings": ("pointer.nods=6",)}, "nods"),
        ({"paths": ("x",)}, "say whose it is, as NAME=FOLDER"),
        (
            {"split": "test"},
            "its split 'test' is for evaluation alone. Take --split train, or say --allow-test",
        ),
        ({"split": "dev"}, "no split 'dev'"),
        ({"system": "x"}, "--system has no effect on a run"),
        ({"max_new_tokens": 96}, "no problem leaves so much room in the model's context of 96"),
    ],
)
def test_wishes_that_cannot_be_met(ask, tmp_path, wishes, message):
    with pytest.raises(UserError) as caught:
        ask(**wishes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not any((tmp_path / "p").glob("*.json"))


def test_official_test_sets_are_refused_unless_allowed_and_that_is_written_down(chat, tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"problem": "what is 1", "answer": "1"}) + "\n")
    request = {"model": str(chat), "out": tmp_path / "p", "dataset": "aime", "paths": (str(tmp_path),)}
    request |= {"max_new_tokens": 8, "instruction": "", "dtype": "float32"}
    with pytest.raises(UserError, match=r"aime: its split 'test' .* It has no other; leave it out"):
        harvest(Request(**request))
    harvest(Request(**request, allow_test=True))
    settings = json.loads((tmp_path / "p" / "pairs.json").read_text())["settings"]
    assert settings["allow_test"] is True and settings["datasets"]["aime"]["split"] == "test"


@pytest.mark.parametrize(
    ("wishes", "change"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"temperature": 0.5}, "temperature: 1.2 -> 0.5"),
        ({"max_new_tokens": 25}, "max_new_tokens: 24 -> 25"),
        ({"layers": "1"}, "layers: ['last'] -> [1]"),
        ({"dtype": "bfloat16"}, "dtype: 'float32' -> 'bfloat16'"),
        ({"keep": "correct"}, "keep: 'all' -> 'correct'"),
        ({"split": "valid"}, "datasets.pointer.split: 'train' -> 'valid'"),
        ({"settings": ("pointer.hops=2",)}, "datasets.pointer.options"),
        ({"dataset": "permutation"}, "datasets.pointer.task: 'pointer' -> absent"),
    ],
)
def test_another_configuration_is_refused_with_what_differs_and_the_cure(
    roll, copy, contents, wishes, change
):
    before = contents(copy)
    with pytest.raises(UserError) as caught:
        roll(out=copy, **wishes)
    line = str(caught.value)
    assert change in line and "give another --out, or --no-auto-resume" in line
    assert contents(copy) == before


def test_another_model_is_another_configuration(copy, chat, roll):
    with pytest.raises(UserError, match=r"model\.sha256"):
        roll(out=copy, model=str(chat), dataset="pointer", dtype="float32")


def test_batch_size_shard_size_and_place_may_change(roll, copy, whole, contents):
    roll(out=copy, batch_size=9, checkpoint_every=3)
    assert contents(copy) == contents(whole.folder)


def test_starting_anew_moves_what_is_there_aside_and_deletes_nothing(copy, whole, contents, tmp_path):
    folder = tmp_path.parent / "moved"
    tmp_path.rename(folder)
    first = move_aside(folder)
    assert (
        not folder.exists() and first.name == "moved.before-1" and contents(first) == contents(whole.folder)
    )
    assert move_aside(folder) is None
    folder.mkdir()
    assert move_aside(folder) is None, "nothing to move"
    (folder / "x").write_text("x")
    assert move_aside(folder).name == "moved.before-2"


def test_two_commands_do_not_write_as_the_same_rank(tmp_path):
    with writing(tmp_path, 0, 1):
        with pytest.raises(UserError, match="another quiet data pairs writes here as rank 0 of 1"):
            with writing(tmp_path, 0, 1):
                pass
        with writing(tmp_path, 1, 2):
            pass
    with writing(tmp_path, 0, 1):
        pass


# Models


def test_a_model_without_a_thinking_template_is_refused(chat_folder, tmp_path):
    folder = chat_folder()
    request = {"model": str(folder), "out": tmp_path / "p", "dtype": "float32", "dataset": "pointer"}
    with pytest.raises(
        UserError, match=r"says nothing of '</x>'; it does not think aloud. .*--open and --close"
    ):
        harvest(Request(**request, closed="</x>"))
    template = folder / "chat_template.jinja"
    kept = template.read_text()
    template.write_text(kept.replace("{% if not enable_thinking %}", "{% if enable_thinking %}"))
    with pytest.raises(UserError, match="closes the thinking itself"):
        harvest(Request(**request))
    template.write_text(kept.replace("'%d %B %Y'", "'%d' + ' %B'"))
    with pytest.raises(UserError, match="asks the clock in a way that cannot be pinned"):
        harvest(Request(**request))
    template.unlink()
    with pytest.raises(UserError, match=r"has no chat template, so nobody can ask it to think. Give a model"):
        harvest(Request(**request))
    template.write_text(kept + "{# <mull> </mull> #}")
    with pytest.raises(UserError, match="its tokenizer has no tokens for '<mull>'"):
        harvest(Request(**request, opened="<mull>", closed="</mull>"))
    with pytest.raises(UserError, match="--date yesterday: must be a day, such as"):
        harvest(Request(**request, date="yesterday"))


def test_a_run_of_another_method_is_refused(tmp_path):
    from quietreasoning.run import resolve, train_run

    tiny = ["backbone.scratch={layers: 1, width: 16, heads: 1, context: 64}", "train.steps=1"]
    tiny += ["train.batch_size=2", "data.train=8", "data.valid=4", "data.test=4", "eval.n=2"]
    train_run(resolve("plain/pointer", tiny, out=str(tmp_path / "direct")), doctor=False)
    with pytest.raises(
        UserError, match=r"of method plain, which writes no chain .* Give a run of method cot"
    ):
        harvest(Request(model=str(tmp_path / "direct"), out=tmp_path / "p"))


# Folders


def test_states_of_another_model_or_layer_are_refused(whole, run, chat):
    identity = identity_of(str(run))
    assert (
        PairStates(whole.folder, identity=identity, layers=("last",)).identity["sha256"] == identity["sha256"]
    )
    with pytest.raises(UserError, match=r"not of .* their weights differ. Open it with that model, or make"):
        PairStates(whole.folder, identity=identity_of(str(chat)))
    with pytest.raises(
        UserError, match=r"holds states of layers last, not 1. .*--layers 1 in another folder"
    ):
        PairStates(whole.folder, layers=(1,))


def test_nothing_kept_nothing_done_and_no_folder_are_told_apart(roll, tmp_path):
    with pytest.raises(UserError, match=r"no folder of pairs: it has no pairs.json"):
        PairStates(tmp_path)
    folder = roll(keep="correct", num_samples=4).folder
    with pytest.raises(UserError, match=r"none of its 4 rollouts was kept \(.*wrong.*--keep all"):
        PairStates(folder)
    PAIRS.settle(tmp_path / "new", {"layers": []}, {"model": {}})
    with pytest.raises(UserError, match=r"holds no rollouts yet. Run quiet data pairs to its end"):
        kept_rows(tmp_path / "new")


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_list_is_named_and_made_again_once_deleted(copy, roll, whole, contents):
    path = sorted(copy.glob("shard-*.safetensors"))[0].with_suffix(".json")
    damage(path)
    with pytest.raises(UserError, match=rf"{path.stem} is damaged.*Delete its two files and run the same"):
        read_rows(copy)
    with pytest.raises(UserError, match="is damaged"):
        roll(out=copy)
    path.unlink()
    path.with_suffix(".safetensors").unlink()
    roll(out=copy)
    assert contents(copy) == contents(whole.folder)


def test_damaged_or_missing_tensors_are_refused(copy):
    path = sorted(copy.glob("*.safetensors"))[0]
    key = next(row["key"] for row in read_rows(copy) if row["shard"] == path.stem and row["kept"])
    damage(path)
    with pytest.raises(UserError, match=f"{path.stem} is damaged"):
        PairStates(copy).post(key, "last")
    path.unlink()
    with pytest.raises(UserError, match=f"{path.stem} is damaged"):
        PairStates(copy)


def test_damaged_settings_are_refused(copy, roll):
    (copy / "pairs.json").write_text("{")
    with pytest.raises(UserError, match=r"pairs.json is damaged"):
        roll(out=copy)
    (copy / "pairs.json").unlink()
    with pytest.raises(UserError, match=r"holds shards without pairs.json"):
        roll(out=copy)


def test_a_full_disk_is_one_line_and_costs_only_the_open_shard(copy, tmp_path, monkeypatch, roll, contents):
    before = contents(copy)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quietreasoning.data.pairs.shards.save_file", full)
    with pytest.raises(UserError, match=r"No space left on device. What was saved before is intact"):
        roll(out=copy, num_samples=40)
    monkeypatch.undo()
    assert contents(copy) == before
