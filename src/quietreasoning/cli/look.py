"""`quiet list | show | plan | doctor`: look before training."""

from __future__ import annotations

import typer

from quietreasoning.cli.guard import guarded
from quietreasoning.cli.train import CONFIG, JSON, RECIPE, SETTINGS


@guarded
def list_all() -> None:
    """Recipes, methods and tasks, one line each."""
    from quietreasoning.cli.output import print_table
    from quietreasoning.data.tasks import TASKS
    from quietreasoning.recipe import RECIPES, describe

    print_table(("recipe", ""), [(name, describe(name)) for name in RECIPES])
    typer.echo()
    print_table(("task", ""), [(name, task.describe) for name, task in TASKS.items()])
    typer.echo()
    from quietreasoning.methods import METHODS  # takes seconds: last

    print_table(
        ("method", ""),
        [(name, method.__doc__.strip().partition("\n")[0]) for name, method in METHODS.items()],
    )


@guarded
def show(
    recipe: str = typer.Argument(None, help="A name from `quiet list`, or a YAML file."),
    settings: list[str] = SETTINGS,
    config: list[str] = CONFIG,
    schema: bool = typer.Option(False, "--schema", help="Print the JSON schema of recipes instead."),
    json: str = JSON,
) -> None:
    """Every setting of a recipe, its value and where it came from."""
    from quietreasoning import run
    from quietreasoning.cli.output import print_table, write_json
    from quietreasoning.config import UserError
    from quietreasoning.validation import recipe_schema

    if schema:
        write_json(json or "-", recipe_schema(run.RunConfig))
        return
    if recipe is None:
        raise UserError("name a recipe, such as `quiet show cot/pointer`, or give --schema; see `quiet list`")
    resolved = run.resolve(recipe, settings or [], configs=config or [])
    rows = setting_rows(resolved.config.model_dump(mode="json"), resolved.provenance)
    if json is not None:
        write_json(json, [{"key": key, "value": value, "source": source} for key, value, source in rows])
    if json != "-":
        kept = brief(rows)
        print_table(
            ("setting", "value", "from"), [(key, _shown(value), source) for key, value, source in kept]
        )
        if len(kept) < len(rows):
            typer.echo(f"and {len(rows) - len(kept)} more that a stage takes over from the stage before it")


def setting_rows(values: dict, provenance: dict[str, str]) -> list[tuple[str, object, str]]:
    """(key, value, source) of every setting; a recipe without stages is shown without `stages.main.`."""
    from quietreasoning.layers import flatten

    flat = flatten(values)
    only = "stages.main." if len(values.get("stages", ())) == 1 else "\0"
    return [(key.removeprefix(only), value, _source(provenance, key)) for key, value in flat.items()]


def _source(provenance: dict[str, str], key: str) -> str:
    while key:
        if key in provenance:
            return provenance[key]
        key = key.rpartition(".")[0]
    return "default"


def brief(rows: list[tuple[str, object, str]]) -> list[tuple[str, object, str]]:
    """The rows, less what a stage takes over unchanged from the stage before it."""
    kept, last, before, current = [], None, {}, {}
    for key, value, source in rows:
        if key.startswith("stages."):
            _, stage, inner = key.split(".", 2)
            if stage != last:
                last, before, current = stage, current, {}
            current[inner] = (value, source)
            if before.get(inner) == (value, source):
                continue
        kept.append((key, value, source))
    return kept


def _shown(value: object) -> str:
    from quietreasoning.yaml_text import dump_yaml

    if isinstance(value, str) and not value.isprintable():
        return repr(value)
    return str(value) if isinstance(value, list) else dump_yaml([value]).removeprefix("- ").strip()


@guarded
def plan(
    recipe: str = RECIPE,
    settings: list[str] = SETTINGS,
    config: list[str] = CONFIG,
    json: str = JSON,
) -> None:
    """Steps, tokens, memory, time and disk that a recipe will take."""
    from quietreasoning import run
    from quietreasoning.cli.output import print_table, write_json

    figures = run.plan(run.resolve(recipe, settings or [], need_files=False, configs=config or []))
    write_json(json, figures)
    if json != "-":
        print_table(("what", "how much"), figures.items())


@guarded
def doctor(
    recipe: str = typer.Argument(None, help="Without one, the machine is described."),
    settings: list[str] = SETTINGS,
    config: list[str] = CONFIG,
    json: str = JSON,
) -> int:
    """Check this machine; or a recipe, on one batch of each stage."""
    from quietreasoning.cli.output import print_table, write_json

    if config and recipe is None:
        from quietreasoning.config import UserError

        raise UserError("--config goes with a recipe: name one, such as `quiet doctor cot/pointer`")
    if recipe is not None:
        from quietreasoning import run

        diagnoses = run.doctor(run.resolve(recipe, settings or [], configs=config or []))
        write_json(json, [diagnosis.as_dict() for diagnosis in diagnoses])
        if json != "-":
            for diagnosis in diagnoses:
                diagnosis.show()
        return 0 if all(diagnosis.healthy for diagnosis in diagnoses) else 1
    from quietreasoning.cli.machine import describe

    rows, warnings = describe()
    write_json(json, {"machine": dict(rows), "warnings": warnings})
    if json != "-":
        print_table(("what", ""), rows)
        for warning in warnings:
            typer.echo(f"warning: {warning}")
    return 0
