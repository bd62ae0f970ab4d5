"""Settings of distillation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quietreasoning.backbone import BackboneConfig
from quietreasoning.config import Settings
from quietreasoning.kinds import Kind
from quietreasoning.losses.kd_schedules import EntropySchedule
from quietreasoning.methods.divergence import DivergenceSettings
from quietreasoning.methods.judged import JudgedConfig

SPAN_TERMS: dict[str, Kind] = {
    "tool_name": Kind.TOOL_NAME,
    "arg_key": Kind.ARG_KEY,
    "arg_value": Kind.ARG_VALUE,
    "syntax": Kind.JSON_SYNTAX,
    "integration": Kind.INTEGRATION,
    "code": Kind.CODE,
}


class CacheSettings(Settings):
    path: str
    """Folder that `quiet data teacher` wrote, of the same rows and the same format."""
    tail: Literal["bucket", "zero", "renorm", "uniform"] = "bucket"
    """What becomes of the mass that was not kept (`losses/kd_sparse.py`)."""


class EntropySettings(Settings):
    """Weights and temperature of each position by the teacher's own entropy there, in nats."""

    min_entropy: float = Field(2.0, ge=0)
    """At and below it the rule is at its one end."""
    max_entropy: float = Field(8.0, gt=0)
    """At and above it at the other."""
    min_temperature: float = Field(1.5, gt=0)
    """Where the teacher is certain."""
    max_temperature: float = Field(3.0, gt=0)
    """Where it is not."""
    follow: Literal["uncertain", "certain"] = "uncertain"
    """Where the teacher counts most."""
    labels: Literal["truth", "teacher"] = "truth"
    """Who wrote the text: gold labels count for more where the teacher does not, its own along with it."""

    @model_validator(mode="after")
    def _is_a_schedule(self) -> EntropySettings:
        self.schedule()
        return self

    def schedule(self) -> EntropySchedule:
        return EntropySchedule(**self.model_dump(exclude={"labels"}))


class HiddenSettings(Settings):
    layers: Literal["uniform", "last"] | tuple[tuple[int, int], ...] = "uniform"
    """Pairs (student layer, teacher layer) from 0; uniform: `pairs` of them spread over both depths; last:
    the last `pairs` of both."""
    pairs: int | None = Field(None, ge=1)
    """How many, of uniform and last; null is 2."""
    distance: Literal["cosine", "mse"] = "cosine"
    """cosine: 1 - cos; mse: of states divided by the teacher's root mean square."""
    decay: bool = False
    """Let its weight fall to 0 over the stage, on a straight line."""

    @model_validator(mode="after")
    def _pairs_are_counted_or_named(self) -> HiddenSettings:
        if self.pairs is not None and not isinstance(self.layers, str):
            raise ValueError("hidden.pairs has no effect beside pairs that hidden.layers names; drop one")
        return self


class OwnSettings(Settings):
    """Learn from text that the student writes itself (on-policy; arXiv 2306.13649)."""

    share: float = Field(0.5, gt=0, le=1)
    """Share of the rows whose gold text is replaced by the student's own."""
    max_tokens: int = Field(64, ge=1)
    """Longest text, end of sequence included."""
    temperature: float = Field(1.0, gt=0)
    """Of the draws."""
    beta: float = Field(1.0, ge=0, le=1)
    """Of the divergence there: 1 is reverse KL."""
    interleave: int | None = Field(None, ge=1)
    """Replace a drawn token that is not among so many likeliest of the teacher by the teacher's own draw
    (arXiv 2410.11325); null: never."""


class EarlyToolSettings(Settings):
    """Calls that open early in an answer."""

    window: int = Field(25, ge=1)
    """Tokens at the answer's beginning within which a call is to open where the row has one, and none where
    it has none."""


class LengthSettings(Settings):
    """Text of the student's own that goes on though all is said."""

    hinge: float = Field(0.15, ge=0)
    """How much longer than the gold text it may be, as a share of that; beyond, it is told to end."""


class DistillWeights(Settings):
    kd: float = Field(0.5, ge=0)
    """Divergence from the teacher."""
    answer: float = Field(0.5, ge=0)
    """Cross-entropy of the gold steps and answer."""
    own: float = Field(0.0, ge=0)
    """Divergence from the teacher on text of the student's own; needs `own`."""
    hidden: float = Field(0.0, ge=0)
    """Distance of layers; needs `hidden`."""
    tool_name: float = Field(0.0, ge=0)
    """Cross-entropy of called names, over their tokens. It and the next five need data.format.spans."""
    arg_key: float = Field(0.0, ge=0)
    """Of keys of arguments."""
    arg_value: float = Field(0.0, ge=0)
    """Of values of arguments."""
    syntax: float = Field(0.0, ge=0)
    """Of the rest of a call."""
    integration: float = Field(0.0, ge=0)
    """Of what an answer repeats of a tool's result."""
    code: float = Field(0.0, ge=0)
    """Of code in fences."""
    grammar: float = Field(0.0, ge=0)
    """Mass outside of a call's grammar; it and the next need data.format.spans.grammar=true."""
    tool_choice: float = Field(0.0, ge=0)
    """Share of the called name among the declared ones."""
    early_tool: float = Field(0.0, ge=0)
    """Whether a call opens within the window; needs `early_tool` and data.format.spans.dialect."""
    direct_call: float = Field(0.0, ge=0)
    """Unlikelihood of openers of calls where a program would do; needs data.format.spans.direct_calls."""
    length: float = Field(0.0, ge=0)
    """Ending text of one's own that has said all; needs `length`, `own` and data.format.spans."""


class DistillConfig(JudgedConfig):
    name: Literal["distill"] = "distill"
    """Knowledge distillation from another model."""
    teacher: BackboneConfig | None = None
    """The teacher: `teacher.path` is a model folder or hub id with the student's tokenizer."""
    cache: CacheSettings | None = None
    """In its place: what a teacher said of these rows before."""
    steps: bool = True
    """Learn the visible steps too, and write them; false: prompt, answer prefix, answer."""
    divergence: DivergenceSettings = DivergenceSettings()
    """How far the student is from the teacher."""
    entropy: EntropySettings | None = None
    """Weigh positions by the teacher's entropy; null = all alike."""
    hidden: HiddenSettings | None = None
    """Match states of layers, through projections that learn; null = no."""
    own: OwnSettings | None = None
    """Text of the student's own; null = gold text alone."""
    early_tool: EarlyToolSettings | None = None
    """Open calls early where one is due, and none where none is; null = no."""
    length: LengthSettings | None = None
    """End text of the student's own that has said all and goes on; null = no."""
    chunk: int | None = Field(None, ge=1)
    """Positions whose logits are held at a time; null: at most 1024, fewer for large vocabularies."""
    weights: DistillWeights = DistillWeights()
    """Loss weights."""
    final_weights: dict[str, float] = {}
    """Weight -> its value at the stage's end, reached on a straight line; a weight of 0 cannot rise."""

    @model_validator(mode="after")
    def _says_whom_it_learns_from(self) -> DistillConfig:
        w = self.weights
        if not any(value for _, value in w):
            raise ValueError("method.weights are all 0: nothing is learned; give one, such as kd=0.5")
        for part in ("hidden", "own", "early_tool", "length"):
            if bool(getattr(w, part)) != (getattr(self, part) is not None):
                raise ValueError(
                    f"method.weights.{part}={getattr(w, part):g} and method.{part}="
                    f"{'{...}' if getattr(self, part) else 'null'} belong together; give both or neither"
                )
        if self.length and not self.own:
            raise ValueError(
                "method.length is of text that the student writes itself; gold text is as long as it is: "
                "give method.own and method.weights.own, or drop it"
            )
        if self.cache and self.teacher:
            raise ValueError("method.teacher and method.cache are two teachers; drop one")
        if self.cache and (w.hidden or w.own or self.entropy):
            part = "hidden" if w.hidden else "own" if w.own else "entropy"
            raise ValueError(f"method.{part} asks a teacher what no cache holds; give method.teacher.path")
        if self.cache and not w.kd:
            raise ValueError("method.cache has no effect: weight kd is 0; drop it")
        if self.teacher and not (w.kd or w.own or w.hidden):
            raise ValueError("method.teacher has no effect: weights kd, own and hidden are 0; drop it")
        return self

    @model_validator(mode="after")
    def _is_rewarded_beside_the_loss(self) -> DistillConfig:
        if self.by_reward_alone:
            raise ValueError(
                "method.reward.beside=0 leaves nothing to distill: give the loss a weight beside the reward, "
                "such as 1, or take method.name=plain for rewards alone"
            )
        if self.reward and self.steps:
            raise ValueError(
                "method.reward rewards what follows a given answer prefix, and with steps=true it is "
                "written; set method.steps=false or method.reward=null"
            )
        if self.self_evaluation and self.steps:
            raise ValueError(
                "method.self_evaluation reads the end of a given answer prefix, and with steps=true it is "
                "written; set method.steps=false or method.self_evaluation=null"
            )
        return self

    @model_validator(mode="after")
    def _schedules_fit(self) -> DistillConfig:
        if self.entropy and (self.divergence.temperature != 1 or self.divergence.final_temperature):
            raise ValueError(
                "method.entropy sets the temperature of each position; drop divergence.temperature"
            )
        if self.entropy and not self.weights.kd:
            raise ValueError("method.entropy weighs the teacher's divergence, whose weight kd is 0; drop it")
        for name, value in () if self.weights.kd else self.divergence:
            usual = DivergenceSettings.model_fields[name].default
            if value != usual:
                raise ValueError(
                    f"method.divergence.{name}={value} has no effect: weight kd is 0; set it to "
                    f"{'null' if usual is None else usual}, or drop it"
                )
        if self.cache and self.divergence.final_temperature:
            raise ValueError("a cache knows single temperatures; drop divergence.final_temperature")
        if self.hidden and self.hidden.decay and "hidden" in self.final_weights:
            raise ValueError("method.hidden.decay lets its weight fall to 0; drop it or final_weights.hidden")
        for name, value in self.final_weights.items():
            if name not in DistillWeights.model_fields:
                choices = ", ".join(DistillWeights.model_fields)
                raise ValueError(f"method.final_weights.{name} is no weight; choices: {choices}")
            if value < 0 or not getattr(self.weights, name):
                raise ValueError(f"method.final_weights.{name}={value:g}: from above 0 to 0 or more")
        return self

    @property
    def spans(self) -> tuple[str, ...]:
        """Terms that ask what the tokens of an answer are."""
        return tuple(name for name in (*SPAN_TERMS, "grammar", "tool_choice") if getattr(self.weights, name))
