"""`kind: scope`: which tools, files and domains may be used."""

from __future__ import annotations

import re
from functools import lru_cache

from pydantic import model_validator

from quietreasoning.evaluate.rules.base import Context, Finding, Mark, Rule, whole
from quietreasoning.evaluate.rules.traces import Place, calls_in, clean_path, diff_in, domains_in


class Scope(Rule):
    """Share of uses that are allowed; 1 where nothing is used. What is denied wins over what is allowed."""

    kind = "scope"

    allow_tools: tuple[str, ...] | None = None
    """Tools that may be called; null allows all, an empty list none."""
    deny_tools: tuple[str, ...] = ()
    """Tools that may not be called."""
    allow_paths: tuple[str, ...] | None = None
    """Folders, files or globs (`*` within a folder, `**` across) that may be touched."""
    deny_paths: tuple[str, ...] = ()
    """The same, that may not be touched."""
    allow_domains: tuple[str, ...] | None = None
    """Domains that addresses may name, with their subdomains."""
    deny_domains: tuple[str, ...] = ()
    """Domains that they may not name."""

    @model_validator(mode="after")
    def _something_is_bounded(self) -> Scope:
        own = [name for name in type(self).model_fields if name.startswith(("allow_", "deny_"))]
        if not any(getattr(self, name) not in (None, ()) or self._empty(name) for name in own):
            raise ValueError(f"nothing is bounded; give one of {', '.join(own)}")
        return self

    def _empty(self, name: str) -> bool:
        return name.startswith("allow_") and getattr(self, name) == ()

    def check(self, text: str, context: Context) -> Finding:
        calls = calls_in(text)
        diffs = (*diff_in(text).files, *(
            Place(place.name, None, None) for place in diff_in(str(context.facts.get("diff", ""))).files
        ))  # fmt: skip
        named = [Place(name, None, None) for name in context.fact_names("files")]
        paths = [*diffs, *(path for call in calls for path in call.paths), *named]
        tools = [call.place for call in calls]
        tools += [Place(name, None, None) for name in context.fact_names("tool_calls")]
        uses, marks = 0, []
        for what, places, allowed, denied, inside, fits in (
            ("tool", tools, self.allow_tools, self.deny_tools, str.__eq__, str.__eq__),
            ("file", paths, self.allow_paths, self.deny_paths, _inside, _under),
            ("domain", domains_in(text), self.allow_domains, self.deny_domains, _within, _within),
        ):
            if allowed is None and not denied:
                continue
            uses += len(places)
            for place in places:
                refused = any(fits(place.name, one) for one in denied)
                if refused or not (allowed is None or any(inside(place.name, one) for one in allowed)):
                    message = f"{what} {place.name or '(unreadable)'!r:.80} is out of scope"
                    at = place.start is not None
                    marks.append(Mark(place.start, place.end, message) if at else whole(text, message))
        return Finding(1 - len(marks) / uses if uses else 1.0, tuple(marks))


def _within(host: str, domain: str) -> bool:
    domain = domain.lower().rstrip(".")
    return host == domain or host.endswith(f".{domain}")


def _under(path: str, glob: str) -> bool:
    """A folder holds all below it."""
    return _glob(glob).fullmatch(clean_path(path)) is not None


def _inside(path: str, glob: str) -> bool:
    """What climbs out of the folder, or starts elsewhere, is inside only where the glob says the same."""
    here = clean_path(path)
    leaves = here[0] in "/~" or here == ".." or here.startswith("../")
    return _under(path, glob) and (not leaves or here[0] == clean_path(glob)[0])


@lru_cache(maxsize=256)
def _glob(glob: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", clean_path(glob))
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pattern = "".join(meanings.get(part, re.escape(part)) for part in parts)
    return re.compile(rf"{pattern}(?:/.*)?" if clean_path(glob) != "." else ".*", re.S)
