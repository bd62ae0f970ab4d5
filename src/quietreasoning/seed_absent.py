"""Old keys that must have one value here, and those that nothing here stands for."""

from __future__ import annotations

from dataclasses import dataclass

from quietreasoning.config import UserError
from quietreasoning.seed_keys import TABLE
from quietreasoning.seed_seen import Seen

READ = {key for line in TABLE for key in line.old}
FIXED = {  # old key -> what it must be, and why
    "ignore_index": ((-100,), "-100 marks what is no label, everywhere"),
    "tracing.json_log": ((True,), "log.jsonl is always written"),
    "quant.observer": (("minmax",), "ranges are the smallest and largest value"),
    "quant.per_channel": ((True,), "weights are quantised channel by channel"),
    "quant.fake_quant_in_attention": ((False,), "linear layers are quantised, attention products are not"),
    "quant.clamp_pre_softmax": ((False, None), "nothing is clamped; optim.qk_clip limits attention logits"),
}


@dataclass(frozen=True)
class Absent:
    """What has no counterpart: its keys, with a point at the end whole groups; which of them switch it; and
    what to do instead. Where a switch is off, the others say nothing and are taken."""

    what: str
    keys: tuple[str, ...]
    switches: tuple[str, ...]
    cure: str

    def holds(self, key: str) -> bool:
        return any(key == one or (one[-1] == "." and key.startswith(one)) for one in self.keys)


ABSENT = (
    Absent(
        "a ramp of code mode in steps",
        ("code_mode.weight_schedule.",),
        ("code_mode.enabled", "code_mode.weight"),
        "leave warmup_steps out and set method.ramp.until, a share of the stage",
    ),
    Absent(
        "a rule of which rows take a program, or a reward of programs,",
        ("code_mode.", "code_mode_pref."),
        ("code_mode.enabled", "code_mode.weight"),
        "leave it out, and give both where pairs are made (docs/code-mode.md)",
    ),
    Absent(
        "a rule score as a loss",
        ("use_caws_compliance", "caws_compliance_weight", "caws."),
        ("use_caws_compliance", "caws_compliance_weight"),
        "a score has no gradient: filter rows with quiet score --rules, or reward by rules (docs/rules.md)",
    ),
    Absent(
        "a count of claims as a loss",
        (
            *("use_claim_extraction", "claim_extraction_weight", "min_claim_ratio", "min_success_rate_ratio"),
            "log_claim_metrics",
        ),
        ("use_claim_extraction", "claim_extraction_weight"),
        "a count has no gradient: score texts with a rule of kind claims (docs/rules.md)",
    ),
    Absent(
        "a halting head beside distillation",
        ("latent.halt_head_enabled", "halt_weight", "halt_targets."),
        ("latent.halt_head_enabled", "halt_weight"),
        "method continuous has one: method.halt",
    ),
    Absent(
        "latent slots within distillation",
        tuple(f"latent.{key}" for key in ("enabled", "m", "c", "p", "training_loops")),
        ("latent.enabled",),
        "train rows with cot_steps by method continuous, whose stages replace them (method.visible_from)",
    ),
    Absent(
        "a self-evaluation head",
        ("use_self_evaluation", "self_evaluation_weight"),
        ("use_self_evaluation", "self_evaluation_weight"),
        "set method.self_evaluation.weight, of plain, pause, slots, continuous or (steps=false) distill",
    ),
    Absent(
        "a further part of the push towards early calls",
        ("early_tool.",),
        (),
        "what opens a call is counted by method.early_tool itself, the tokens before it are learned by "
        "method.weights.answer, and method.final_weights.early_tool lets the weight rise or fall",
    ),
    Absent(
        "a schedule of lengths",
        ("seq_lengths", "seq_length_boundaries", "shapes", "shape_probabilities"),
        (),
        "rows have the length they have and are never cut: set data.max_prompt_tokens and data.too_long",
    ),
    Absent(
        "a list of tool names", ("tool_names",), (), "the tools are those that each row declares in `tools`"
    ),
    Absent("the teacher's width", ("teacher.d_model",), (), "it is read from method.teacher.path"),
)


def taken(seen: Seen) -> set[str]:
    """Keys that these tables account for; UserError for one that asks for what is not here."""
    keys: set[str] = set()
    for absent in ABSENT:
        own = [key for key in seen if absent.holds(key) and key not in READ]
        switches = [key for key in absent.switches if key in seen]
        if own and all(seen.on(key) for key in switches):
            found = seen[(switches or own)[0]]
            raise UserError(
                f"{found.written}={found.value!r:.40}: {absent.what} is not here. Instead: {absent.cure} "
                f"(from {found})"
            )
        keys.update(own)
    for key in FIXED.keys() & seen.keys():
        allowed, why = FIXED[key]
        found = seen[key]
        if found.value not in allowed:
            choices = " or ".join(map(repr, allowed))
            raise UserError(f"{found.written}={found.value!r:.40}: must be {choices}: {why} (from {found})")
        keys.add(key)
    return keys
