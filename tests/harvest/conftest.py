"""A run that writes chains and a chat model that thinks, both tiny and untrained, and what a folder holds."""

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, SmolLM3Config

from quietreasoning.data.pairs.folder import read_rows
from quietreasoning.data.pairs.shards import PairStates
from quietreasoning.harvest import Request, harvest
from quietreasoning.run import resolve, train_run

TINY = [
    "backbone.scratch={layers: 2, width: 32, heads: 2, context: 96, init_std: 0.05}",
    *("data.train=64", "data.valid=16", "data.test=16", "eval.n=4", "train.batch_size=4", "train.steps=1"),
]
TEMPLATE = (
    "<|im_start|> system \n today {{ strftime_now('%d %B %Y') }} \n "
    "{% if messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}<|im_end|> \n "
    "<|im_start|> user \n {{ messages[-1].content }} <|im_end|> \n "
    "{% if add_generation_prompt %}<|im_start|> assistant \n HEADER"
    "{% if not enable_thinking %}OPEN \n CLOSE {% endif %}{% endif %}"
)
WORDS = "what is plus and day today user assistant system 01 02 03 July June 2025 2024".split()
THOUGHTS = ["well", "so", "then"]  # what the chat model thinks; then it answers with a digit


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run folder of method cot; with a temperature its chains end in every way there is."""
    folder = tmp_path_factory.mktemp("run") / "chain"
    train_run(resolve("cot/pointer", TINY, out=str(folder)), doctor=False)
    return folder


@pytest.fixture(scope="session")
def roll(run, tmp_path_factory):
    """`roll(out=..., batch_size=...)`: rollouts of the run, into a new folder unless one is named."""

    def make(rank=0, ranks=1, **wishes):
        options = {"max_new_tokens": 24, "num_samples": 30, "checkpoint_every": 7, "keep": "all"}
        options |= {"temperature": 1.2, "model": str(run)} | wishes
        out = options.setdefault("out", tmp_path_factory.mktemp("pairs") / "p")
        inner = {"sampler": options.pop("sampler")} if "sampler" in options else {}
        return SimpleNamespace(
            folder=out, summary=harvest(Request(**options), rank=rank, ranks=ranks, **inner)
        )

    return make


@pytest.fixture(scope="session")
def whole(roll):
    """Rollouts of an undisturbed command."""
    return roll()


@pytest.fixture(scope="session")
def contents():
    """All that a folder holds of each rollout, to the bit, without the names of its shards."""

    def read(folder):
        rows = read_rows(folder)
        states = PairStates(folder)
        bits = {
            f"{row['key']}/{kind}/{layer}": getattr(states, kind)(row["key"], layer)
            .view(torch.uint8)
            .tolist()
            for row in states.rows
            for layer in states.layers
            for kind in ("pre", "post")
        }
        return [{name: value for name, value in row.items() if name != "shard"} for row in rows], bits

    return read


def chat_tokenizer(opened, closed, header):
    words = [*WORDS, *THOUGHTS, *map(str, range(10)), "####", "\n", *opened.split(), *closed.split()]
    special = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>"]
    vocab = {word: i for i, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = TEMPLATE.replace("HEADER", header).replace("OPEN", opened).replace("CLOSE", closed)
    return fast


def chat_model(tokenizer, opened, closed, header):
    """SmolLM3-shaped; embeddings and head are those of a chain of words that thinks, then answers.

    Its blocks are random and small, so that states depend on all that was read.
    """
    size = len(tokenizer)
    torch.manual_seed(0)
    config = SmolLM3Config(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        no_rope_layer_interval=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    assert size <= config.hidden_size
    model = AutoModelForCausalLM.from_config(config)
    of = tokenizer.convert_tokens_to_ids
    following = {thought: {**dict.fromkeys(THOUGHTS, 0.25), closed.split()[0]: 0.25} for thought in THOUGHTS}
    for marker, then in (
        (opened, dict.fromkeys(THOUGHTS, 0.33)),
        (closed, {"####": 0.7, opened.split()[0]: 0.1}),
    ):
        parts = marker.split()
        following |= {a: {b: 1.0} for a, b in pairwise(parts)}
        following[parts[-1]] = then
    following["####"] = dict.fromkeys(map(str, range(10)), 0.1)
    following |= {str(digit): {"<|im_end|>": 1.0} for digit in range(10)}
    following["\n"] = dict.fromkeys(THOUGHTS, 0.33) if header else {opened.split()[0]: 0.9, "<|im_end|>": 0.1}
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size, 64))
        shares = torch.full((size, 64), 1e-4)
        for word, then in following.items():
            for other, share in then.items():
                shares[of(other), of(word)] = share
        model.lm_head.weight.copy_(shares.log() / 8)  # the last norm makes a unit vector 8 long
    return model


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory):
    """`chat_folder(opened, closed, header)`: a model folder; header: how the template begins the turn."""

    def make(opened="<think>", closed="</think>", header=""):
        folder = tmp_path_factory.mktemp("chat")
        tokenizer = chat_tokenizer(opened, closed, header)
        tokenizer.save_pretrained(folder)
        chat_model(tokenizer, opened, closed, header).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def chat(chat_folder):
    return chat_folder()


@pytest.fixture(scope="session")
def sums(tmp_path_factory):
    """A folder with train and test files of GSM8K's form and one of plain questions."""
    folder = tmp_path_factory.mktemp("sums")
    rows = [(a, b) for a in range(10) for b in range(10 - a)]
    for name, shift in (("train", 0), ("test", 5)):
        lines = [
            {
                "question": f"what is {a} plus {b} and {shift}",
                "answer": f"so <<{a}+{b}={a + b}>>\n#### {a + b}",
            }
            for a, b in rows
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain = [{"prompt": f"what is {a} and {b}", "answer": str(a)} for a, b in rows]
    (folder / "plain.json").write_text(json.dumps(plain))
    return folder
