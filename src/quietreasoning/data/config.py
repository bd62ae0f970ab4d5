"""What a recipe says about data: task, sizes, length policy, tokenizer, format.

`options` holds the task's own settings; its class is the `Config` of the task named beside it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from quietreasoning.config import OneOf, Pick, Settings
from quietreasoning.data.tasks import TASKS, Task

RATIONALE = tuple(
    "therefore thus hence because since then first second third next finally step steps reason "
    "reasoning explanation think thinking wait Therefore Thus Hence Because Since So Then First Second Third "
    "Next Finally Let Step Steps Reason Reasoning Explanation Think Thinking Wait".split()
)


class SpanFormat(Settings):
    """How calls stand in answers, for losses that weigh tokens by what they are."""

    dialect: Literal["any", "json", "hermes", "qwen", "qwen-coder", "pythonic"] = "any"
    """The dialect of tool calls; any takes whichever an answer speaks."""
    grammar: bool = False
    """Also say which ids the grammar of a call allows at each of its tokens, by the declared schemas."""
    direct_calls: int | None = Field(None, ge=1)
    """Calls in one answer from which on a program would do instead: their openers are then told apart, for
    the term direct_call. A row's `metadata.code_mode`, true or false, goes before. null = never."""

    @model_validator(mode="after")
    def _grammar_has_a_dialect(self) -> SpanFormat:
        if self.grammar and self.dialect not in ("json", "hermes"):
            raise ValueError(
                f"spans.grammar knows dialect json or hermes, not {self.dialect}; name one of them"
            )
        return self


class TaughtFormat(Settings):
    """What a teacher with another tokenizer reads (method cross)."""

    tokenizer: str | None = None
    """Folder or hub id of the teacher's tokenizer; must be given before training."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    specials: dict[str, str | None] = {}
    """Special tokens of the teacher -> the student's that stand for the same, null for none, beyond those of
    the same name and begin and end of sequence."""
    least: float = Field(0.3, ge=0, le=1)
    """Refuse to train where a smaller share of the chunks is the same token in both vocabularies."""


class HaltFormat(Settings):
    """Where thinking should stop, from the rows' metadata (fields: `data/halt_targets.py`)."""

    source: Literal["judge", "curriculum", "utility"] = "judge"
    """judge: a judge's score after one thought; curriculum: a stage, and so a share of the thoughts; utility:
    scores after every thought, less what these cost. A row that does not say enough has no target."""
    max_loops: int = Field(2, ge=1)
    """The most thoughts of a row that names none; judge and curriculum stop there at the latest."""
    tier: Literal["Tier-1", "Tier-2", "Tier-3"] | None = None
    """Of a row that names none: bounds its thoughts to 1, 2 or 3; null = no bound."""
    high: float = 0.8
    """judge: a score that stops at once."""
    shrinking: float = Field(0.05, ge=0)
    """judge: a gain below which another thought is not worth it."""
    cost: float = Field(0.0, ge=0)
    """utility: what a thought must add to the score to be worth having."""

    @model_validator(mode="after")
    def _belongs_to_the_source(self) -> HaltFormat:
        for name, source in {"high": "judge", "shrinking": "judge", "cost": "utility"}.items():
            if source != self.source and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"halt.{name} has no effect with halt.source={self.source}; set halt.source={source}"
                )
        return self


class Format(Settings):
    prompt_suffix: str = "\n"
    """Follows the prompt; unused with a chat template, which has its own."""
    step_suffix: str = "\n"
    """Ends each visible step; must be at least one token."""
    answer_prefix: str = "####"
    """Stands between the last step and the answer; must be at least one token."""
    tags: bool = False
    """Write the steps between <think> and </think>; needs tokenizer.thinking=true, and steps without tags of
    their own."""
    chat: bool = False
    """Write the prompt as a user message in the tokenizer's chat template."""
    system: str | None = None
    """System message of the chat template."""
    instruction: str | None = None
    """Text before the prompt, in a chat its system message, that a teacher alone reads (method bake)."""
    spans: SpanFormat | None = None
    """Tell the tokens of answers apart: tool names, arguments, syntax, repeated results, code; null = no."""
    taught: TaughtFormat | None = None
    """Also say what a teacher with another tokenizer reads (method cross); null = no."""
    halt: HaltFormat | None = None
    """Read from each row where thinking should stop, for method.halt.target=rows; null = no."""
    rationale: tuple[str, ...] = RATIONALE
    """Words that betray a visible chain, for methods that penalise them in answers; only those that are one
    token count."""

    @model_validator(mode="after")
    def _system_needs_chat(self) -> Format:
        if self.system is not None and not self.chat:
            raise ValueError("format.system has no effect without format.chat=true")
        return self

    @model_validator(mode="after")
    def _a_teacher_reads_no_tags(self) -> Format:
        if self.taught is not None and self.tags:
            raise ValueError("format.tags writes tokens that format.taught does not align; drop one of them")
        return self


class TokenizerConfig(Settings):
    path: str | None = None
    """Folder, hub id or SentencePiece .model; none uses the backbone's own, or trains one."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    train: Literal["words", "bpe"] | None = None
    """Train one on the task's own text: words (one token a word) or bpe (bytes, single digits)."""
    vocab: int = Field(4096, ge=300)
    """Largest vocabulary of a bpe tokenizer."""
    examples: int = Field(4000, ge=1)
    """How many training examples a trained tokenizer sees."""
    thinking: bool = False
    """Hold the eight thinking tokens: <think> </think> <step> <reason> <mece> <falsify> <expert> <doubt>."""

    @model_validator(mode="after")
    def _one_source(self) -> TokenizerConfig:
        if self.path and self.train:
            raise ValueError("tokenizer.path and tokenizer.train exclude each other; drop one")
        if self.revision and not self.path:
            raise ValueError("tokenizer.revision has no effect without tokenizer.path")
        return self


_OPTIONS = {name: task.Config for name, task in TASKS.items()}


class DataConfig(Settings):
    task: Annotated[str, OneOf("task", TASKS)] = "pointer"
    """Name of a task; `quiet list` shows them."""
    path: str | None = None
    """File, or folder with train, valid and test files, of a task that reads files."""
    seed: int = Field(0, ge=0)
    """Seed of generated examples. The order of training rows follows the run's seed instead."""
    train: int | None = Field(None, ge=1)
    """Training examples; none takes all of a file, or the generator's default."""
    valid: int | None = Field(None, ge=1)
    """Validation examples."""
    test: int | None = Field(None, ge=1)
    """Test examples."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Longest prompt in tokens; none allows what the model's context holds."""
    too_long: Literal["refuse", "drop", "middle"] = "refuse"
    """What happens to an example beyond a length limit: it is refused, left out, or its prompt loses its
    middle, so that max_prompt_tokens are left. Nothing else is ever cut."""
    max_dropped_fraction: float = Field(0.05, ge=0, le=1)
    """Refuse after all when too_long=drop would drop more than this share of a split."""
    format: Format = Format()
    """What stands between prompt, steps and answer."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Where the token ids come from."""
    options: Annotated[Settings, Pick("task", _OPTIONS, by="task")] = Field({})
    """The task's own settings."""

    @property
    def prompt_limits(self) -> dict[str, Any]:
        """What an Encoder is told about the length of prompts."""
        return {"max_prompt_tokens": self.max_prompt_tokens, "cut_middle": self.too_long == "middle"}

    @model_validator(mode="after")
    def _path_fits_the_task(self) -> DataConfig:
        task = TASKS[self.task]
        if task.needs_path and not self.path:
            raise ValueError(f"task {self.task} reads files; give data.path=FILE or a folder")
        if self.path and task.generated:
            raise ValueError(f"data.path has no effect: task {self.task} generates its examples; drop it")
        return self

    @model_validator(mode="after")
    def _sizes_and_format_fit_the_task(self) -> DataConfig:
        task = TASKS[self.task]
        if task.text and self.format.chat:
            raise ValueError(f"format.chat has no effect: task {self.task} has no prompts; drop it")
        if task.text and self.too_long != "refuse":
            raise ValueError(f"too_long has no effect: task {self.task} cuts windows that fit; drop it")
        if self.too_long == "middle" and self.max_prompt_tokens is None:
            raise ValueError("too_long=middle needs max_prompt_tokens, what a prompt keeps; set it")
        if task.whole_train and self.train is not None:
            raise ValueError(
                f"train has no effect: task {self.task} has data.options.mentions training rows; set that"
            )
        return self


def build_task(config: DataConfig) -> Task:
    """The task a recipe names, with its own settings, path and seed."""
    return TASKS[config.task](config.options, path=config.path, seed=config.seed)
