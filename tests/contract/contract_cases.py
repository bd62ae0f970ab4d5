"""Every method in every shape worth a test, on a tiny real backbone and rows of every length."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from quietreasoning.backbone import Backbone, BackboneConfig, ScratchConfig, load_backbone
from quietreasoning.contract import IGNORE, Batch, Markers, Method, Role
from quietreasoning.losses.cross_vocabulary import SharedIds
from quietreasoning.memory.arrays import open_keys
from quietreasoning.memory.datastore import Source, build_datastore
from quietreasoning.memory.episodic import EpisodicStore
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.journal import Entry
from quietreasoning.memory.knn_index import build
from quietreasoning.memory.knn_lm import values_of
from quietreasoning.memory.made import say_how_made
from quietreasoning.memory.sidecar import seal
from quietreasoning.methods import METHODS
from quietreasoning.methods.recall.events import model_sha256
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.distributed import Machine
from quietreasoning.train.loop import train
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.state import TrainState

VOCAB = 40
MARKERS = Markers(answer_prefix=(37, 38), eos=39)
WORDS = 36  # ids a row may draw from; 0 is one of them, since padding must not read as token 0

EVERY = ("workspace", "pkm", "adapters", "ssm", "retrieval", "knn")
OF_TEXT = {
    **{"next_latent": 1, "spread": 0.3, "sparsity": 0.1, "orthogonality": 0.05, "contrast": 0.2},
    **{"halting": 0.1, "router_z": 0.01, "balance": 0.1, "entropy": 1, "gate": 1, "budget": 0.1},
}
EVERYTHING = OF_TEXT | {"rationale": 5, "step": 0.5, "retrieval": 1}

_CELL = {"width": 16, "heads": 2, "latent_steps": 2, "rounds": 2}
CELL, FULL = {"cell": _CELL}, {"cell": _CELL | {"mode": "full", "style": "plain"}}

REWARD = {
    "group": 32,
    "temperature": 5,
    "max_answer_tokens": 2,
    "kl": 0.1,
}  # so hot that one in 40 ends at once

THOUGHTS = {
    **{"anchors": 3, "spacing": 1, "thoughts": 2, "talk": 2, "floor": 2, "cap": 4, "divisor": 2, "chunk": 7},
    "gate": 0,
}

EPISODIC = {"store": "files", "encoder": "rows", "events": 2, "candidates": 4, "corrupt": 0.4}

CASES: dict[str, tuple[str, dict]] = {
    "plain": ("plain", {}),
    "cot": ("cot", {"weights": {"answer": 0.5}}),
    "pause": ("pause", {"fillers": 3}),
    "pause-none": ("pause", {"fillers": 0}),
    "continuous": ("continuous", {"latents": 3}),
    "continuous-none": ("continuous", {"latents": 0, "weights": {"step": 0}}),
    "continuous-two-a-step": ("continuous", {"latents": 5, "per_step": 2, "lead": 1, "repeat_last": True}),
    "continuous-decoder": ("continuous", {"latents": 2, "target": "step"}),
    "continuous-decoder-repeats": ("continuous", {"latents": 3, "target": "step", "repeat_last": True}),
    "continuous-steps-only": ("continuous", {"latents": 2, "weights": {"answer": 0}}),
    "coconut-start": ("continuous", {"latents": 0, "visible_from": 0, "weights": {"step": 0}}),
    "coconut": ("continuous", {"latents": 4, "per_step": 2, "visible_from": 2, "weights": {"step": 0}}),
    "codi": ("continuous", {"latents": 2, "weights": {"step": 0, "chain": 1, "match": 0.7}}),
    "chain": ("continuous", {"latents": 2, "weights": {"chain": 0.5}}),
    "continuous-halt": (
        "continuous",
        {
            "latents": 3,
            "halt": {"temperature": 0.1, "hidden": 4, "threshold": 0.37, "early": 0.5},
            "self_evaluation": {"weight": 0.5},
        },
    ),
    "slots": ("slots", {"blocks": 3, "loops": 3}),
    "slots-none": ("slots", {"blocks": 0, "weights": {"step": 0}}),
    "slots-wide": ("slots", {"blocks": 2, "width": 2, "loops": 3, "target": "step", "supervise": "all"}),
    "slots-full": (
        "slots",
        {"blocks": 3, "loops": 2, "attend": "full", "repeat_last": True, "self_evaluation": {"weight": 0.5}},
    ),
    "continuous-grpo": ("continuous", {"latents": 2, "reward": REWARD | {"kl": 0, "updates": 2}}),
    "slots-grpo": ("slots", {"blocks": 2, "loops": 2, "reward": REWARD}),
    "pause-grpo": ("pause", {"fillers": 2, "reward": REWARD | {"per_token": True, "standardise": False}}),
    "slots-steps-only": ("slots", {"blocks": 2, "loops": 3, "weights": {"answer": 0}}),
    "recursion": ("recursion", {"blocks": 2, "steps": 2, "weights": {"step": 0.5, "halt": 0.5}, **CELL}),
    "recursion-grpo": ("recursion", {"blocks": 2, "steps": 2, "reward": REWARD, **CELL}),
    "recursion-per-step": (
        "recursion",
        {
            **{"blocks": 2, "steps": 3, "per_step_updates": True, "supervise": "reached"},
            **{"inject": "affine", "weights": {"step": 0.5, "halt": 0.5}, **CELL},
        },
    ),
    "recursion-affine": (
        "recursion",
        {"blocks": 2, "steps": 3, "inject": "affine", "supervise": "last", **CELL},
    ),
    "recursion-chain-only": (
        "recursion",
        {
            **{
                "blocks": 2,
                "width": 2,
                "steps": 3,
                "target": "step",
                "align": "last",
                "supervise": "reached",
            },
            **{"layers": (0, "last"), "repeat_last": False, "weights": {"step": 1, "answer": 0}, **CELL},
        },
    ),
    "recursion-match-only": (
        "recursion",
        {
            "steps": 2,
            "halting": "above",
            "epochs": 1,
            "weights": {"match": 1, "halt": 0.5, "answer": 0},
            **CELL,
        },
    ),
    "recursion-near": (
        "recursion",
        {"steps": 2, "halting": "near", "weights": {"match": 1, "halt": 0.5}, **FULL},
    ),
    "workspace-trunk": ("workspace", {"features": (), "z_loss": 0}),
    "workspace": ("workspace", {"z_loss": 0}),
    "workspace-static": ("workspace", {"features": ("ssm", "pkm", "adapters"), "z_loss": 0}),
    "workspace-all": ("workspace", {"features": EVERY, "learn": "all", "weights": EVERYTHING, "z_loss": 0}),
    "workspace-text": ("workspace", {"features": EVERY[:4], "learn": "all", "weights": OF_TEXT, "z_loss": 0}),
    "workspace-steps": (
        "workspace",
        {"step_width": 2, "target": "step", "weights": {"step": 0.5}, "z_loss": 0},
    ),
    "workspace-inner": ("workspace", {"supervise": "inner", "weights": {"step": 1}, "z_loss": 0}),
    "workspace-teacher": ("workspace", {"teacher": "a folder", "weights": {"teacher": 0.3}, "z_loss": 0}),
    "bake": ("bake", {"max_tokens": 6, "chunk": 5}),
    "bake-pursuit": ("bake", {"teacher": "current", "max_tokens": 4, "weights": {"kl": 0.5}}),
    "thoughts": ("thoughts", THOUGHTS),
    "thoughts-bound": ("thoughts", THOUGHTS | {"objective": "bound", "visible": True, "sampled": True}),
    "thoughts-text": ("thoughts", THOUGHTS | {"baseline": "plain", "weights": {"text": 0, "kl": 0.3}}),
    "distill": ("distill", {"teacher": "a folder", "chunk": 5, "divergence": {"temperature": 2}}),
    "distill-spans": (
        "distill",
        {
            "teacher": "a folder",
            "steps": False,
            "entropy": {"min_entropy": 0.5, "max_entropy": 3},
            "hidden": {"pairs": 1},
            "chunk": 4,
            "self_evaluation": {},
            "weights": {"hidden": 0.1, "tool_name": 1, "arg_value": 1, "grammar": 1, "tool_choice": 0.5},
        },
    ),
    "distill-own": (
        "distill",
        {
            "teacher": "a folder",
            "divergence": {"beta": 0.3},
            "own": {"share": 0.6, "max_tokens": 4, "interleave": 3},
            "weights": {"own": 1, "answer": 1, "kd": 0.1},
        },
    ),
    "distill-beside-grpo": (
        "distill",
        {"teacher": "a folder", "steps": False, "reward": REWARD | {"kl": 0, "beside": 0.5}},
    ),
    "cross": ("cross", {"teacher": "a folder", "chunk": 5, "divergence": {"beta": 0.3, "temperature": 2}}),
    "prefer": ("prefer", {"weights": {"prefer": 1, "answer": 0.5}}),
    "prefer-simpo": (
        "prefer",
        {
            "loss": "simpo",
            "ramp": {"start": 0.5, "until": 1},
            "weights": {"prefer": 0.5, "code": 1, "unlikely": 1},
        },
    ),
    "recall": ("recall", {"episodic": EPISODIC, "weights": {"answer": 1, "retrieve": 0.5}}),
    "recall-knn": (
        "recall",
        {"episodic": EPISODIC, "knn": "files", "weights": {"answer": 1, "mixture": 1, "rare": 0.5}},
    ),
    "recall-prepend-only": (
        "recall",
        {"episodic": EPISODIC | {"reading": "prepend"}, "weights": {"retrieve": 1}},
    ),
    "reasoner": ("reasoner", {"width": 16, "supervision_steps": 3, "cells": 8}),
    "reasoner-attention": (
        "reasoner",
        {
            "width": 16,
            "heads": 2,
            "mixer": "attention",
            "style": "paper",
            "rounds": 2,
            "supervision_steps": 2,
        },
    ),
}
CARRYING = tuple(case for case in CASES if case.startswith("reasoner") or case.endswith("per-step"))
GRIDS = tuple(case for case in CASES if case.startswith("reasoner"))  # an answer as long as the prompt
WORKSPACE = tuple(case for case in CASES if case.startswith("workspace"))
FIRST = tuple({name: case for case, (name, _) in reversed(CASES.items())}.values())  # one of each method
WHOLE = ("workspace-all", "workspace-teacher")  # between them every part of a workspace
SHARDED = tuple(case for case in CASES if case not in WORKSPACE or case in WHOLE)
REWARDED = tuple(case for case in CASES if case.endswith("-grpo"))
NULLS = ("pause-none", "continuous-none", "slots-none", "coconut-start")


def scratch(seed: int = 0, *, std: float = 0.3, **shape) -> Backbone:
    """Two layers whose fresh weights are large enough for prompts to be told apart."""
    torch.manual_seed(seed)
    shape = {"layers": 2, "width": 32, "heads": 2, "mlp": 32, "context": 96, "init_std": std} | shape
    return load_backbone(BackboneConfig(scratch=ScratchConfig(**shape)), VOCAB)


def backbone_for(
    case: str, seed: int = 0, *, dtype: str = "float32", tie: bool = False, layers: int = 2
) -> Backbone:
    """What a case stands on: `scratch`, or a workspace model of which every part speaks.

    Chunks of 4 tokens, so that prompts and answers of these rows have one to three.
    """
    shape = {"layers": layers, "width": 32, "heads": 2, "mlp": 32, "context": 96, "init_std": 0.3, "tie": tie}
    if case not in WORKSPACE:
        shape |= {"layers": 0} if case in GRIDS else {}
        torch.manual_seed(seed)
        return load_backbone(BackboneConfig(scratch=ScratchConfig(**shape), dtype=dtype), VOCAB)
    sizes = {
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
        **{"initializer_range": 0.3, "max_position_embeddings": 96, "tie_word_embeddings": tie},
        **{
            "chunk_size": 4,
            "slots": 6,
            "slot_width": 16,
            "slot_heads": 2,
            "read_block": 1,
            "router_width": 8,
        },
        **{"ssm_blocks": (1, 2), "ssm_inner": 16, "ssm_state": 4, "ssm_head_dim": 8, "mean_steps": 1.5},
        **{
            "pkm_blocks": (3,),
            "pkm_slots": 16,
            "pkm_value_dim": 8,
            "pkm_heads": 2,
            "pkm_key_dim": 4,
            "pkm_topk": 3,
        },
        **{"adapters": 3, "adapter_rank": 2, "num_key_value_heads": 1, "bptt_chunks": 2},
    }
    torch.manual_seed(seed)
    backbone = load_backbone(BackboneConfig(workspace={"sizes": sizes}, dtype=dtype), VOCAB)
    body = backbone.model.model
    with torch.no_grad():
        for reader in body.readers.values():
            reader.gate.fill_(0.7)
        for part in (*body.experts.values(), *body.memory.values()):
            part.out.weight.normal_(std=0.3)
        body.table.values.normal_()
        for block in body.blocks:
            for p in block.adapters.parameters():
                p.add_(0.2 * torch.randn_like(p))
        for p in (body.workspace.stop.weight, *(head.weight for head in body.router.heads.values())):
            p.normal_()
    return backbone


def sliding() -> Backbone:
    """A backbone that sees four tokens back."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(
        **shape, vocab_size=VOCAB, num_key_value_heads=1, sliding_window=4, initializer_range=0.3
    )
    return Backbone(AutoModelForCausalLM.from_config(config), BackboneConfig(), {})


@cache
def teacher() -> dict:
    """Settings of a small teacher; its folder goes with the process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    scratch(9, layers=1, width=16, mlp=16).model.save_pretrained(folder)
    return {"path": folder}


@cache
def store() -> str:
    """A store of short events, some of which hold a row's answer; its folder goes with the process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    settings = EpisodicSettings(backend="flat", ttl_days=10_000)
    draw = torch.Generator().manual_seed(7)
    with EpisodicStore(folder, dim=32, encoder="rows", settings=settings) as opened:
        for row in range(24):
            tokens = [*torch.randint(0, WORDS, (3 + row % 4,), generator=draw).tolist(), *row_of(row)[3]]
            vector_D = torch.randn(32, generator=draw).numpy()
            opened.write(Entry(vector_D, "", tuple(tokens)))
        say_how_made(folder, encoder="rows", dim=32, settings=settings)
    return str(folder)


def datastore(backbone: Backbone) -> dict:
    """Settings of a small datastore of this model's reading of rows; its folder goes with the process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    source = Source(model_sha256(backbone), "none", backbone.width, VOCAB)
    rows = [np.array([*row_of(row)[0], *MARKERS.answer_prefix, *row_of(row)[3]]) for row in range(24)]
    build_datastore(backbone.model, rows, folder, source)
    keys = open_keys(folder, "keys")
    values = np.concatenate([np.load(path) for path in sorted(folder.glob("values-*.npy"))])
    np.save(values_of(folder / "index"), values)
    held = seal(
        values_of(folder / "index"), kind="knn-values", dim=1, metric="none", counts={"entries": len(values)}
    )
    about = {"source": asdict(source), "keys_sha256": keys.sha256(), "values_sha256": held.sha256}
    build(keys, folder / "index", "Flat", made_by=about)
    return {"index": str(folder / "index"), "keys": str(folder), "neighbours": 8, "max_lookups": 2}


def make(case: str, backbone: Backbone | None = None) -> Method:
    """The method of a case; the backbone is a fresh one unless given."""
    name, settings = CASES[case]
    settings = settings | ({"teacher": teacher()} if settings.get("teacher") == "a folder" else {})
    backbone = backbone or backbone_for(case)
    if name == "recall":
        settings = settings | {"episodic": settings["episodic"] | {"store": store()}}
        settings = settings | ({"knn": datastore(backbone)} if "knn" in settings else {})
    torch.manual_seed(1)
    markers = replace(MARKERS, rationale=(3, 36)) if "rationale" in settings.get("weights", {}) else MARKERS
    markers = replace(markers, thinking=(36, 35)) if name == "thoughts" else markers
    method = METHODS[name](backbone, METHODS[name].Config(**settings), markers)
    if name == "cross":
        method.shared = SharedIds(torch.tensor(STUDENT_OF), VOCAB)
    if name == "thoughts":  # gates whose last layers start at zero let nothing through to the others
        with torch.no_grad():
            for last in (method.mixer.gate[-1], method.mixer.score[-1]):
                last.weight.normal_()
    if name == "recall":  # a closed gate lets nothing through, and a file fits the weights it was made of
        method.open_stores()
        with torch.no_grad():
            if method.attends:
                method.store.reader.gate.fill_(0.7)
            if method.mixture is not None:
                method.mixture.router.weight.normal_(std=2)
                method.mixture.weight.found[2].weight.normal_()
    return method.train()


def row_of(index: int) -> tuple[list[int], list[list[int]], list[list[int]], list[int]]:
    """Prompt, steps, results, answer of a row: 3-8 tokens, 0-3 steps (every 7th row has none), 1-3 tokens."""
    draw = torch.Generator().manual_seed(1000 + index)

    def ids(low: int, high: int) -> list[int]:
        count = int(torch.randint(low, high + 1, (), generator=draw))
        return torch.randint(0, WORDS, (count,), generator=draw).tolist()

    prompt = ids(3, 8)
    steps = [] if index % 7 == 3 else [ids(1, 4) for _ in range(1 + index % 3)]
    results = [[] if index % 5 == 4 else step[-2:] for step in steps]  # a result may be unknown
    return prompt, steps, results, [*ids(1, 3), MARKERS.eos]


def pad(rows: list[list[int]], *, left: bool = False, width: int | None = None) -> torch.Tensor:
    width = max(map(len, rows), default=0) if width is None else width
    filled = [([IGNORE] * (width - len(r)) + r) if left else (r + [IGNORE] * (width - len(r))) for r in rows]
    return torch.tensor(filled, dtype=torch.long).reshape(len(rows), width)


def batch_of(rows: list[int]) -> Batch:
    """The rows as the data package collates them: padded to the longest here, whatever other rows need."""
    made = [row_of(row) for row in rows]
    count = max(len(steps) for _, steps, _, _ in made)

    def nest(which: int) -> torch.Tensor:
        width = max((len(part) for row in made for part in row[which]), default=0)
        padded = [pad([*row[which], *[[]] * (count - len(row[which]))], width=width) for row in made]
        return torch.stack(padded).reshape(len(rows), count, width)

    return Batch(
        torch.tensor(rows),
        pad([row[0] for row in made], left=True),
        nest(1),
        nest(2),
        pad([r[3] for r in made]),
        torch.tensor([(IGNORE, 0, 1)[row % 3] for row in rows]),
    )


def spans_of(rows: list[int]) -> Batch:
    """The rows with a class for each answer token, and for some what a grammar would allow there."""
    batch = batch_of(rows)
    classes_BA = (batch.answer_BA % 4).masked_fill(batch.answer_BA == IGNORE, IGNORE)
    ids_V = torch.arange(-(-VOCAB // 8) * 8)
    allows_BAV = (ids_V % 3 == 0) | (ids_V == batch.answer_BA[..., None])
    told_BA = (classes_BA > 0) & (batch.answer_BA % 5 != 0)
    bits_BAV = (allows_BAV & told_BA[..., None] & (ids_V < VOCAB)).numpy()
    return replace(batch, classes_BA=classes_BA, allowed_BAW=torch.from_numpy(np.packbits(bits_BAV, axis=-1)))


def pairs_of(rows: list[int]) -> Batch:
    """The rows, each with the answer of another beside its own; some tokens are code, some open a call."""
    batch = batch_of(rows)
    rejected_BA = pad([row_of(row + 50)[3] for row in rows])
    return replace(
        batch,
        classes_BA=(6 * (batch.answer_BA % 2)).masked_fill(batch.answer_BA == IGNORE, IGNORE),
        rejected_BA=rejected_BA,
        rejected_classes_BA=(7 * (rejected_BA % 2)).masked_fill(rejected_BA == IGNORE, IGNORE),
    )


def text_of(rows: list[int]) -> Batch:
    """Running text: rows that are prompts alone, of 5 to 16 tokens."""
    made = [[token for at in range(2) for token in row_of(2 * row + at)[0]] for row in rows]
    none = torch.full((len(rows), 0), IGNORE)
    keys, unknown_B = torch.tensor(rows), torch.full((len(rows),), IGNORE)
    return Batch(keys, pad(made, left=True), none[..., None], none[..., None], none, unknown_B)


def prompts_of(rows):
    return pad([row_of(row)[0] for row in rows], left=True)


def own_answers(rows, said):
    """The rows with what was said as gold; every second one has its last token changed."""
    batch = batch_of(rows)
    answers_BA = torch.tensor([[*said_A[:-1], (said_A[-1] + b % 2) % 36] for b, said_A in enumerate(said)])
    return replace(batch, answer_BA=answers_BA)


def empty_of(rows: list[int]) -> Batch:
    """Rows whose answer ends at once, so that even a fresh model is right now and then."""
    return replace(batch_of(rows), answer_BA=torch.full((len(rows), 1), MARKERS.eos))


def taught_of(rows: list[int]) -> Batch:
    """Rows whose prompt a teacher reads behind two tokens more."""
    batch = batch_of(rows)
    prompts = [[5, 7, *ids[ids != IGNORE].tolist()] for ids in batch.prompt_BP]
    return replace(batch, instructed_BP=pad(prompts, left=True))


def grid_of(rows: list[int]) -> Batch:
    """Rows whose answer has a token for every token of the prompt."""
    batch, answers = batch_of(rows), []
    for row in rows:
        draw = torch.Generator().manual_seed(2000 + row)
        ids = torch.randint(0, WORDS, (len(row_of(row)[0]),), generator=draw)
        answers.append([*ids.tolist(), MARKERS.eos])
    return replace(batch, answer_BA=pad(answers))


TAUGHT_AS = [(7 * id + 3) % VOCAB for id in range(VOCAB)]  # the number that a teacher has for each token
STUDENT_OF = [id if id % 4 else -1 for id in map(TAUGHT_AS.index, range(VOCAB))]  # it knows three of four


def crossed_of(rows: list[int]) -> Batch:
    """The rows beside what a teacher reads who says every prompt twice, has numbers of its own, and one for
    the two tokens that a part of three or more begins with."""
    told, roles, chunks = [], [], []
    for prompt, steps, _, answer in map(row_of, rows):
        ids, kinds, places, at = [*prompt, *prompt], [int(Role.PROMPT)] * 2 * len(prompt), [], 0
        parts = [(Role.STEP, step) for step in steps]
        for kind, part in [*parts, (Role.MARKER, MARKERS.answer_prefix), (Role.ANSWER, answer)]:
            borders = [0, *range(2 if len(part) > 2 else 1, len(part) + 1)]
            for start, end in itertools.pairwise(borders):
                places.append([len(ids), len(ids) + 1, at + start, at + end])
                ids.append(TAUGHT_AS[part[start]])
                kinds.append(int(kind))
            at += len(part)
        for column, row in zip((told, roles, chunks), (ids, kinds, torch.tensor(places)), strict=True):
            column.append(row)
    chunks_BC4 = torch.nn.utils.rnn.pad_sequence(chunks, batch_first=True, padding_value=IGNORE)
    return replace(batch_of(rows), taught_BT=pad(told), taught_role_BT=pad(roles), chunks_BC4=chunks_BC4)


def rows_of(case: str):
    """How a case's rows are made into a batch."""
    if case in GRIDS:
        return grid_of
    if case.endswith("-grpo"):
        return empty_of
    if case.startswith("bake"):
        return taught_of
    if case.startswith("prefer"):
        return pairs_of
    if case.startswith("cross"):
        return crossed_of
    if case.endswith("-spans"):
        return spans_of
    return text_of if case.endswith("-text") else batch_of


def batches(batch_size: int, made=batch_of):
    """batch_at of the contract: lanes and ranks only cut the rows of a step."""

    def batch_at(step, lane, lanes, rank, world):
        size = batch_size // (lanes * world)
        first = step * batch_size + (lane * world + rank) * size
        return made(list(range(first, first + size)))

    return batch_at


def start(
    case: str, *, machine: Machine | None = None, method: Method | None = None, **settings
) -> TrainState:
    """Training state under SGD with momentum, which sees both the scale of a loss and a lost state."""
    config, optim = configs(**settings)
    return TrainState.create(method or make(case, backbone_for(case, layers=1)), config, optim, machine)


def configs(*, steps=2, accumulate=1, batch_size=8, sharding="ddp") -> tuple[TrainConfig, OptimConfig]:
    config = TrainConfig(
        steps=steps, batch_size=batch_size, accumulate=accumulate, precision="fp32", sharding=sharding
    )
    return config, OptimConfig(name="sgd", lr=0.02, clip=1.0)


def go(state: TrainState, made=batch_of, **settings) -> list[dict[str, float]]:
    """Trains on; per step: the loss, every term, every metric and the gradient norm."""
    config, optim = configs(**settings)
    records = train(state, batches(config.batch_size, made), config, optim)
    return [
        {"loss": r.loss, "grad_norm": r.grad_norm, "tokens": r.tokens, **r.losses, **r.metrics}
        for r in records
    ]


def weights(method: Method) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in method.state_dict().items()}


def rows_a_step(case: str) -> int:
    """Four, of which one has no step; eight where few of the answers that are drawn earn anything."""
    return 8 if case in REWARDED else 4


def run(case: str, *, machine: Machine | None = None, **settings):
    """(records, final weights) of a short training."""
    settings = {"batch_size": rows_a_step(case), **settings}
    state = start(case, machine=machine, **settings)
    for group in [group for part in state.optimizer.parts for group in part.param_groups]:
        if settings.get("sharding") == "fsdp" and "foreach" in group:
            group["foreach"] = False  # torch plans every list of shards anew, but knows single shapes again
    records = go(state, rows_of(case), **settings)
    return records, weights(state.finish())


def run_all(rank: int, port: int, out: str, world: int = 2) -> None:
    """All cases, replicated and sharded, as one of two gloo ranks; rank 0 writes what it saw."""
    import json
    import os

    from safetensors.torch import save_file

    teacher()  # before there are ranks, of which only one would write it
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    machine = Machine.start("cpu")
    for sharding, cases in (("ddp", CASES), ("fsdp", SHARDED)):
        for case in cases:
            try:
                records, final = run(case, machine=machine, sharding=sharding, accumulate=2)
            except Exception as error:
                raise RuntimeError(f"{case}, {sharding}") from error
            if machine.main:
                save_file({k: v.clone() for k, v in final.items()}, f"{out}/{case}-{sharding}.safetensors")
                with open(f"{out}/{case}-{sharding}.json", "w") as file:
                    json.dump(records, file)
