"""`quiet push`: what is staged opens and answers as the run does, and says what was measured."""

import json
import socket
from fnmatch import fnmatch
from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, errors
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from quietreasoning.backbone.compressor_file import read_origin
from quietreasoning.cli.main import app
from quietreasoning.config import UserError
from quietreasoning.data.config import build_task
from quietreasoning.data.tokenizers import load_tokenizer, save_tokenizer
from quietreasoning.evaluate.rows import load
from quietreasoning.push import push, stage
from quietreasoning.run import evaluate_run, open_run, resolve, train_run

REPO = "ada/slots-pointer"
SMALL = ["train.steps=2", "train.batch_size=4", "train.eval_every=0", "eval.n=4", "eval.timing=0"]
SMALL += ["data.train=64", "data.valid=16", "data.test=16", "track.console=false"]
SCRATCH = "backbone.scratch={layers: 1, width: 32, heads: 2, context: 128}"


def quiet(*arguments, code=0):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done.output


def trained(recipe, out, *settings):
    train_run(resolve(recipe, [*SMALL, *settings], str(out)), doctor=False)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Slots whose running averages are far from the last weights, evaluated."""
    out = trained("slots/pointer", tmp_path_factory.mktemp("runs") / "slots", SCRATCH, "optim.ema=0.99")
    evaluate_run(str(out))
    return out


@pytest.fixture(scope="module")
def staged(run, tmp_path_factory):
    return stage(run, REPO, tmp_path_factory.mktemp("staged") / "push", license_id="mit")


@pytest.fixture(scope="module")
def llama(run, tmp_path_factory):
    """A model folder as another tool would leave it."""
    folder = tmp_path_factory.mktemp("models") / "my-llama"
    tokenizer = load_tokenizer(str(run / "tokenizer"))
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def answers(folder):
    """What a run writes to eight prompts, and its weights."""
    loaded = open_run(folder)
    examples = build_task(loaded.config.stages[-1].data).split("test", 8)
    reply = loaded.method.generate(loaded.encoder.prompts(examples), max_new_tokens=8)
    return reply.tokens, loaded.method.state_dict()


def same(run, staged):
    (told, weights), (told_again, weights_again) = answers(run), answers(staged)
    assert weights.keys() == weights_again.keys()
    return told == told_again and all(torch.equal(weights[k], weights_again[k]) for k in weights)


def nowhere(folder, *paths):
    """No file of the folder names one of the paths."""
    for file in folder.rglob("*"):
        for path in paths:
            assert not file.is_file() or str(path).encode() not in file.read_bytes(), f"{path} in {file}"
    return True


class Recording:
    """A hub that takes everything and remembers it."""

    def __init__(self, fault=None):
        self.calls, self.fault = [], fault

    def create_repo(self, repo_id, **how):
        signature(HfApi.create_repo).bind(self, repo_id, **how)
        self.calls.append(("create_repo", repo_id, how))
        return f"https://huggingface.co/{repo_id}"

    def create_branch(self, repo_id, **how):
        signature(HfApi.create_branch).bind(self, repo_id, **how)
        self.calls.append(("create_branch", repo_id, how))

    def upload_folder(self, *, folder_path, **how):
        signature(HfApi.upload_folder).bind(self, folder_path=folder_path, **how)
        if self.fault is not None:
            raise self.fault
        sent = {path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()}
        self.calls.append(("upload_folder", how.pop("repo_id"), how | {"sent": sent}))


def test_the_staged_folder_answers_as_the_run_does(run, staged):
    assert same(run, staged.folder)
    newest = run / staged.checkpoint
    last, sent = (load_file(at / "method.safetensors") for at in (newest, staged.folder / newest.name))
    averages = load_file(newest / "ema.safetensors")
    assert any(not torch.equal(last[name], average) for name, average in averages.items())
    assert all(torch.equal(sent[name], averages.get(name, tensor)) for name, tensor in last.items())


def test_the_staged_folder_is_evaluated_as_the_run_was(run, staged, tmp_path):
    again = stage(staged.folder, REPO, tmp_path / "again").folder  # what was pushed can be pushed
    evaluate_run(str(again))
    before, after = (load(at / "eval" / "rows.json")[0] for at in (run, again))
    own = [name for name in before.outcomes if name.startswith("slots")]
    assert len(own) == 4 and all(before.outcomes[name] == after.outcomes[name] for name in own)


def test_only_what_opens_a_run_is_sent(run, staged):
    step = staged.checkpoint
    assert {name for name, _ in staged.files} == {
        *("README.md", "config.yaml", "run.json", "eval/rows.json"),
        *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
        *(f"{step}/{name}" for name in ("manifest.json", "method.safetensors", "run.json", "state.json")),
    }
    assert (run / step / "optimizer.safetensors").exists() and (run / step / "rank-0.safetensors").exists()
    assert nowhere(staged.folder, run, run.parent, staged.folder.parent)


def test_the_card_says_what_the_evaluation_says(run, staged):
    card, (report,) = ModelCard.load(staged.card), load(run / "eval" / "rows.json")
    (result,) = card.data.eval_results
    own = report.row("slots")
    assert (result.metric_type, result.metric_value) == ("accuracy", own["accuracy"])
    assert f"{own['low']:.4f} to {own['high']:.4f}, n = {own['n']}" in result.metric_name
    assert (result.dataset_name, result.dataset_split) == (report.task, report.split)
    assert card.data.library_name == "quietreasoning" and card.data.license == "mit"
    assert card.data.base_model is None and "slots" in card.data.tags
    lines = [line.split("|") for line in card.text.splitlines() if line.startswith("|")]
    for row in report.rows:
        name = row["method"] if row["control"] is None else f"+ {row['control']}"
        name = name.replace("shortcut", "rule")
        interval = f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        (cells,) = [cells for cells in lines if cells[1].strip() == name and len(cells) == 10]
        assert [cells[i].strip() for i in (3, 4, 5)] == [interval, str(row["correct"]), str(row["n"])]
    assert "No direct answer stands beside" in card.text


def test_folders_of_this_machine_are_cut_to_names(run, tmp_path, monkeypatch):
    rows = "".join(
        json.dumps({"prompt": f"{i % 4} {i // 4 % 4} {i // 16}", "answer": str(i % 4)}) + "\n"
        for i in range(64)
    )
    (tmp_path / "mine.jsonl").write_text(rows)
    own = [f"data.path={tmp_path / 'mine.jsonl'}", "data.task=jsonl", f"eval.baselines=[{run}]"]
    made = trained("plain/pointer", tmp_path / "own", SCRATCH, "data.train=20", "data.valid=8", *own)
    info = json.loads((made / "run.json").read_text())
    (made / "run.json").write_text(json.dumps(info | {"command": f"quiet train --out {made}"}))
    staged = stage(made, REPO, tmp_path / "push")
    assert nowhere(staged.folder, tmp_path, run.parent)
    assert "path: mine.jsonl" in (staged.folder / "config.yaml").read_text()
    assert any("data.path=FILE" in note for note in staged.notes)
    assert evaluate_run(str(staged.folder), [f"data.path={tmp_path / 'mine.jsonl'}"])
    monkeypatch.chdir(tmp_path)
    assert same(made, staged.folder)


def test_without_an_evaluation_the_card_says_so(run, tmp_path):
    older = sorted(run.glob("step-*"))[0]
    staged = stage(older, REPO, tmp_path / "push")
    card = ModelCard.load(staged.card)
    assert "No evaluation yet: run `quiet eval`" in card.text and card.data.eval_results is None
    assert card.data.license is None and "None was chosen" in card.text
    assert open_run(staged.folder).method.config.name == "cot" and same(older, staged.folder)
    assert any("of the newest checkpoint" in note for note in staged.notes)


def test_the_report_goes_along_if_there_is_one(run, tmp_path):
    quiet("report", run)
    try:
        staged = stage(run, REPO, tmp_path / "push")
        assert "report.html" in dict(staged.files) and nowhere(staged.folder, run.parent, tmp_path)
    finally:
        (run / "report.html").unlink()


def test_all_weights_of_a_local_model_are_in_the_checkpoint_and_its_shape_beside(llama, tmp_path):
    settings = [f"backbone.path={llama}", "train.save_every=0"]
    run = trained("plain/pointer", tmp_path / "full", *settings)
    staged = stage(run, REPO)
    assert staged.folder == run / "push" and dict(staged.files).keys() >= {"base/config.json"}
    assert not list((staged.folder / "base").glob("*.safetensors")) and same(run, staged.folder)
    assert nowhere(staged.folder, llama.parent, tmp_path)


@pytest.fixture(scope="module")
def adapted(llama, tmp_path_factory):
    settings = [f"backbone.path={llama}", "backbone.tune=lora", "train.save_every=0"]
    return trained("plain/pointer", tmp_path_factory.mktemp("runs") / "lora", *settings)


def test_borrowed_weights_stay_behind_and_that_is_said(adapted, llama, tmp_path):
    staged = stage(adapted, REPO, tmp_path / "push")
    (note,) = [note for note in staged.notes if "not included" in note]
    assert "backbone.path" in note and "--with-base" in note and nowhere(staged.folder, llama.parent)
    assert "my-llama" in staged.card.read_text() and not (staged.folder / "base").exists()
    with pytest.raises(UserError, match=r"push/base: "):
        open_run(staged.folder)
    (staged.folder / "base").symlink_to(llama)  # as the note says
    assert same(adapted, staged.folder)


def test_a_base_model_is_sent_or_named_on_request(adapted, llama, tmp_path):
    sent = stage(adapted, REPO, tmp_path / "sent", with_base=True)
    assert "base/model.safetensors" in dict(sent.files) and same(adapted, sent.folder)
    named = stage(adapted, REPO, tmp_path / "named", base="org/model@v1")
    assert ModelCard.load(named.card).data.base_model == "org/model" and not named.notes[:-1]
    settings = (named.folder / "config.yaml").read_text()
    assert (
        "path: org/model" in settings and "revision: v1" in settings and nowhere(named.folder, llama.parent)
    )


def test_compressors_go_along(llama, tmp_path):
    counted = tmp_path / "counted.yaml"
    counted.write_text(
        "base: base/pointer\nbackbone: {tune: frozen}\nstages:\n"
        "  - {name: text, method: {name: compressor, d_compressed: 8, widths: [4], layers: [1, last]}}\n"
    )
    thinking = tmp_path / "thinking.yaml"
    thinking.write_text(
        "base: base/pointer\nbackbone: {tune: frozen}\nstages:\n"
        "  - {name: think, method: {name: recursion, layers: [last], compressor: counted, d_compressed: 4,"
        " cell: {width: 16, latent_steps: 1, rounds: 1}, blocks: 2, steps: 1, weights: {answer: 1}}}\n"
    )
    made = stage(trained(str(counted), tmp_path / "counted", f"backbone.path={llama}"), REPO, with_base=True)
    pushed = [name for name, _ in made.files if name.startswith("comp")]
    assert pushed == ["compressor-1.safetensors", "compressor-last.safetensors"]  # for others to think with
    assert nowhere(made.folder, tmp_path, llama.parent)
    assert read_origin(made.folder / pushed[0]).identity["path"] == "base"
    run = trained(str(thinking), tmp_path / "run", f"backbone.path={llama}")
    staged = stage(run, REPO, with_base=True)
    assert [name for name, _ in staged.files if name.startswith("comp")] == [
        "compressor/compressor-last.safetensors"
    ]
    assert nowhere(staged.folder, tmp_path, llama.parent)
    away = staged.folder.rename(tmp_path / "away")
    (tmp_path / "counted").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="compressor"):
        open_run(run)
    (tmp_path / "gone").rename(tmp_path / "counted")
    assert same(run, away)


def test_a_dry_run_lists_and_sends_nothing(run, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(socket.socket, "connect", lambda *address: called.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address: called.append(address))
    file = tmp_path / "push.json"
    told = quiet("push", run, REPO, "--dry-run", "--out", tmp_path / "push", "--json", file)
    made = json.loads(file.read_text())
    assert not called and "nothing was sent" in told and str(tmp_path / "push" / "README.md") in told
    assert all(entry["name"] in told for entry in made["files"]) and made["address"] is None
    assert made["bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "push").rglob("*.*") if path.is_file()
    )


def test_the_hub_gets_the_folder_and_loses_older_steps(staged):
    hub = Recording()
    sent = push(staged, REPO, private=False, revision="try", api=hub)
    (made, branch, upload) = hub.calls
    assert made == ("create_repo", REPO, {"private": False, "exist_ok": True})
    assert branch == ("create_branch", REPO, {"branch": "try", "exist_ok": True})
    assert upload[:2] == ("upload_folder", REPO) and upload[2]["revision"] == "try"
    assert upload[2]["sent"] == {name for name, _ in staged.files}
    assert sent.address == f"https://huggingface.co/{REPO}" and sent.files == staged.files
    gone = [
        name
        for name in ("step-009000/method.safetensors", "step-000006.1/run.json", "LICENSE", "images/a.png")
        if any(fnmatch(name, pattern) for pattern in upload[2]["delete_patterns"])
    ]
    assert gone == ["step-009000/method.safetensors", "step-000006.1/run.json"]
    plain = Recording()
    push(staged, REPO, api=plain)
    assert [call[0] for call in plain.calls] == ["create_repo", "upload_folder"]
    assert plain.calls[0][2]["private"] is True


def answered(code, kind=errors.HfHubHTTPError):
    return kind("no", response=SimpleNamespace(status_code=code, headers={}, request=None))


@pytest.mark.parametrize(
    ("fault", "cure"),
    [
        (errors.LocalTokenNotFoundError("none"), "run hf auth login, or set HF_TOKEN"),
        (answered(401), "set HF_TOKEN to a valid token"),
        (answered(403), "may not write to ada"),
        (answered(404, errors.RepositoryNotFoundError), "no such owner, repository or branch"),
        (answered(503), "busy"),
        (answered(400, errors.BadRequestError), "refused"),
        (errors.OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE"),
        (errors.HTTPError("Name or service not known"), "check the network"),
        (ConnectionResetError("reset"), "check the network"),
        (RuntimeError("the transfer broke"), "run the same command again"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_its_cure(staged, fault, cure):
    with pytest.raises(UserError, match=cure) as caught:
        push(staged, REPO, api=Recording(fault))
    assert str(staged.folder) in str(caught.value) and "\n" not in str(caught.value)
    assert staged.card.exists() and open_run(staged.folder)


def test_without_a_network_the_folder_stays(run, tmp_path):
    told = quiet("push", run, REPO, "--out", tmp_path / "push", code=2)  # the tests are offline
    assert "Traceback" not in told and "HF_HUB_OFFLINE" in told and (tmp_path / "push" / "README.md").exists()


@pytest.mark.parametrize(
    ("repo", "fault"),
    [("slots", "no owner"), ("a/b/c", "repo_name"), ("ada/x--y", "--"), ("ada/ x", "alphanumeric")],
)
def test_a_bad_repository_name_is_refused_before_anything_is_written(run, tmp_path, repo, fault):
    told = quiet("push", run, repo, "--dry-run", "--out", tmp_path / "push", code=2)
    assert fault in told and "OWNER/NAME" in told and not (tmp_path / "push").exists()


def test_what_is_no_trained_run_is_refused(run, tmp_path):
    assert "no run folder" in quiet("push", tmp_path, REPO, "--dry-run", code=2)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert "train it first" in quiet("push", fresh, REPO, "--dry-run", code=2)
    assert sorted(path.name for path in fresh.iterdir()) == ["config.yaml"]


def test_flags_that_fit_nothing_are_refused(run, tmp_path):
    ask = ["push", run, REPO, "--dry-run", "--out", tmp_path / "push"]
    assert "leave --base out" in quiet(*ask, "--base", "org/model", code=2)
    assert "--with-base" in quiet(*ask, "--with-base", code=2)
    assert "apache-2.0" in quiet(*ask, "--license", "My licence", code=2)
    assert "something else stands there" in quiet(*ask[:-1], run, code=2)
    assert not list(tmp_path.iterdir()) and (run / "run.json").exists()


def test_a_second_push_replaces_the_first_and_is_no_place_to_train(run, tmp_path):
    stage(run, REPO, tmp_path / "push")
    (tmp_path / "push" / "step-000999").mkdir()
    staged = stage(run, REPO, tmp_path / "push")
    assert [path.name for path in staged.folder.glob("step-*")] == [staged.checkpoint]
    told = quiet("train", staged.folder / "config.yaml", "--no-doctor", "--out", staged.folder, code=2)
    assert "another recipe" in told
