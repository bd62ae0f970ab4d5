"""Old configuration files: what the keys of the first distillation scripts are called here.

TABLE has a line for each of our keys: which old keys give it, and how. What must have one value and what has
no counterpart stands in seed_absent.py, how files are read in seed_files.py. Old keys are named GROUP.KEY;
those without a group stand in any of HOLDERS, or alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.seed_code_mode import CODE_MODE
from quietreasoning.seed_seen import NOTHING, OFF, Line, Seen

HOLDERS = ("kd", "distillation", "distill", "train")
MAPPINGS = ("layer_mapping",)  # keys whose value is a mapping

SPELLINGS = {  # as it may be written -> as the tables call it
    "kl": "kl_weight",
    "ce_teacher": "ce_teacher_weight",
    "ce_gt": "ce_ground_truth_weight",
    "ce_gt_weight": "ce_ground_truth_weight",
    "ce_ground_truth": "ce_ground_truth_weight",
    "code_mode": "code_mode.weight",
    "halt": "halt_weight",
    "latent.halt_weight": "halt_weight",
    "optimizer.learning_rate": "optimizer.lr",
    "optimizer.clip": "optimizer.grad_clip",
    "optimizer.max_grad_norm": "optimizer.grad_clip",
    "optimizer.scheduler": "optimizer.schedule",
    "optimizer.lr_schedule": "optimizer.schedule",
    "quant.act_bits": "quant.activation_bits",
}


SHARE = "process_supervision_weight"
ENTROPY, LAYERS, QUANT = "use_entropy_scheduling", "use_intermediate_layers", "quant.enabled"
LENGTH, EARLY = "use_length_aware_kd", "early_tool.weight"
CLASSED = ("w_tool", "w_args", "w_integr", EARLY)
DEFAULTS = {"ce_teacher_weight": 0.2, "ce_ground_truth_weight": 0.2}
PROCESS = {"kl_weight": 0.5, "ce_teacher_weight": 0.3, "ce_ground_truth_weight": 0.2}


def _same(key: str) -> Callable[[Seen], Any]:
    return lambda seen: seen.value(key, NOTHING)


def _scaled(key: str, by: float = 1.0) -> Callable[[Seen], Any]:
    """A weight of the distillation part, which process supervision scales."""

    def value(seen: Seen) -> Any:
        weight = seen.number(key, PROCESS.get(key) if SHARE in seen else None)
        return NOTHING if weight is None else round(weight * by * seen.number(SHARE, 1.0), 12)

    return value


def _answer(seen: Seen) -> Any:
    if not (seen.keys() & {*DEFAULTS, SHARE}):
        return NOTHING
    weights = (seen.number(key, (PROCESS if SHARE in seen else DEFAULTS)[key]) for key in DEFAULTS)
    return round(sum(weights) * seen.number(SHARE, 1.0), 12)


def _process(key: str, default: float, seen: Seen) -> Any:
    return round((1 - seen.number(SHARE)) * seen.number(key, default), 12) if SHARE in seen else NOTHING


def _grammar(seen: Seen) -> Any:
    return True if seen.number(SHARE, 1.0) < 1 else NOTHING


def _temperature(seen: Seen) -> Any:
    """Entropy scheduling sets a temperature for each position, and then no other counts; nor does any where
    kl_weight is 0."""
    unused = seen.on(ENTROPY) or (seen.number("kl_weight") == 0)
    return 1.0 if unused else seen.value("kd_temperature", OFF)


def _name(seen: Seen) -> Any:
    name = seen.value("optimizer.name", NOTHING)
    return name.lower() if isinstance(name, str) else name


def _switch(key: str, seen: Seen) -> Any:
    return ({} if seen.on(key) else None) if key in seen else NOTHING


def _under(switch: str, key: str, default: Any, seen: Seen) -> Any:
    """A value that counts where its switch is on."""
    if switch not in seen:
        return NOTHING
    return seen.value(key, default) if seen.on(switch) else OFF


def _hidden(seen: Seen) -> Any:
    if LAYERS not in seen:
        return NOTHING
    return seen.number("intermediate_layer_weight", 0.1) if seen.on(LAYERS) else 0.0


def _layers(seen: Seen) -> Any:
    """Pairs (student, teacher), given so or as a mapping."""
    found = _under(LAYERS, "layer_mapping", NOTHING, seen)
    return [list(pair) for pair in found.items()] if isinstance(found, Mapping) else found


def _spans(seen: Seen) -> Any:
    """Terms of single classes of tokens ask what the tokens are."""
    return {} if seen.on(LENGTH) or any(seen.number(key, 0.0) for key in CLASSED) else NOTHING


def _length(seen: Seen) -> Any:
    if LENGTH not in seen:
        return NOTHING
    weight, slope = seen.number("length_kd_weight", 0.05), seen.number("length_kd_slope", 1.0)
    return round(weight * slope, 12) if seen.on(LENGTH) else 0.0


def _schedule(seen: Seen) -> Any:
    found = seen.get("optimizer.schedule")
    if found is None:
        return NOTHING
    if found.value == "adaptive_cosine" and "optimizer.warmup_steps" not in seen:
        raise UserError(
            f"{found.written}=adaptive_cosine: its warm-up followed from the number of parameters and is not "
            f"computed here; give optimizer.warmup_steps beside it (from {found})"
        )
    return "cosine" if found.value in ("adaptive_cosine", "short_run_cosine") else found.value


def _floor(seen: Seen) -> Any:
    return 0.01 if seen.value("optimizer.schedule") == "adaptive_cosine" else NOTHING


def _quant(key: str, default: Any, seen: Seen) -> Any:
    """Without a switch the file is one for quantised training as a whole."""
    if not seen.on(QUANT, True):
        return OFF
    return seen.value(key, default if QUANT in seen else NOTHING)


def _quant_start(seen: Seen) -> Any:
    if "quant.warmup_steps" not in seen:
        return _quant("quant.start_fraction", 0.8, seen)
    warmup, total = seen.number("quant.warmup_steps"), seen.number("quant.total_steps")
    if not total or "quant.start_fraction" in seen:
        raise UserError(
            f"{seen['quant.warmup_steps'].written}: give it with quant.total_steps and without "
            f"quant.start_fraction (from {seen['quant.warmup_steps']})"
        )
    return round(warmup / total, 12) if seen.on(QUANT, True) else OFF


def _wandb(seen: Seen) -> Any:
    on = seen.value("tracing.use_wandb", NOTHING)
    return on if on is NOTHING else "quietreasoning" if on else None


def _out(seen: Seen) -> Any:
    """A folder of runs alone names no run; `runs` is where they go anyway."""
    folder, name = seen.value("tracing.log_dir", "runs"), seen.value("tracing.run_name")
    if name:
        return f"{folder}/{name}"
    return OFF if "tracing.log_dir" in seen and folder == "runs" else NOTHING


TABLE = (
    Line("method.weights.kd", ("kl_weight", SHARE), _scaled("kl_weight"), f"times {SHARE}"),
    Line(
        "method.weights.answer",
        ("ce_teacher_weight", "ce_ground_truth_weight", SHARE),
        _answer,
        f"their sum, since the rows' text is the teacher's; .2 for one left out; times {SHARE}",
    ),
    Line("method.weights.tool_name", ("w_tool", SHARE), _scaled("w_tool"), f"times {SHARE}"),
    Line("method.weights.arg_value", ("w_args", SHARE), _scaled("w_args", 0.6), f"six tenths, times {SHARE}"),
    Line("method.weights.arg_key", ("w_args", SHARE), _scaled("w_args", 0.3), f"three tenths, times {SHARE}"),
    Line("method.weights.syntax", ("w_args", SHARE), _scaled("w_args", 0.1), f"a tenth, times {SHARE}"),
    Line("method.weights.integration", ("w_integr", SHARE), _scaled("w_integr"), f"times {SHARE}"),
    Line("data.format.spans", (*CLASSED, LENGTH), _spans, "on where one is above 0, or on"),
    Line("data.format.spans.grammar", (SHARE,), _grammar, f"on where {SHARE} is below 1"),
    Line(
        "method.weights.grammar",
        (SHARE, "loss_json_validity_weight"),
        partial(_process, "loss_json_validity_weight", 0.3),
        f"times 1 - {SHARE}; .3 where it is left out",
    ),
    Line(
        "method.weights.tool_choice",
        (SHARE, "loss_tool_select_weight"),
        partial(_process, "loss_tool_select_weight", 0.7),
        f"times 1 - {SHARE}; .7 where it is left out",
    ),
    Line(
        "method.divergence.temperature",
        ("kd_temperature", ENTROPY, "kl_weight"),
        _temperature,
        "1 under entropy scheduling, and where kl_weight is 0",
    ),
    Line("method.entropy", (ENTROPY,), partial(_switch, ENTROPY), "on with its defaults, or null"),
    *(
        Line(f"method.entropy.{key}", (key, ENTROPY), partial(_under, ENTROPY, key, default))
        for key, default in (
            *(("min_entropy", 2.0), ("max_entropy", 8.0)),
            *(("min_temperature", 1.5), ("max_temperature", 3.0)),
        )
    ),
    Line(
        "method.weights.hidden",
        (LAYERS, "intermediate_layer_weight"),
        _hidden,
        ".1 where it is left out; 0 where the layers are off",
    ),
    Line("method.hidden", (LAYERS,), partial(_switch, LAYERS), "on with its defaults, or null"),
    Line("method.hidden.layers", ("layer_mapping", LAYERS), _layers, "pairs, or a mapping"),
    Line(
        "method.weights.length",
        (LENGTH, "length_kd_weight", "length_kd_slope"),
        _length,
        "length_kd_weight (.05) times length_kd_slope (1); needs method.own, whose text it is about",
    ),
    Line("method.length", (LENGTH,), partial(_switch, LENGTH), "on with its defaults, or null"),
    Line(
        "method.length.hinge", ("length_kd_hinge", LENGTH), partial(_under, LENGTH, "length_kd_hinge", 0.15)
    ),
    Line("method.weights.early_tool", (EARLY,), _same(EARLY), "needs data.format.spans.dialect"),
    Line("method.early_tool", (EARLY,), partial(_switch, EARLY), "on above 0, or null"),
    Line(
        "method.early_tool.window",
        ("early_tool.window", EARLY),
        partial(_under, EARLY, "early_tool.window", 25),
    ),
    *CODE_MODE,
    Line("optim.name", ("optimizer.name",), _name),
    *(
        Line(f"optim.{new}", (f"optimizer.{old}",), _same(f"optimizer.{old}"))
        for new, old in {
            **{key: key for key in ("lr", "betas", "weight_decay", "warmup_steps")},
            "clip": "grad_clip",
        }.items()
    ),
    Line(
        "optim.schedule",
        ("optimizer.schedule",),
        _schedule,
        "adaptive_cosine and short_run_cosine are cosine; the first needs optimizer.warmup_steps",
    ),
    Line("optim.min_lr_ratio", ("optimizer.schedule",), _floor, ".01 of adaptive_cosine"),
    Line("train.quant", (QUANT,), partial(_switch, QUANT), "on, or null"),
    Line(
        "train.quant.start",
        ("quant.start_fraction", QUANT, "quant.warmup_steps", "quant.total_steps"),
        _quant_start,
        "or quant.warmup_steps / quant.total_steps; .8 where it is switched on without",
    ),
    Line(
        "train.quant.lr_multiplier",
        ("quant.lr_multiplier", QUANT),
        partial(_quant, "quant.lr_multiplier", 0.1),
        ".1 where it is switched on without",
    ),
    *(
        Line(f"train.quant.{key}", (f"quant.{key}", QUANT), partial(_quant, f"quant.{key}", NOTHING))
        for key in ("weight_bits", "activation_bits")
    ),
    Line("train.steps", ("quant.total_steps",), _same("quant.total_steps")),
    Line("track.tensorboard", ("tracing.use_tensorboard",), _same("tracing.use_tensorboard")),
    Line("track.console", ("tracing.console_log",), _same("tracing.console_log")),
    Line("track.wandb", ("tracing.use_wandb",), _wandb, "project quietreasoning, or null"),
    Line(
        "out", ("tracing.log_dir", "tracing.run_name"), _out, "log_dir/run_name; log_dir alone must be runs"
    ),
)
