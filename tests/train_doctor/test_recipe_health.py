"""The doctor passes every stage of every shipped recipe: its own data and method, at a small width."""

import json
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from quietreasoning.backbone import BackboneConfig, load_backbone
from quietreasoning.data.batches import Batches
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.load import load_split
from quietreasoning.data.tasks import TASKS
from quietreasoning.data.tokenizers import build_tokenizer, save_tokenizer
from quietreasoning.equip import equip
from quietreasoning.layers import resolve_stages
from quietreasoning.methods import METHODS
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.recipe import RECIPES, load_recipe
from quietreasoning.train.doctor import examine
from quietreasoning.train.settings import TrainConfig
from quietreasoning.validation import validate

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from contract_cases import datastore, store

SMALL = {  # method -> what the small width asks for
    "compressor": {"d_compressed": 8, "widths": [2, 4]},
    "bake": {"max_tokens": 8},
    "thoughts": {"floor": 4, "cap": 4, "anchors": 2, "thoughts": 2},
    "recursion": {"cell": {"width": 32, "heads": 4, "latent_steps": 2, "rounds": 2}, "steps": 3},
}


def stages_of(name: str) -> list[dict]:
    return resolve_stages(load_recipe(name).values)


def stages() -> dict[str, dict]:
    """Stages that differ in data or method, each under the name of the first recipe that has it. A small twin
    has the stages of its large one (tests/house/test_recipes.py), which is made as small here."""
    found = {}
    for name in RECIPES:
        twin = "workspace/3b" if name == "workspace/tiny" else name.removesuffix("-tiny")
        known = {stage["name"] for stage in stages_of(twin)} if twin != name else set()
        for stage in stages_of(name):
            if stage["name"] in known:
                continue
            stage["method"] |= SMALL.get(stage["method"]["name"], {})
            same = json.dumps([stage["method"], stage["data"]["task"]], sort_keys=True)
            found.setdefault(same, (f"{name}:{stage['name']}", stage))
    return dict(found.values())


STAGES = stages()
SCRATCH = {"layers": 1, "width": 32, "heads": 2, "context": 1024}
WORKSPACE = {
    "preset": "tiny",
    "sizes": {"num_hidden_layers": 2, "read_block": 1, "ssm_blocks": [1], "pkm_blocks": [2]}
    | {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "chunk_size": 8, "slots": 8}
    | {
        "slot_width": 16,
        "slot_heads": 2,
        "router_width": 8,
        "ssm_inner": 16,
        "ssm_head_dim": 8,
        "ssm_state": 4,
    }
    | {
        "pkm_slots": 64,
        "pkm_value_dim": 8,
        "pkm_key_dim": 8,
        "pkm_topk": 4,
        "adapters": 2,
        "adapter_rank": 2,
    },
}
SHAPES = {"workspace": {"workspace": WORKSPACE}, "reasoner": {"scratch": SCRATCH | {"layers": 0}}}


def taught_rows() -> list[dict]:
    """Conversations in which a tool is called, its result told, and a chain written before the answer."""
    tool = {"name": "nuts", "parameters": {"type": "object", "properties": {"of": {"type": "string"}}}}
    rows = []
    for i in range(20):
        call = {"name": "nuts", "arguments": {"of": f"Ann {i}"}}
        said = [
            {"role": "user", "content": f"How many nuts has Ann {i} left ?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "nuts", "content": json.dumps({"left": 100 + i})},
            {"role": "assistant", "content": f"There are {100 + i} nuts left ."},
        ]
        rows.append({"messages": said, "tools": [tool]})
        asked = {"prompt": f"What is {i} + 7 - 2 ?", "teacher_text": str(i + 5)}
        rows.append(asked | {"cot_steps": [f"{i} + 7 = {i + 7}", f"{i + 7} - 2 = {i + 5}"]})
    return rows


def paired_rows() -> list[dict]:
    """A program beside the calls that it stands for."""
    rows = []
    for i in range(40):
        call = json.dumps({"name": "nuts", "arguments": {"of": f"Ann {i}"}})
        program = f"```python\nprint(nuts(of='Ann {i}'), nuts(of='Bo'))\n```"
        calls = "\n".join([f"<tool_call>\n{call}\n</tool_call>"] * 2)
        asked = f"How many nuts have Ann {i} and Bo ?"
        rows.append({"prompt": asked, "chosen": program, "rejected": calls, "reasons": ["2 calls"]})
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Task -> what it reads: a folder in GSM8K's format, a corpus, questions with popularity."""
    folder = tmp_path_factory.mktemp("gsm8k")
    lines, corpus, asked = [], [], []
    for i in range(2, 42):
        text = f"Ann has {i} bags of {i + 1} nuts and eats {i % 5 + 1} nuts. How many are left?"
        total, left = i * (i + 1), i * (i + 1) - i % 5 - 1
        chain = f"She has {i}*{i + 1}=<<{i}*{i + 1}={total}>>{total} nuts."
        if i % 3:
            chain += f"\nLeft are {total}-{i % 5 + 1}=<<{total}-{i % 5 + 1}={left}>>{left} nuts."
        answer = left if i % 3 else total
        lines.append(json.dumps({"question": text, "answer": f"{chain}\n#### {answer}"}))
        corpus.append(json.dumps({"text": f"{text} {chain} {text}"}))
        asked.append(json.dumps({"question": text, "obj": f"Bo {i % 7}", "s_pop": 300 * i}))
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    others = tmp_path_factory.mktemp("others")
    (others / "corpus.jsonl").write_text("\n".join(corpus), encoding="utf-8")
    (others / "asked.jsonl").write_text("\n".join(asked), encoding="utf-8")
    (others / "rows.jsonl").write_text("\n".join(map(json.dumps, taught_rows())), encoding="utf-8")
    names = {"text": others / "corpus.jsonl", "jsonl": others / "asked.jsonl", "gsm8k": folder}
    names["teacher-rows"] = others / "rows.jsonl"
    (others / "pairs.jsonl").write_text("\n".join(map(json.dumps, paired_rows())), encoding="utf-8")
    names["preferences"] = others / "pairs.jsonl"
    return {task: str(path) for task, path in names.items()}


@pytest.fixture(scope="module")
def encoded(files, tmp_path_factory):
    @cache
    def encode(written: str):
        settings = json.loads(written)
        task, thinking = settings["task"], settings.pop("thinking")
        if task in files:
            settings |= {"path": files[task], "tokenizer": {"vocab": 384, "thinking": thinking}}
            settings.setdefault("format", {})["rationale"] = [
                "left"
            ]  # a word that so small a tokenizer knows
        else:
            settings |= {"tokenizer": {"train": "words", "thinking": thinking}}
        if not TASKS[task].whole_train:
            settings["train"] = 40
        if taught := settings.get("format", {}).get("taught"):
            taught["tokenizer"] = str(tmp_path_factory.mktemp("taught"))
            other = validate(DataConfig, settings | {"tokenizer": {"train": "words"}})
            save_tokenizer(build_tokenizer(other, build_task(other)), taught["tokenizer"])
        config = validate(DataConfig, settings)
        task = build_task(config)
        encoder = Encoder(build_tokenizer(config, task), config.format, context=24 if task.text else None)
        examples, _ = load_split(task, "train", config, encoder, n=24)
        return task, Batches(examples, encoder, 8)

    return encode


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    @cache
    def of(rows: int) -> dict:
        torch.manual_seed(1)
        folder = tmp_path_factory.mktemp("teacher")
        load_backbone(validate(BackboneConfig, {"scratch": SCRATCH}), rows).model.save_pretrained(folder)
        return {"path": str(folder)}

    return of


def listens(stage: dict) -> bool:
    method = stage["method"]
    return method["name"] == "cross" or (method["name"] == "distill" and method["weights"].get("kd", 1) > 0)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_healthy(name, encoded, teacher):
    stage = STAGES[name]
    data = {key: stage["data"][key] for key in ("task", "options", "format") if key in stage["data"]}
    data["thinking"] = stage["data"].get("tokenizer", {}).get("thinking", False)
    task, batches = encoded(json.dumps(data))
    encoder, batch = batches.encoder, batches.batch_at(0)
    torch.manual_seed(0)
    method_class = METHODS[stage["method"]["name"]]
    shape = SHAPES.get(stage["method"]["name"], {"scratch": SCRATCH})
    backbone = load_backbone(validate(BackboneConfig, shape), len(encoder.tokenizer))
    read_with = encoder.tokenizer if encoder.taught is None else encoder.taught.teacher
    if stage["method"].get("int8"):  # what is frozen here was written by an earlier stage
        torch.nn.init.normal_(backbone.model.model.table.values)
    settings = stage["method"] | ({"teacher": teacher(len(read_with))} if listens(stage) else {})
    if stage["method"]["name"] == "recall":  # its stores are those of tests/contract, of this very model
        settings["episodic"] = settings["episodic"] | {"store": store(), "encoder": "rows"}
        settings["knn"] = settings["knn"] | datastore(backbone)
    method = method_class(backbone, validate(method_class.Config, settings), encoder.markers())
    equip(method, batches.examples, encoder, task.scorer)
    train = validate(TrainConfig, stage["train"])
    optim = validate(OptimConfig, stage["optim"]) if train.steps != 0 else None
    diagnosis = examine(method, batch, label=name, optim=optim, enable=train.enable)
    assert diagnosis.healthy, [str(finding) for finding in diagnosis.findings]
