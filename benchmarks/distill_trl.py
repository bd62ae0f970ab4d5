"""`python benchmarks/distill_trl.py [seeds >= 2] [repeats]`: on-policy distillation, ours beside TRL's.

Fresh Llamas and a word tokenizer, made here: a teacher whose law is not flat, a student that knows nothing.
Both arms, in processes of their own and in turns, train the same student on the same prompts with reverse KL
on its own text: fp32, one thread, the same AdamW (fused), rate, clipping, batch and number of tokens.

    trl    `DistillationTrainer` of TRL 1.16, texts by transformers' `generate`
    ours   method distill, `own: {share: 1}`, weights {kd: 0, answer: 0, own: 1}, driven by train/loop

TRL divides by tokens, ours by texts. The tokenizer's end of sequence is an id that neither model has, so
every text is as long as the limit and both are one loss; asserted first, with its gradients, on the same
texts. TRL draws with torch's generator, ours with numbers of each row, so the texts of a run differ.

Prints, ours as a ratio of TRL's: seconds of a step (CPU and wall), largest resident memory and how far it
rose above what stood before the first step, and KL a token on held-out prompts: forward on the teacher's
texts, reverse on the student's own. Needs trl 1.16 and datasets, which the toolkit does not.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quietreasoning.backbone import BackboneConfig, load_backbone
from quietreasoning.contract import IGNORE, Batch, Markers, Method
from quietreasoning.methods import METHODS
from quietreasoning.methods.distill import own
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.loop import train
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.state import TrainState

ARMS = ("trl", "ours")
RATE, BETAS, CLIP, HELD, WARM = 1e-2, (0.9, 0.95), 1.0, 128, 3
UNITS = {"cpu": "ms CPU", "wall": "ms wall", "peak": "MiB", "rose": "MiB more"}
STUDENT_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # of the t law, by degrees of freedom


@dataclass(frozen=True)
class Size:
    """ids, width and steps of a run; texts of `new` tokens after `prompt` ones, `batch` at a time."""

    ids: int
    width: int
    steps: int
    batch: int
    prompt: int = 8
    new: int = 24
    head: float = 0.25  # of the teacher's fresh head, so that its law is not flat


SMALL = Size(64, 64, 50, 8)
WIDE = Size(65_536, 32, 5, 16, new=32)


def llama(size: Size) -> LlamaForCausalLM:
    shape = LlamaConfig(
        vocab_size=size.ids, hidden_size=size.width, intermediate_size=2 * size.width, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=size.prompt + size.new, initializer_range=0.05,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(shape)


def make(folder: Path, size: Size, seed: int) -> None:
    """Teacher and student of a seed; words are numbers, and the end of sequence is one id too many."""
    torch.manual_seed(seed)
    teacher = llama(size)
    torch.nn.init.normal_(teacher.lm_head.weight, std=size.head)
    teacher.save_pretrained(folder / "teacher")
    llama(size).save_pretrained(folder / "student")
    words = {str(i): i for i in range(size.ids)} | {"</s>": size.ids}
    made = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", pad_token="</s>", padding_side="left"
    )
    tokenizer.save_pretrained(folder / "student")


def prompt_ids(size: Size, seed: int, count: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(size.ids, (count, size.prompt), generator=draw)


def prompts(size: Size, seed: int, count: int) -> list[str]:
    return [" ".join(map(str, row)) for row in prompt_ids(size, seed, count).tolist()]


def trainer_of(folder: Path, size: Size, seed: int, callbacks: tuple = ()) -> Any:
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    teacher, student = (LlamaForCausalLM.from_pretrained(folder / name) for name in ("teacher", "student"))
    args = DistillationConfig(
        output_dir=str(folder / "trl"), max_steps=size.steps, per_device_train_batch_size=size.batch,
        learning_rate=RATE, lr_scheduler_type="constant", adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        weight_decay=0.0, max_grad_norm=CLIP, bf16=False, gradient_checkpointing=False, beta=1.0,
        temperature=1.0, max_completion_length=size.new, shuffle_dataset=False, report_to="none",
        save_strategy="no", disable_tqdm=True, use_cpu=True, seed=seed, logging_steps=10,
    )  # fmt: skip
    return DistillationTrainer(
        model=student, teacher_model=teacher, args=args, callbacks=list(callbacks),
        train_dataset=Dataset.from_dict({"prompt": prompts(size, seed, size.batch * size.steps)}),
        processing_class=AutoTokenizer.from_pretrained(folder / "student"),
    )  # fmt: skip


def method_of(folder: Path, size: Size, *, beta: float = 1.0) -> Method:
    name, settings = "distill", {"teacher": {"path": str(folder / "teacher")}}
    settings |= {"own": {"share": 1, "max_tokens": size.new, "beta": beta}}
    settings |= {"weights": {"kd": 0, "answer": 0, "own": 1}}
    backbone = load_backbone(BackboneConfig(path=str(folder / "student")), size.ids)
    markers = Markers(answer_prefix=(0,), eos=size.ids)
    return METHODS[name](backbone, METHODS[name].Config(**settings), markers)


def batch_of(tokenizer: PreTrainedTokenizerFast, texts: list[str], first: int) -> Batch:
    """Rows that are prompts alone."""
    none = torch.full((len(texts), 0), IGNORE)
    keys, ids_BP = torch.arange(first, first + len(texts)), torch.tensor(tokenizer(texts)["input_ids"])
    return Batch(keys, ids_BP, none[..., None], none[..., None], none, torch.full((len(texts),), IGNORE))


class Marks:
    """CPU and wall seconds at the end of each step."""

    def __init__(self) -> None:
        self.at = [(time.process_time(), time.perf_counter())]
        self.memory = resident()

    def __call__(self) -> None:
        self.at.append((time.process_time(), time.perf_counter()))

    def said(self) -> dict[str, float]:
        """Medians over the steps after the first few; MiB."""
        steps = [[b - a for a, b in zip(one, two, strict=True)] for one, two in pairwise(self.at)]
        cpu, wall = (statistics.median(each) for each in zip(*steps[WARM:], strict=True))
        return {"cpu": 1e3 * cpu, "wall": 1e3 * wall, "peak": resident(), "rose": resident() - self.memory}


def resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_trl(folder: Path, size: Size, seed: int) -> tuple[Marks, Any]:
    from transformers import TrainerCallback

    class Mark(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.marks = Marks()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.marks()

    mark = Mark()
    trainer = trainer_of(folder, size, seed, (mark,))
    trainer.train()
    return mark.marks, trainer.model


def run_ours(folder: Path, size: Size, seed: int) -> tuple[Marks, Any]:
    method = method_of(folder, size)
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    texts = prompts(size, seed, size.batch * size.steps)
    config = TrainConfig(steps=size.steps, batch_size=size.batch, accumulate=1, precision="fp32")
    optim = OptimConfig(name="adamw", lr=RATE, betas=BETAS, clip=CLIP)

    def batch_at(step: int, *_: int) -> Batch:
        first = step * size.batch
        return batch_of(tokenizer, texts[first : first + size.batch], seed * 1_000_000 + first)

    marks, state = Marks(), TrainState.create(method, config, optim)
    for _ in train(state, batch_at, config, optim):
        marks()
    return marks, method.backbone.model


def measure(arm: str, folder: Path, size: Size, seed: int) -> dict[str, float]:
    """One arm, in this process."""
    torch.set_num_threads(1)
    if arm == "trl":
        marks, model = run_trl(folder, size, seed)
    else:
        marks, model = run_ours(folder, size, seed)
    said = marks.said()
    model.config.pad_token_id = model.generation_config.pad_token_id = None  # an id the model does not have
    model.save_pretrained(folder / "after")
    return said


def agree(folder: Path, size: Size, seed: int) -> dict[str, float]:
    """Beta -> largest relative difference of the loss and of its gradients, on the same texts."""
    torch.set_num_threads(1)
    trainer, worst = trainer_of(folder, size, seed), {}
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    for beta in (0.0, 0.3, 1.0):
        method = method_of(folder, size, beta=beta)
        batch = batch_of(tokenizer, prompts(size, seed, size.batch), 0)
        chosen_B = torch.ones(size.batch, dtype=torch.bool)
        with own.still(method):
            ids_BT = own.write(method, batch.prompt_BP, batch.keys_B)  # by their keys: `term` writes the same
        assert ids_BT.shape == (size.batch, size.new) and (ids_BT != IGNORE).all()
        term, _ = own.term(method, batch, chosen_B, 1.0)
        (term.total / size.batch).backward()
        trainer.beta = beta
        given = {"prompt_ids": batch.prompt_BP, "completion_ids": ids_BT}
        given |= {f"{key[:-3]}mask": torch.ones_like(ids) for key, ids in given.items()}
        model = trainer.model
        model.zero_grad()
        loss, _, _ = trainer._compute_loss(model, given, None)
        loss.backward()
        mine = dict(method.backbone.model.named_parameters())
        pairs = [(p.grad, mine[name].grad) for name, p in model.named_parameters()]
        gap = max(float((a - b).norm() / a.norm()) for a, b in pairs)
        worst[f"{beta:g}"] = max(gap, abs(term.total.item() / size.batch / loss.item() - 1))
    return worst


@torch.no_grad()
def kl(of: torch.nn.Module, other: torch.nn.Module, size: Size, seed: int) -> float:
    """KL(of || other) in nats a token, on texts that `of` writes to held-out prompts."""
    prompt_BP = prompt_ids(size, 10_000 + seed, HELD)
    torch.manual_seed(seed)
    ids_BT = of.generate(
        prompt_BP, attention_mask=torch.ones_like(prompt_BP), do_sample=True, top_k=0, max_new_tokens=size.new
    )

    def law(model: torch.nn.Module) -> Tensor:
        return model(input_ids=ids_BT).logits[:, size.prompt - 1 : -1].log_softmax(-1)

    first, second = law(of), law(other)
    return float((first.exp() * (first - second)).sum(-1).mean())


def apart(*words: Any) -> dict[str, float]:
    """This script in a process of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, *map(str, words)]
    said = subprocess.run(command, capture_output=True, text=True, env=environment)
    if said.returncode:
        raise SystemExit(said.stderr)
    return json.loads(said.stdout.splitlines()[-1])


def held_out(folder: Path, name: str, size: Size, seed: int) -> tuple[float, float]:
    """Forward and reverse KL a token."""
    teacher, student = (LlamaForCausalLM.from_pretrained(folder / each).eval() for each in ("teacher", name))
    return kl(teacher, student, size, seed), kl(student, teacher, size, seed)


def interval(values: list[float]) -> str:
    """Mean and half of its 95 % interval."""
    half = STUDENT_95.get(len(values) - 1, 2.0) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.3f} +- {half:.3f}"


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """Medians, spread, and ratios to TRL of runs that stood side by side."""
    for arm, runs in found.items():
        print(f"  {arm:18}", end="")
        for key, unit in UNITS.items():
            values = [run[key] for run in runs]
            ratio = statistics.median(b[key] / a[key] for a, b in zip(found["trl"], runs, strict=True))
            spread = f"{min(values):.0f} to {max(values):.0f}"
            print(f"{statistics.median(values):6.0f} {unit} ({spread}), {ratio:.2f} x;", end=" ")
        print(f"{1e3 / statistics.median(run['cpu'] for run in runs):.1f} steps a CPU second")


def small(folder: Path, seeds: int) -> None:
    """What is learned, and how fast."""
    gaps, found = [], {}
    speed: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(seeds):
        make(folder, SMALL, seed)
        if not seed:
            worst = apart("agree", "small", folder, seed)
            assert max(worst.values()) < 1e-4, f"not one loss: {worst}"
            print(f"loss and gradients agree to {max(worst.values()):.0e} on the same texts, beta {[*worst]}")
        found.setdefault("before", []).append(held_out(folder, "student", SMALL, seed))
        for arm in ARMS if seed % 2 else ARMS[::-1]:
            speed[arm].append(apart(arm, "small", folder, seed))
            found.setdefault(arm, []).append(held_out(folder, "after", SMALL, seed))
        gaps.append([b - a for a, b in zip(found["trl"][-1], found["ours"][-1], strict=True)])
    print(f"\n{asdict(SMALL)}")
    show(speed)
    for name, rows in (found | {"ours - trl, paired": gaps}).items():
        forward, reverse = (interval(list(each)) for each in zip(*rows, strict=True))
        print(f"  {name:18} forward KL {forward}, reverse KL {reverse} nats a token")


def wide(folder: Path, repeats: int) -> None:
    """What a large vocabulary costs."""
    make(folder, WIDE, 0)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for turn in range(repeats):
        for arm in ARMS if turn % 2 else ARMS[::-1]:
            found[arm].append(apart(arm, "wide", folder, 0))
    print(f"\n{asdict(WIDE)}")
    show(found)


def main(seeds: int = 3, repeats: int = 2) -> None:
    torch.set_num_threads(1)
    print(
        f"cpu, 1 thread, torch {torch.__version__}, fp32; medians (least to most), x TRL's of the same turn"
    )
    with tempfile.TemporaryDirectory() as made:
        small(Path(made), seeds)
        wide(Path(made), repeats)


if __name__ == "__main__":
    if importlib.util.find_spec("trl") is None or importlib.util.find_spec("datasets") is None:
        cure = "pip install trl==1.16.0 in an environment of its own, beside this toolkit, and use its python"
        raise SystemExit(f"trl is not installed here: {cure}")
    if sys.argv[1:] and not sys.argv[1].isdigit():
        what, size, folder, seed = sys.argv[1:]
        given = Path(folder), WIDE if size == "wide" else SMALL, int(seed)
        print(json.dumps(agree(*given) if what == "agree" else measure(what, *given)))
    else:
        main(*map(int, sys.argv[1:]))
