"""The README.md of a pushed run: front matter for the hub, and figures with what they do not show."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from quietreasoning.config import UserError
from quietreasoning.data.tasks import TASKS
from quietreasoning.evaluate.rows import LABELS, Report, Row, pool
from quietreasoning.evaluate.table import accuracy, figure, is_text, label, perplexity
from quietreasoning.methods import METHODS
from quietreasoning.push.portable import BASE
from quietreasoning.push.staging import Contents
from quietreasoning.report import findings

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
NONE_YET = "No evaluation yet: run `quiet eval`."


def make_card(
    contents: Contents, repo: str, *, license_id: str | None = None, revision: str | None = None
) -> ModelCard:
    """The card of a run that goes to `repo`. UserError for a licence that is no identifier."""
    if license_id is not None and not LICENSE.fullmatch(license_id):
        raise UserError(
            f"--license {license_id}: must be an identifier such as apache-2.0, mit, cc-by-4.0, or other"
        )
    method = contents.config.stages[contents.state["stage_index"]].method.name
    results = eval_results(contents.reports, method)
    data = ModelCardData(
        base_model=contents.base,
        library_name="quietreasoning",
        license=license_id,
        tags=["quietreasoning", "latent-reasoning", method],
        pipeline_tag="text-generation" if METHODS[method].answers else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        eval_results=results or None,
        model_name=repo.rpartition("/")[2] if results else None,
    )
    sections = [
        f"# {repo}",
        inspect.getdoc(inspect.getmodule(METHODS[method])).partition("\n\n")[0],
        _facts(contents, method),
        "## Stages",
        _stages(contents),
        "## Figures",
        *_figures(contents.reports),
        "## Use",
        _use(contents, repo, revision, METHODS[method].answers),
        "## Limits",
        _bullets(_limits(contents)),
        "## Licence",
        _licence(contents, license_id),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def eval_results(reports: Iterable[Report], method: str) -> list[EvalResult]:
    """The run's own rows for the hub's index; controls and other arms stand in the card's tables alone."""
    found = []
    for report in reports:
        for row in report.rows:
            if row["method"] != method or row["control"] is not None or row["effort"] is not None:
                continue
            text = row["kind"] == "text"
            what, edge = ("perplexity", "perplexity_") if text else ("accuracy", "")
            said = f"{row[f'{edge}low']:.4f} to {row[f'{edge}high']:.4f}, n = {row['n']}, seed {row['seed']}"
            found.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=re.sub(r"[^\w.-]+", "-", report.task),
                    dataset_name=report.task,
                    dataset_split=report.split,
                    metric_type=what,
                    metric_name=f"{what} (95 % interval {said})",
                    metric_value=row[what],
                )
            )
    return found


def _facts(contents: Contents, method: str) -> str:
    state, info, config = contents.state, contents.info, contents.config
    own, task = config.backbone.workspace, config.stages[-1].data.task
    base = contents.base and f"[{contents.base}](https://huggingface.co/{contents.base})"
    local = next((model for model in contents.models if model.name == BASE), None)
    fresh = f"fresh weights, workspace {own.preset}" if own is not None else "fresh weights"
    stage = f"{state.get('stage')} ({'finished' if state['stage_done'] else 'not finished'})"
    weights = "running averages" if info["pushed"]["averaged"] else "as trained"
    facts = {
        "method": method,
        "recipe": info.get("recipe"),
        "base model": base or (f"local folder {local.folder.name}" if local else fresh),
        "trained part": config.backbone.tune,
        "task": f"{task}: {TASKS[task].describe}",
        "checkpoint": f"{contents.checkpoint}, stage {stage}, weights {weights}",
        "seed": config.seed,
        "device": info.get("device"),
        "versions": ", ".join(f"{name} {number}" for name, number in info.get("versions", {}).items()),
        "commit": info.get("commit"),
    }
    return _table(("", ""), [(name, value) for name, value in facts.items() if value not in (None, "")])


def _stages(contents: Contents) -> str:
    rows = []
    for index, stage in enumerate(contents.config.stages):
        budget = (
            f"{stage.train.steps} steps" if stage.train.steps is not None else f"{stage.train.tokens} tokens"
        )
        reached = contents.state["stage_index"]
        if index > reached or (index == reached and not contents.state["stage_done"]):
            done = contents.state.get("step", 0) if index == reached else 0
            budget += f" planned, {done} steps taken"
        rows.append((stage.name, stage.method.name, stage.data.task, budget, stage.train.batch_size))
    return _table(("stage", "method", "task", "budget", "batch size"), rows)


def _figures(reports: Sequence[Report]) -> list[str]:
    """A table and its findings for each task and split."""
    groups: dict[tuple[str, str], list[Report]] = defaultdict(list)
    for report in reports:
        groups[report.task, report.split].append(report)
    parts = []
    for (task, split), found in groups.items():
        pooled = pool(row for report in found for row in report.rows)
        text = is_text(pooled)
        shown = findings.predicted(pooled) if text else findings.shown(found, pooled)
        hidden = findings.about_text(found) if text else findings.not_shown(found, pooled)
        parts.append(f"### {task}, {split} split")
        parts.append(_text_table(pooled) if text else _answer_table(pooled))
        parts.append(f"{_bullets(shown)}\n\nWhat is not shown:\n{_bullets(hidden)}")
    return parts or [NONE_YET]


def _answer_table(pooled: Sequence[Row]) -> str:
    head = ("arm", "", "accuracy % [95 %, Wilson]", "right", "n", "visible tokens", "passes", "ms, batch 1")
    if any(len(row["seeds"]) > 1 for row in pooled):
        head = (*head[:2], "accuracy % [95 %, over seeds]", *head[3:])
    return _table(
        head,
        [
            (
                label(row).strip(),
                LABELS.get(row["control"], row["kind"]),
                accuracy(row),
                row["correct"],
                row["n"] * len(row["seeds"]),
                figure(row["visible_tokens"]),
                figure(row["passes"]),
                figure(row["ms"]),
            )
            for row in pooled
        ],
    )


def _text_table(pooled: Sequence[Row]) -> str:
    head = ("arm", "perplexity [95 %]", "next token % [95 %]", "tokens", "windows")
    return _table(
        head, [(label(row), perplexity(row), accuracy(row), row["tokens"], row["n"]) for row in pooled]
    )


def _use(contents: Contents, repo: str, revision: str | None, answers: bool) -> str:
    folder = repo.rpartition("/")[2]
    branch = f" --revision {revision}" if revision else ""
    lines = [f"hf download {repo}{branch} --local-dir {folder}"]
    lines += [f'quiet generate {folder} --prompt "..."', f"quiet chat {folder}"] if answers else []
    block = "\n".join([*lines, f"quiet eval {folder}"])
    parts = [f"```\n{block}\n```"]
    for model in contents.models:
        if model.sent == "nothing":
            parts.append(
                f"Before that put the model `{model.folder.name}` into `{folder}/{model.name}/`: its weights "
                "are not here."
            )
    return "\n\n".join(parts)


def _limits(contents: Contents) -> list[str]:
    config, state = contents.config, contents.state
    data = config.stages[-1].data
    tasks = ", ".join(dict.fromkeys(stage.data.task for stage in config.stages))
    lines = [f"Trained on {tasks} alone; nothing is known of prompts of another kind."]
    if data.path:
        lines.append(f"The examples ({data.path}) are not here: `quiet eval` needs `data.path=FILE`.")
    if state["stage_index"] < len(config.stages) - 1 or not state["stage_done"]:
        lines.append("Training had not reached its end.")
    if contents.base and not config.backbone.revision and config.backbone.workspace is None:
        lines.append(f"No revision of {contents.base} was set: it is the newest one that is read.")
    lines += [
        f"The weights of {model.key} are not here." for model in contents.models if model.sent == "nothing"
    ]
    lines.append("There is no optimizer state here: `quiet train` cannot go on from it.")
    return lines


def _licence(contents: Contents, license_id: str | None) -> str:
    own = f"{license_id}." if license_id else "None was chosen; ask before you use this."
    if contents.base or contents.models:
        own += " The licence of the base model holds beside it."
    return own


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
