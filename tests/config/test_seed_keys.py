"""Old configuration files: every key has its counterpart or is refused, and says where it came from."""

import pytest

from quietreasoning.build import resolve
from quietreasoning.config import UserError
from quietreasoning.layers import expand
from quietreasoning.recipe import load_recipe
from quietreasoning.run_config import RunConfig
from quietreasoning.seed_files import is_old, name_of
from quietreasoning.seed_keys import TABLE
from quietreasoning.validation import keys

RECIPE = """
backbone: {scratch: {width: 32, layers: 2, heads: 2}}
data: {task: tools, tokenizer: {train: words}}
method: {name: distill, teacher: {path: ./teacher}, weights: {kd: 0.5, answer: 0.5}}
train: {steps: 10}
"""
WORKER = """
kd: {kl_weight: 0.5, ce_teacher_weight: 0.3, kd_temperature: 2.0}
distillation: {ce_ground_truth_weight: 0.2, w_tool: 0.1, w_args: 0.5, w_integr: 0.3}
optimizer: {name: AdamW, lr: 2e-4, betas: [0.9, 0.95], weight_decay: 0.1, grad_clip: 1.0}
tracing: {log_dir: runs, run_name: worker, use_tensorboard: true, json_log: true}
latent: {enabled: false, m: 2, c: 1, p: 0.5, training_loops: 4}
train: {steps: 20, batch_size: 8}
seed: 3
"""
PROMISED = {  # the groups and keys that old files have
    "kd": "kl_weight ce_teacher_weight ce_ground_truth_weight w_tool w_args w_integr kd_temperature "
    "code_mode halt ignore_index use_entropy_scheduling min_entropy max_entropy min_temperature "
    "max_temperature use_intermediate_layers intermediate_layer_weight layer_mapping use_caws_compliance "
    "caws_compliance_weight use_claim_extraction claim_extraction_weight min_claim_ratio "
    "min_success_rate_ratio log_claim_metrics use_self_evaluation use_length_aware_kd length_kd_weight "
    "length_kd_hinge length_kd_slope",
    "distillation": "process_supervision_weight loss_json_validity_weight loss_tool_select_weight tool_names "
    "kl ce_teacher ce_gt",
    "distill.code_mode": "enabled weight weight_schedule.warmup_steps weight_schedule.start_weight",
    "code_mode_pref": "eligibility_rules.min_tools reward.prefer_ts_api_over_direct_tool weights.pos",
    "latent": "enabled m c p training_loops halt_head_enabled",
    "halt_targets": "judge_score_threshold delta_shrinking_threshold caws_tier warmup_steps",
    "quant": "enabled start_fraction lr_multiplier fake_quant_in_attention clamp_pre_softmax",
    "tracing": "log_dir use_tensorboard use_wandb json_log console_log run_name",
    "teacher": "d_model",
    "train": "seq_lengths kl_weight",
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes each text as a file and says their names; the first is the recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")

    def write(*texts):
        names = [f"{chr(97 + i)}.yaml" for i in range(len(texts))]
        for name, text in zip(names, texts, strict=True):
            (tmp_path / name).write_text(text, encoding="utf-8")
        return names

    return write


def laid(files, *texts):
    found = expand(load_recipe("r.yaml", configs=files(*texts)))
    return found.values["stages"][0], found.provenance


def test_every_new_key_of_the_table_is_a_setting():
    method = {"name": "distill", "entropy": {}, "hidden": {}, "early_tool": {}, "length": {}}
    stage = {"name": "x", "method": method, "data": {"format": {"spans": {}}}, "train": {"quant": {}}}
    other = {"name": "x", "method": {"name": "prefer", "ramp": {}}}
    both = [*keys(RunConfig, {"stages": [stage]}), *keys(RunConfig, {"stages": [other]})]
    known = [key.removeprefix("stages.x.") for key in both]
    for line in TABLE:
        assert any(f"{key}.".startswith(f"{line.new}.") for key in known), line.new


def test_every_promised_old_key_is_known():
    for group, names in PROMISED.items():
        unknown = [name for name in names.split() if name_of(f"{group}.{name}") is None]
        assert not unknown, group


def test_a_whole_old_file_resolves_and_says_where_each_value_stood(files):
    resolved = resolve("r.yaml", ["train.steps=7"], configs=files(WORKER))
    (stage,) = resolved.config.stages
    weights = {name: value for name, value in stage.method.weights if value}
    assert weights == pytest.approx(
        {
            **{"kd": 0.5, "answer": 0.5, "tool_name": 0.1, "integration": 0.3},
            **{"arg_value": 0.3, "arg_key": 0.15, "syntax": 0.05},
        }
    )
    assert stage.method.divergence.temperature == 2 and stage.data.format.spans is not None
    assert (stage.optim.name, stage.optim.lr, stage.optim.clip) == ("adamw", 2e-4, 1.0)
    assert (stage.train.steps, stage.train.batch_size, resolved.config.seed) == (7, 8, 3)
    assert resolved.config.out == "runs/worker" and resolved.config.track.tensorboard
    sources = resolved.provenance
    both = "config a.yaml: kd.ce_teacher_weight + distillation.ce_ground_truth_weight"
    assert sources["stages.main.method.weights.answer"] == both
    assert sources["stages.main.train.batch_size"] == "config a.yaml"
    assert sources["stages.main.train.steps"] == "command line"


def test_a_sum_and_a_switch_may_stand_in_two_files(files):
    stage, sources = laid(
        files,
        "kd: {ce_teacher: 0.3, ce_gt: 0.2, min_entropy: 1, kd_temperature: 2}",
        "method: {weights: {answer: 9}}",
        "kd: {ce_teacher: 0.4, use_entropy_scheduling: true}",
    )
    assert stage["method"]["weights"]["answer"] == pytest.approx(0.6)
    assert sources["stages.main.method.weights.answer"] == (
        "config c.yaml: kd.ce_teacher + config a.yaml: kd.ce_gt"
    )
    assert stage["method"]["entropy"]["min_entropy"] == 1
    assert stage["method"]["divergence"]["temperature"] == 1  # entropies set it
    off, _ = laid(files, "kd: {min_entropy: 1}", "kd: {use_entropy_scheduling: false}")
    assert off["method"]["entropy"] is None


@pytest.mark.parametrize(
    ("text", "section", "wanted"),
    [
        (
            "distillation: {process_supervision_weight: 0.7, w_tool: 0.5}",
            "method.weights",
            {"kd": 0.35, "answer": 0.35, "tool_name": 0.35, "grammar": 0.09, "tool_choice": 0.21},
        ),
        (
            "kd: {use_intermediate_layers: true, layer_mapping: {0: 1, 1: 3}}",
            "method.hidden",
            {"layers": [[0, 1], [1, 3]]},
        ),
        ("kd: {use_intermediate_layers: false}", "method", {"hidden": None}),
        ("kd: {use_length_aware_kd: true, length_kd_slope: 2}", "method.weights", {"length": 0.1}),
        ("kd: {use_length_aware_kd: true, length_kd_hinge: 0.3}", "method", {"length": {"hinge": 0.3}}),
        ("kd: {use_length_aware_kd: false, length_kd_hinge: 0.3}", "method", {"length": None}),
        ("early_tool: {weight: 0.05, window: 9}", "method", {"early_tool": {"window": 9}}),
        ("early_tool: {weight: 0.05}", "method.weights", {"early_tool": 0.05}),
        ("early_tool: {weight: 0.05}", "data.format", {"spans": {}}),
        ("kd: {kl_weight: 0, kd_temperature: 2}", "method.divergence", {"temperature": 1.0}),
        ("quant: {enabled: true}", "train.quant", {"start": 0.8, "lr_multiplier": 0.1}),
        (
            "quant: {weight_bits: 8, act_bits: 8, warmup_steps: 5, total_steps: 20}",
            "train.quant",
            {"weight_bits": 8, "activation_bits": 8, "start": 0.25},
        ),
        ("quant: {enabled: false, start_fraction: 0.5}", "train", {"quant": None, "steps": 10}),
        (
            "optimizer: {schedule: adaptive_cosine, warmup_steps: 9}",
            "optim",
            {"schedule": "cosine", "warmup_steps": 9, "min_lr_ratio": 0.01},
        ),
    ],
)
def test_what_old_keys_become(files, text, section, wanted):
    found, _ = laid(files, text)
    for name in section.split("."):
        found = found[name]
    assert {name: found[name] for name in wanted} == wanted


def test_keys_of_distillation_go_to_its_stages_alone(files, tmp_path):
    stages = "stages:\n- {name: a, method: {name: cot}}\n- {name: b, method: {name: distill}}"
    (tmp_path / "r.yaml").write_text(stages, encoding="utf-8")
    found = expand(load_recipe("r.yaml", configs=files("kd: {kl: 0.4, w_tool: 0.1}\ntrain: {steps: 3}")))
    a, b = found.values["stages"]
    assert a == {"name": "a", "method": {"name": "cot"}, "train": {"steps": 3}}
    assert b["method"]["weights"] == {"kd": 0.4, "tool_name": 0.1} and b["data"] == {"format": {"spans": {}}}
    assert found.provenance["stages.b.method.weights.kd"] == "config a.yaml: kd.kl, stage b"


def test_keys_of_code_mode_go_to_the_stage_that_prefers(files, tmp_path):
    stages = "stages:\n- {name: a, method: {name: plain}}\n- {name: b, method: {name: prefer}}"
    (tmp_path / "r.yaml").write_text(stages, encoding="utf-8")
    text = """
distill: {code_mode: {enabled: true, weight: 0.4, weight_schedule: {start_weight: 0.1}}}
code_mode_pref: {weights: {pos: 1, neg: 0.5}, eligibility_rules: {min_tools: 3}}
"""
    a, b = expand(load_recipe("r.yaml", configs=files(text))).values["stages"]
    assert a["method"] == {"name": "plain"}
    assert b["method"]["weights"] == {"prefer": 0.4, "code": 0.4, "unlikely": 0.2}
    assert b["method"]["ramp"] == {"start": 0.25} and b["data"]["format"]["spans"] == {"direct_calls": 3}
    off = expand(load_recipe("r.yaml", configs=files(text.replace("true", "false"))))
    assert off.values["stages"][1] == {"name": "b", "method": {"name": "prefer"}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("distill: {code_mode: {weight: 0.3, weight_schedule: {warmup_steps: 9}}}", r"method\.ramp\.until"),
        ("kd: {code_mode: 0.3}\ncode_mode_pref: {reward: {prefer: 1}}", "where pairs are made"),
        ("kd: {kl_wieght: 0.4}", r"kd\.kl_wieght=0\.4: no such old key .*Did you mean 'kl_weight'"),
        ("kd: {kl: 0.4, kl_weight: 0.5}", r"kd\.kl=0\.4 and kd\.kl_weight=0\.5 are two names"),
        ("kd: {min_entropy: 2}", r"kd\.min_entropy: is read only beside use_entropy_scheduling"),
        ("kd: {loss_json_validity_weight: 1}", "is read only beside process_supervision_weight"),
        ("latent: {enabled: true, m: 2}", r"latent\.enabled=True: latent slots .*continuous.*config a\.yaml"),
        ("latent: {m: 2}", r"latent\.m=2: latent slots"),
        ("kd: {use_caws_compliance: true}", "a score has no gradient"),
        ("distill: {code_mode: {enabled: true, weight: 0.3}}", "a preference for code"),
        ("kd: {code_mode: 0.1}", "a preference for code"),
        ("distillation: {tool_names: [a]}", "each row declares"),
        ("early_tool: {weight: 0.05, ramp_epochs: 5}", r"ramp_epochs=5: a further part .*final_weights"),
        ("kd: {length_kd_weight: 0.1}", "length_kd_weight: is read only beside use_length_aware_kd"),
        ("kd: {ignore_index: 0}", r"kd\.ignore_index=0: must be -100"),
        ("quant: {fake_quant_in_attention: true}", "must be False"),
        ("kd: {use_entropy_scheduling: no}", "must be true or false"),
        ("kd: {w_tool: a}", r"kd\.w_tool='a': must be a number"),
        ("optimizer: {schedule: adaptive_cosine}", "give optimizer.warmup_steps"),
        ("kd: {kl: 1}\nmethod: {name: cot}", "has 'kd', an old key, and 'method'"),
    ],
)
def test_what_is_refused(files, text, says):
    with pytest.raises(UserError, match=says):
        load_recipe("r.yaml", configs=files(text))


def test_what_is_switched_off_is_taken_and_new_files_are_not_old():
    for values in ({"train": {"steps": 3, "quant": {"start": 0.5}}}, {"optim": {"lr": 1}, "seed": 1}):
        assert not is_old(values, "f")
    assert is_old({"train": {"kl_weight": 0.4}}, "f") and is_old({"latent": {}}, "f")
