"""The tokenizer of a recipe: loaded, or trained offline, `words` for symbol tasks and `bpe` for text.

Every tokenizer here is a Hugging Face fast tokenizer, saved as `tokenizer.json`. One that lacks
an end-of-sequence token is refused: no method could learn where an answer ends.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.tags import THINKING, untagged
from quietreasoning.data.tasks import Task
from quietreasoning.data.thinking import forget_new, with_thinking
from quietreasoning.data.tokenizer_files import load_tokenizer

EOS, PAD, UNK = "<eos>", "<pad>", "<unk>"


def build_tokenizer(
    config: DataConfig,
    task: Task,
    backbone_path: str | None = None,
    revision: str | None = None,
    later: Sequence[DataConfig] = (),
) -> PreTrainedTokenizerFast:
    """The tokenizer a recipe asks for: a named one, one trained on the task, or the backbone's own.

    A backbone from scratch has none of its own: then bpe is trained on the task. later: data of the stages
    that follow, which a trained tokenizer must be able to write as well.
    """
    wanted = config.tokenizer
    if wanted.path:
        found = load_tokenizer(wanted.path, wanted.revision)
    elif backbone_path and not wanted.train:
        found = forget_new(load_tokenizer(backbone_path, revision))
    else:
        written = all_texts(config, task, later)
        if wanted.thinking:
            written = map(untagged, written)
        if wanted.train == "words":
            found = train_words(written)
        else:
            found = train_bpe(written, wanted.vocab - (len(THINKING) if wanted.thinking else 0))
    return with_thinking(found) if wanted.thinking else found


def all_texts(config: DataConfig, task: Task, later: Sequence[DataConfig]) -> Iterator[str]:
    """The texts of every stage, each source once; `tokenizer.examples` of each."""
    yield from texts(config, task)
    seen = [_source(config)]
    for data in later:
        if _source(data) not in seen:
            seen.append(_source(data))
            yield from texts(data.model_copy(update={"tokenizer": config.tokenizer}), build_task(data))


def _source(config: DataConfig) -> tuple:
    """What the texts of a stage depend on."""
    return config.task, config.path, config.seed, config.train, config.options, config.format


def texts(config: DataConfig, task: Task) -> Iterator[str]:
    """What a trained tokenizer sees: training examples as the encoder will write them."""
    form = config.format
    yield from task.vocabulary()
    if task.text:
        yield form.answer_prefix
        yield from (example.prompt for example in task.split("train")[: config.tokenizer.examples])
        return
    for example in task.split("train", config.train)[: config.tokenizer.examples]:
        yield example.prompt + form.prompt_suffix
        yield from (step + form.step_suffix for step in example.steps)
        yield from (f"{form.answer_prefix} {answer}" for answer in example.answers)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write `tokenizer.json` and its settings; `load_tokenizer(folder)` reads them back. OSError where it
    cannot."""
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:  # the Rust half raises a bare Exception where the disk is full
        raise OSError(errno.EIO, str(error), str(folder)) from error


def train_words(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a whitespace-separated word and one for a newline; words in sorted order.

    Texts must hold every word that will ever occur: the encoder refuses an unknown one in an answer.
    """
    words = sorted({word for text in texts for word in text.split()} - {PAD, EOS, UNK})
    vocab = {token: i for i, token in enumerate([PAD, EOS, UNK, "\n", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n"), "isolated"), pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")]
    )
    return _wrap(tokenizer, unk_token=UNK)


def train_bpe(texts: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits: any text encodes, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer)


def _wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        **special,
    )
