"""`load_rules("rules.yaml") -> RuleScorer`. A mistake there is one line: file, line, key, value, cure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from quietreasoning.config import UserError, suggest
from quietreasoning.evaluate.rules.acceptance import Acceptance
from quietreasoning.evaluate.rules.base import Rule, Table
from quietreasoning.evaluate.rules.budget import Budget
from quietreasoning.evaluate.rules.evidence import Borne, Cited
from quietreasoning.evaluate.rules.format import Format
from quietreasoning.evaluate.rules.legacy import Legacy
from quietreasoning.evaluate.rules.safety import Safety
from quietreasoning.evaluate.rules.scope import Scope
from quietreasoning.evaluate.rules.scorer import RuleScorer
from quietreasoning.evaluate.rules.working_spec import WorkingSpec
from quietreasoning.validation import validate
from quietreasoning.yaml_text import parse_yaml

KINDS: dict[str, type[Rule]] = {
    cls.kind: cls for cls in (Budget, Scope, Format, Cited, Borne, Safety, Acceptance, Legacy)
}


class RuleFile(WorkingSpec):
    """A file of rules; a working spec may stand in it, alone or beside them."""

    threshold: float = Field(0.5, ge=0, le=1)
    """Total from which a text is kept."""
    share: float = Field(0.9, gt=0, lt=1)
    """Share of texts that a gate needs kept: the whole 95 % interval must reach it."""
    rules: tuple[Table, ...] = ()
    """Each with id, kind, and what the kind takes."""


def load_rules(path: str | Path) -> RuleScorer:
    """Raises UserError where the file cannot be read or holds a mistake."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"rules file {path}: cannot be read ({why})") from None
    return parse_rules(text, str(path))


def parse_rules(text: str, where: str = "rules") -> RuleScorer:
    """`where` names the source in the UserError that a mistake raises."""
    values = parse_yaml(text, where)
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: must be a mapping with `rules:`, each a kind and its settings")
    lines = {key: f"line {line}" for key, line in _lines(text).items()}
    try:
        file = validate(RuleFile, values, lines)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    rules = [*file.as_rules()]
    for number, given in enumerate(file.rules):
        rules.append(_rule(given, f"rules.{number}", lines, where))
    if not rules:
        raise UserError(f"{where}: holds no rule. Give `rules:` with kinds among {', '.join(sorted(KINDS))}")
    ids = [rule.id for rule in rules]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise UserError(f"{where}: the id {twice[0]!r} stands twice; every rule needs its own")
    for waiver in file.waivers:
        if waiver.rule not in ids:
            raise UserError(f"{where}: waivers.rule={waiver.rule}: no such rule. {suggest(waiver.rule, ids)}")
    waived = {waiver.rule: waiver.reason for waiver in file.waivers}
    return RuleScorer(tuple(rules), file.threshold, file.share, waived, file.about())


def _rule(given: Mapping[str, Any], key: str, lines: Mapping[str, str], where: str) -> Rule:
    kind = given.get("kind")
    named = f"{where}, rule {str(given.get('id', key))!r} ({lines.get(key, 'line unknown')})"
    if kind is None:
        raise UserError(f"{named}: kind must be given. {suggest('', KINDS)}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{named}: kind={kind}: no such kind of rule. {suggest(str(kind), KINDS)}")
    inner = {name.removeprefix(f"{key}."): line for name, line in lines.items() if name.startswith(f"{key}.")}
    try:
        return validate(KINDS[kind], {name: value for name, value in given.items() if name != "kind"}, inner)
    except UserError as error:
        raise UserError(f"{named}: {error}") from None


def _lines(text: str) -> dict[str, int]:
    """Dotted key -> line, from 1; items of a list are named by their number."""
    found: dict[str, int] = {}

    def visit(node: yaml.Node, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if isinstance(name, yaml.ScalarNode):
                    found[f"{prefix}{name.value}"] = name.start_mark.line + 1
                    visit(value, f"{prefix}{name.value}.")
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                found[f"{prefix}{number}"] = item.start_mark.line + 1
                visit(item, f"{prefix}{number}.")

    root = yaml.compose(text, Loader=yaml.SafeLoader)  # valid: it was read before
    if root is not None:
        visit(root, "")
    return found
