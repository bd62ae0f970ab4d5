"""recursion/gsm8k on a SmolLM3 folder: each stage moves the reasoner alone; what is saved opens again."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from quietreasoning.backbone import role_of
from quietreasoning.build import Builder, open_run, resolve
from quietreasoning.cli.main import app
from quietreasoning.contract import Role
from quietreasoning.run import evaluate_run
from quietreasoning.track import read_log
from quietreasoning.train.checkpoint import checkpoints

CELL = "{width: 16, layers: 1, heads: 2, latent_steps: 1, rounds: 2}"
STAGES = ("match", "answer", "halt", "reward")
SMALL = [
    *("stages.chain.train.steps=0", "backbone.scratch=null", "track.console=false"),
    *("train.batch_size=4", "train.save_every=0", "train.log_every=1", "data.train=16", "data.valid=4"),
    *("eval.n=3", "eval.batch_size=3", "eval.max_new_tokens=6", "eval.timing=0", "eval.controls=[zero]"),
    *(f"stages.{stage}.train.steps=2" for stage in STAGES),
    "stages.match.method.blocks=2", "stages.match.method.steps=2", f"stages.match.method.cell={CELL}",
    "stages.reward.method.reward.group=3", "stages.reward.method.reward.max_answer_tokens=3",
]  # fmt: skip


def quiet(*arguments):
    """Run in this process; (exit code, both streams)."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout + done.stderr


@pytest.fixture(scope="module")
def settings(smollm3, sums):
    return [f"backbone.path={smollm3}", f"data.path={sums}", *SMALL]


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """Trained by the command, with tune=full, so that checkpoints hold the model's weights as they are."""
    out = tmp_path_factory.mktemp("runs") / "run"
    code, said = quiet("train", "recursion/gsm8k-tiny", *settings, "--no-doctor", "--out", out)
    assert code == 0, said
    return out


def test_a_dry_run_examines_every_stage_and_leaves_nothing(settings, tmp_path):
    out = tmp_path / "run"
    frozen = "backbone.tune=frozen"
    code, said = quiet("train", "recursion/gsm8k-tiny", *settings, frozen, "--dry-run", "--out", out)
    assert code == 0, said
    assert [f"{stage}: healthy" in said for stage in STAGES] == [True] * 4 and not out.exists()


@pytest.mark.parametrize("recipe", ["recursion/gsm8k", "recursion/gsm8k-tiny"])
def test_the_settings_of_matching_are_those_of_its_stage_alone(sums, recipe):
    """Those of the plan: a hundred epochs, a threshold of its own, an update at every supervision step."""
    wish = {"epochs": 100, "threshold": 0.6, "per_step_updates": True}
    words = [f"stages.match.method.{key}={str(value).lower()}" for key, value in wish.items()]
    config = resolve(recipe, [f"data.path={sums}", *words]).config
    methods = {stage.name: stage.method.model_dump() for stage in config.stages}
    assert methods["match"] | wish == methods["match"]
    for name in ("answer", "halt", "reward"):
        assert not any(methods[name][key] == value for key, value in wish.items())


def test_every_stage_learns_what_it_is_named_for(run):
    losses = {}
    for row in read_log(run / "log.jsonl"):
        losses.setdefault(row["stage"], set()).update(key for key in row if key.startswith("loss/"))
    wanted = {"match": "match halt", "answer": "answer step", "halt": "halt", "reward": "policy kl"}
    assert {name: found for name, found in losses.items() if found} == {
        stage: {f"loss/{term}" for term in terms.split()} for stage, terms in wanted.items()
    }


def handed_on(checkpoint):
    """The weights with which the next stage begins: averages where there are any."""
    return load_file(checkpoint / "method.safetensors") | load_file(checkpoint / "ema.safetensors")


def test_the_models_weights_are_the_same_to_the_bit_after_every_stage(run, smollm3):
    original = load_file(smollm3 / "model.safetensors")
    assert "lm_head.weight" not in original, "tied"
    ends = [handed_on(checkpoint) for checkpoint in checkpoints(run)[1:]]
    assert len(ends) == len(STAGES)
    for end in ends:
        assert all(torch.equal(end[f"backbone.model.{name}"], value) for name, value in original.items())


def test_each_stage_moves_what_it_should_and_nothing_else(run):
    ends = [handed_on(checkpoint) for checkpoint in checkpoints(run)[1:]]
    moved = [
        {
            name
            for name in after
            if name.startswith("reasoner.") and not torch.equal(before[name], after[name])
        }
        for before, after in pairwise(ends)
    ]
    halts = {name for name in ends[0] if name.startswith("reasoner.halt")}
    answer, halt, reward = moved
    assert halts and "reasoner.head.weight" in answer & reward
    assert halt == halts and not halts & (answer | reward)


def test_a_frozen_model_is_not_saved_and_the_run_opens_with_the_folder(settings, run, tmp_path):
    out = tmp_path / "run"
    code, said = quiet(
        "train", "recursion/gsm8k-tiny", *settings, "backbone.tune=frozen", "--no-doctor", "--out", out
    )
    assert code == 0, said
    frozen, whole = open_run(out), open_run(run)
    saved = load_file(frozen.checkpoint / "method.safetensors")
    assert saved and not any(name.startswith("backbone.") for name in saved)
    for name, value in whole.method.reasoner.state_dict().items():
        assert torch.equal(frozen.method.reasoner.state_dict()[name], value), name


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_reach_the_reasoner_alone(settings, stage):
    config = resolve("recursion/gsm8k-tiny", settings).config
    chosen = next(one for one in config.stages if one.name == stage)
    builder = Builder(config)
    method = builder.method(chosen).train()
    batch = builder.batches(chosen, method.backbone.context, []).batch_at(0)
    if (
        stage == "reward"
    ):  # of a group without a right answer nothing is learned: take the thoughts themselves
        given = method.think(method.open(batch.prompt_BP), None).content_BKD
        loss = given.square().sum()
    else:
        loss = sum(term.total * term.weight for term in method(batch).terms.values())
    loss.backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached and all(name.startswith("reasoner.") for name in reached)
    assert any(name.startswith("reasoner.halt") for name in reached) == (stage in ("match", "halt"))
    assert all(p.grad is None for p in method.backbone.parameters())


@pytest.mark.parametrize("inject", ["mixture", "affine"])
@pytest.mark.parametrize("slots", [1, 3])
def test_soft_tokens_read_after_the_cache_are_those_of_one_whole_pass(settings, slots, inject):
    """Through the model itself, which knows nothing of caches or slots; also for a single soft token."""
    wishes = [f"stages.match.method.blocks={slots}", f"stages.match.method.inject={inject}"]
    config = resolve("recursion/gsm8k-tiny", settings + wishes).config
    stage = config.stages[2]
    builder = Builder(config)
    method = builder.method(stage).eval()
    batch = builder.batches(stage, method.backbone.context, []).batch_at(0)
    with torch.no_grad():
        prompt = method.open(batch.prompt_BP)
        soft_BKD = method.think(prompt, None).content_BKD
        ready = method.prepare(batch.prompt_BP, None, None, 8)
    assert soft_BKD.shape == (4, slots, method.backbone.width)
    model, prefix = method.backbone.model, torch.tensor(method.markers.answer_prefix)
    for row, ids_P in enumerate(batch.prompt_BP):
        real_P = role_of(ids_P, Role.PROMPT) != Role.PAD
        embed = model.get_input_embeddings()
        whole_TD = torch.cat([embed(ids_P[real_P]), soft_BKD[row], embed(prefix)])
        with torch.no_grad():
            wanted_V = model(inputs_embeds=whole_TD[None]).logits[0, -1]
            found_V = method.backbone.logits(ready.states.hidden_BTD[row, -1])
        torch.testing.assert_close(found_V, wanted_V, atol=1e-5, rtol=1e-4)


def test_answers_come_out_and_are_evaluated_beside_a_control(run):
    loaded = open_run(run)
    prompts = loaded.builder.batches(loaded.config.stages[-1], 256, []).batch_at(0).prompt_BP
    said = loaded.method.generate(prompts, max_new_tokens=6)
    assert len(said.answers) == 4 and all(answer for answer in said.answers)
    assert said.visible_tokens == [0] * 4 and said.latent_steps == [2 * 2] * 4
    again = open_run(run).method.generate(prompts, max_new_tokens=6)
    assert again.answers == said.answers
    rows = evaluate_run(str(run))
    assert {row["control"] for row in rows} >= {None, "zero"} and {row["n"] for row in rows} == {3}
