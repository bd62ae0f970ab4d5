"""`quiet data teacher` with a tiny model: what is stored is what the model says there, however it is run."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from quietreasoning.backbone import BackboneConfig, load_backbone, role_of
from quietreasoning.capture import Request, capture, lay_out, load_rows
from quietreasoning.cli.main import app
from quietreasoning.config import UserError
from quietreasoning.contract import Role
from quietreasoning.data.config import DataConfig, Format, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.teacher_cache.forward import Reader
from quietreasoning.data.teacher_cache.keys import predicting
from quietreasoning.data.teacher_cache.reading import TeacherCache
from quietreasoning.data.teacher_cache.targets import Keep
from quietreasoning.data.tokenizers import load_tokenizer
from quietreasoning.methods.cot import ChainOfThought
from quietreasoning.methods.sequence import visible_part
from quietreasoning.run import resolve, train_run

KEEP = Keep(8, temperatures=(1.0, 2.0))


@pytest.fixture(scope="module")
def teacher(smollm3, sums):
    """The model, as this toolkit and as transformers load it; its tokenizer, examples and their rows."""
    tokenizer = load_tokenizer(str(smollm3))
    encoder = Encoder(tokenizer, context=256)
    data = DataConfig(task="gsm8k", path=str(sums))
    backbone = load_backbone(BackboneConfig(path=str(smollm3), tune="frozen"), len(tokenizer)).eval()
    return SimpleNamespace(
        tokenizer=tokenizer,
        encoder=encoder,
        backbone=backbone,
        plain=AutoModelForCausalLM.from_pretrained(smollm3).eval(),
        examples=list(build_task(data).split("train")),
        rows=load_rows(data, encoder, "train", lambda: None)[0],
    )


@pytest.fixture(scope="module")
def take(smollm3, sums, tmp_path_factory):
    """`take(keep=..., out=...)`: a capture, into a new folder unless one is named."""

    def make(rank=0, ranks=1, **wishes):
        request = {"model": str(smollm3), "dataset": "gsm8k", "settings": (f"path={sums}",), "keep": KEEP}
        request |= {"dtype": "float32", "rows_per_shard": 10} | wishes
        request.setdefault("out", tmp_path_factory.mktemp("cache") / "c")
        return SimpleNamespace(
            folder=request["out"], told=capture(Request(**request), rank=rank, ranks=ranks)
        )

    return make


@pytest.fixture(scope="module")
def whole(take):
    return take()


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("shard-*")}


@torch.no_grad()
def said(teacher, read, learned):
    """What plain transformers says, of one text alone: log p of the token after each learned position."""
    logits_TV = teacher.plain(torch.from_numpy(read)[None].long()).logits[0].float()
    return logits_TV.log_softmax(-1)[np.flatnonzero(learned) + len(read) - len(learned)]


def agrees(teacher, rows, targets):
    """Whether targets of width 8 are what the model says at the learned positions of rows."""
    reference_NV = torch.cat([said(teacher, row.read, row.learned) for row in rows])
    ids_NK = torch.from_numpy(np.concatenate([t.ids for t in targets]).astype(np.int64)).reshape(-1, 8)
    logps_NK = torch.from_numpy(np.concatenate([t.logps for t in targets]).astype(np.float32)).reshape(-1, 8)
    return torch.allclose(logps_NK, reference_NV.gather(1, ids_NK), rtol=2**-10, atol=1e-3)


class Shifted:
    """A teacher whose states stand one place too late, or too early."""

    def __init__(self, backbone, by):
        self.backbone, self.by = backbone, by
        self.parameters, self.logits = backbone.parameters, backbone.logits

    def __call__(self, ids_BT, role_BT):
        return SimpleNamespace(hidden_BTD=self.backbone(ids_BT, role_BT).hidden_BTD.roll(self.by, 1))


def test_the_target_at_a_position_predicts_the_next_token(teacher):
    """Against plain transformers, a row at a time; one place off is found out, either way."""
    rows, size = teacher.rows[:5], len(teacher.tokenizer)
    assert agrees(teacher, rows, Reader(teacher.backbone, size, Keep(8))(rows))
    for by in (1, -1):
        assert not agrees(teacher, rows, Reader(Shifted(teacher.backbone, by), size, Keep(8))(rows))


def test_a_trainer_finds_the_targets_of_its_labels_in_their_order(teacher, whole):
    """A padded batch as method cot lays it out; and the teacher's cost of the labels is cot's loss."""
    cached = TeacherCache.open(whole.folder, tokenizer=teacher.tokenizer)
    batch = teacher.encoder.batch(teacher.examples[:6])
    visible = visible_part(batch, teacher.encoder.markers(), 0)
    ids_BT = torch.cat([batch.prompt_BP, visible.ids_BT], 1)
    labels_BT = torch.cat([torch.full_like(batch.prompt_BP, -100), visible.labels_BT], 1)
    learned_BT = predicting(labels_BT != -100)
    taught = cached.look_up(ids_BT, learned_BT)
    with torch.no_grad():
        hidden_BTD = teacher.backbone(ids_BT, role_of(ids_BT, Role.PROMPT)).hidden_BTD
        logp_NV = teacher.backbone.logits(hidden_BTD[learned_BT]).log_softmax(-1)
        cot = ChainOfThought(teacher.backbone, ChainOfThought.Config(), teacher.encoder.markers())
        loss = cot(teacher.encoder.batch(teacher.examples)).terms["answer"].total
    torch.testing.assert_close(taught.logps_NK, logp_NV.gather(1, taught.ids_NK), rtol=2**-10, atol=3e-3)
    assert len(teacher.rows) == len(teacher.examples) == whole.told["rows"]  # none stands there twice
    assert whole.told["nats_per_token"] == pytest.approx(loss.item() / whole.told["positions"], abs=1e-3)


def test_neither_batches_nor_ranks_change_what_is_stored(teacher, take, whole):
    keys = [row.key for row in teacher.rows]
    one = take(batch_size=1)
    for temperature in (1.0, 2.0):
        found = [
            TeacherCache.open(f.folder, tokenizer=teacher.tokenizer, temperature=temperature).rows(keys)
            for f in (whole, one)
        ]
        assert torch.equal(found[0].ids_NK, found[1].ids_NK)
        torch.testing.assert_close(found[0].logps_NK, found[1].logps_NK, rtol=2**-10, atol=2**-10)
    part = take(rank=1, ranks=2)
    assert part.told["rows"] < part.told["rows_asked"] == 33
    with pytest.raises(UserError, match="2 of its 4 shards are missing, the first is shard 0"):
        TeacherCache.open(part.folder, tokenizer=teacher.tokenizer)
    assert take(rank=0, ranks=2, out=part.folder).told["rows"] == 33
    assert shards(part.folder) == shards(whole.folder)


def test_ids_that_are_no_tokens_get_nothing(teacher):
    """Rows of the head to a round number."""
    size = len(teacher.tokenizer) - 10
    (targets,) = Reader(teacher.backbone, size, Keep(10_000))(teacher.rows[:1])
    assert targets.ids.max() == size - 1 and (targets.counts == size).all()
    assert targets.mass == pytest.approx(len(targets.counts)) and (targets.rest == -np.inf).all()


def test_a_teacher_may_read_an_instruction_that_the_row_lacks(teacher):
    encoder = Encoder(teacher.tokenizer, Format(instruction="Ann is a nut. "), context=256)
    rows = lay_out(encoder, teacher.examples[:3])
    assert [row.key for row in rows] == [row.key for row in teacher.rows[:3]]
    assert all(len(row.read) > len(row.ids) for row in rows)
    assert agrees(teacher, rows, Reader(teacher.backbone, len(teacher.tokenizer), Keep(8))(rows))


def test_of_running_text_all_tokens_but_the_first_are_predicted(teacher):
    windows = [
        Example(id=str(n), prompt="", steps=(), results=(), answer="", ids=range(3, 3 + n)) for n in (1, 5)
    ]
    (row,) = lay_out(teacher.encoder, windows, text=True)
    assert row.ids.tolist() == [3, 4, 5, 6, 7] and row.learned.tolist() == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"keep": Keep(9, temperatures=(1.0, 2.0))}, r"keep\.k: 8 -> 9"),
        ({"keep": Keep(8)}, r"keep\.temperatures"),
        ({"dtype": "bfloat16"}, "dtype: 'float32' -> 'bfloat16'"),
        ({"rows_per_shard": 5}, "rows_per_shard: 10 -> 5"),
        ({"more": ("data.train=20",)}, r"data\.rows: 33 -> 20.*data\.fingerprint"),
        ({"more": ("format.answer_prefix=A",)}, r"data\.format\.answer_prefix: '####' -> 'A'"),
        ({"recipe": "cot/gsm8k"}, "--recipe and --dataset both name the rows; drop one"),
        ({"stage": "main"}, "--stage main has no effect without --recipe"),
        ({"split": "test"}, "--split test: choices are train and valid"),
        ({"dtype": "int8"}, "--dtype int8: choices are float32 and bfloat16"),
        ({"dataset": "gsm9k"}, "--dataset gsm9k: no such data set. Did you mean 'gsm8k'"),
        ({"dataset": None}, "Give --recipe RECIPE or --dataset NAME"),
    ],
)
def test_what_would_change_a_target_or_cannot_be_met_is_refused(take, sums, whole, wishes, message):
    before = shards(whole.folder)
    wishes = {"settings": (f"path={sums}", *wishes.get("more", ()))} | wishes
    wishes.pop("more", None)
    with pytest.raises(UserError, match=message) as caught:
        take(out=whole.folder, **wishes)
    assert "\n" not in str(caught.value) and shards(whole.folder) == before


def quiet(*arguments, code=0):
    done = CliRunner().invoke(app, ["data", "teacher", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def test_a_run_as_the_teacher_of_a_recipe(tmp_path):
    run, out = tmp_path / "run", tmp_path / "cache"
    tiny = ["backbone.scratch={layers: 1, width: 16, heads: 1, context: 96}", "train.steps=1", "eval.n=2"]
    tiny += ["train.batch_size=2", "data.train=24", "data.valid=4", "data.test=4"]
    train_run(resolve("cot/pointer", tiny, out=str(run)), doctor=False)
    student = ["--recipe", "cot/pointer", "--out", out, "data.train=20", "data.tokenizer.train=null"]
    student.append(f"data.tokenizer.path={run}/tokenizer")
    told = quiet(run, *student, "--coverage", "0.5", "--json", tmp_path / "told.json")
    figures = json.loads((tmp_path / "told.json").read_text())
    assert figures["rows"] == 20 and 0.5 <= figures["kept_mass"] < 0.6 and "20/20" in told
    cached = TeacherCache.open(out, tokenizer=load_tokenizer(f"{run}/tokenizer"))
    assert len(cached) == 20 and len(cached.identity["sha256"]) == 64 and cached.identity["path"] == str(run)
    told = quiet(run, *student, "--draws", "12", code=2)
    assert "keep.draws: None -> 12" in told and "--no-auto-resume" in told
    told = quiet(run, *student, "--draws", "12", "--no-auto-resume")
    assert f"is now in {out}.before-1" in told
    other = ["--recipe", "cot/pointer", "data.options.nodes=5", "data.tokenizer.train=bpe", "--out", out]
    assert "a teacher can only read its own ids. Set data.tokenizer.path" in quiet(run, *other, code=2)
    assert "holds float32 and is read so" in quiet(run, *student, "--dtype", "bfloat16", code=2)
