"""Sixteen synthetic tools: how each may be declared, asked for, carried out and reported.

Every name and parameter has two spellings and a schema shows one of them, so a call must be copied from the
schema. Names share words (book_hotel, book_table, find_hotel). A look-up is a stable number of its arguments,
which nothing but carrying it out gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from quietreasoning.data.tasks.base import digest

LARGEST = 99  # no whole number is larger
CITIES = tuple("paris rome oslo cairo lima tokyo delhi quito dakar sofia riga perth".split())
PEOPLE = tuple("ada ben cleo dora emil finn gwen hugo".split())
ROOMS = tuple("kitchen bedroom hall office bath attic".split())
ITEMS = tuple("milk bread eggs rice salt tea soap corn".split())
MONTHS = tuple("may june july august".split())
MONEY = tuple("euro dollar pound yen".split())
UNITS = tuple("meter yard rod pole".split())
NUMBERS = range(LARGEST + 1)
HALVES = tuple(n + 0.5 for n in range(10))
LOOKED_UP = {
    "hotel": ("astra", "bella", "corona", "delta"),
    "place": ("luna", "mare", "nord", "orto"),
    "sky": ("sun", "rain", "snow", "wind"),
}
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}

Values = Mapping[str, Any]  # a parameter by its first spelling -> its value


class Param(NamedTuple):
    """A parameter of a tool."""

    keys: tuple[str, str]  # its spellings; the first names it in `Values`
    values: Sequence[Any]  # what it may be
    said: str  # how a request says it, {} being the value; of a boolean `true|false`
    required: bool = True
    around: tuple[str, ...] = ()  # objects it may lie in, the outermost first
    enum: bool = False
    many: int = 0  # above 0: a list of up to so many different values

    def schema(self) -> dict[str, Any]:
        one: dict[str, Any] = {"type": _TYPES[type(self.values[0])]}
        if self.enum:
            one["enum"] = list(self.values)
        return {"type": "array", "items": one} if self.many else one

    def clause(self, value: Any) -> str:
        """The words of a request for this value."""
        if isinstance(value, bool):
            return self.said.split("|")[not value]
        return self.said.format(" and ".join(value) if self.many else value)


class Tool(NamedTuple):
    names: tuple[str, str]
    asks: tuple[str, ...]  # how a request begins
    params: tuple[Param, ...]
    run: Callable[[Values], dict[str, Any]]
    tells: str  # the answer, with values of the result and the arguments

    def told(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the result that the answer holds."""
        return {key: value for key, value in result.items() if f"{{{key}}}" in self.tells}


def _fact(values: Values, what: str, low: int = 10, high: int = LARGEST) -> int:
    """A stable number for a question about these arguments."""
    return low + digest(f"{what} {json.dumps(values, sort_keys=True)}") % (high - low + 1)


def _word(values: Values, what: str) -> str:
    words = LOOKED_UP[what]
    return words[_fact(values, what, 0, len(words) - 1)]


def _looks_up(*what: str) -> Callable[[Values], dict[str, Any]]:
    """A tool that knows these things about its arguments."""
    return lambda values: {
        each: _word(values, each) if each in LOOKED_UP else _fact(values, each) for each in what
    }


def _money(values: Values) -> dict[str, Any]:
    rate = _fact({key: values[key] for key in ("from", "to")}, "rate", 2, 11)
    return {"rate": rate, "sum": values["amount"] * rate}


def _length(values: Values) -> dict[str, Any]:
    factor = 2 * _fact({key: values[key] for key in ("from", "to")}, "factor", 1, 5)
    return {"factor": factor, "length": int(values["amount"] * factor)}


def _light(values: Values) -> dict[str, Any]:
    return {"before": _fact({"room": values["room"]}, "light"), "power": values["level"] // 2}


def _heat(values: Values) -> dict[str, Any]:
    before = _fact({"room": values["room"]}, "heat", 10, 20)
    return {"before": before, "minutes": 3 * abs(values["degrees"] - before)}


_IN, _WHEN, _WAY = ("where", "area"), ("when", "moment"), ("way", "ends")
CITY = Param(("city", "town"), CITIES, "in {}", around=_IN)
ROOM = Param(("room", "space"), ROOMS, "in the {}", around=_IN)
FROM = Param(("from", "origin"), CITIES, "from {}", around=_WAY)
TO = Param(("to", "target"), CITIES, "to {}", around=_WAY)
DAY = Param(("day", "date"), range(1, 29), "on day {}", around=_WHEN)
MONTH = Param(("month", "season"), MONTHS, "of {}", required=False, around=_WHEN, enum=True)
HOUR = Param(("hour", "time"), range(8, 21), "at hour {}", around=_WHEN)
GUESTS = Param(("guests", "people"), range(2, 10), "for {} guests")
WHO = Param(("person", "member"), PEOPLE, "with {}", around=("who", "team"))

POOL: tuple[Tool, ...] = (
    Tool(
        ("find_hotel", "search_hotel"),
        ("find a hotel", "where can i sleep"),
        (
            CITY,
            Param(("stars", "rank"), range(2, 6), "with {} stars", required=False),
            Param(("breakfast", "meal"), (True, False), "with breakfast|without breakfast", required=False),
        ),
        _looks_up("hotel", "price", "free"),
        "the hotel {hotel} in {city} costs {price}",
    ),
    Tool(
        ("book_hotel", "reserve_hotel"),
        ("book a hotel", "i need a bed"),
        (CITY, Param(("nights", "stay"), range(2, 10), "for {} nights"), GUESTS._replace(required=False)),
        _looks_up("code", "total"),
        "your hotel in {city} has code {code} and costs {total}",
    ),
    Tool(
        ("find_flight", "search_flight"),
        ("find a flight", "i want to fly"),
        (FROM, TO, Param(("class", "cabin"), ("low", "high"), "in {} class", required=False, enum=True)),
        _looks_up("flight", "price", "gate"),
        "flight {flight} to {to} costs {price}",
    ),
    Tool(
        ("book_flight", "reserve_flight"),
        ("book a flight", "i must travel by plane"),
        (FROM, TO, Param(("seats", "tickets"), range(2, 10), "with {} seats")),
        _looks_up("code", "total"),
        "your flight from {from} has code {code} and costs {total}",
    ),
    Tool(
        ("find_train", "search_train"),
        ("find a train", "i go by rail"),
        (FROM, TO, HOUR._replace(required=False)),
        _looks_up("track", "minutes", "price"),
        "the train to {to} leaves from track {track} and takes {minutes} minutes",
    ),
    Tool(
        ("book_table", "reserve_table"),
        ("book a table", "i want to eat out"),
        (
            CITY,
            GUESTS,
            Param(("food", "menu"), ("fish", "pasta", "curry"), "with {}", required=False, enum=True),
        ),
        _looks_up("place", "code"),
        "your table at {place} for {guests} has code {code}",
    ),
    Tool(
        ("get_weather", "read_weather"),
        ("how is the weather", "do i need a coat"),
        (CITY, DAY, MONTH),
        _looks_up("sky", "degrees", "damp"),
        "expect {sky} and {degrees} degrees in {city}",
    ),
    Tool(
        ("get_traffic", "read_traffic"),
        ("how is the traffic", "are the roads full"),
        (CITY, HOUR),
        _looks_up("delay", "cars"),
        "the delay in {city} is {delay} minutes",
    ),
    Tool(
        ("convert_money", "change_money"),
        ("change money :", "what do i get for"),
        (
            Param(("amount", "value"), range(2, 10), "{}"),
            FROM._replace(values=MONEY, said="{}", enum=True),
            TO._replace(values=MONEY, said="in {}", enum=True),
        ),
        _money,
        "that makes {sum} {to}",
    ),
    Tool(
        ("convert_length", "change_length"),
        ("convert a length :", "how long is"),
        (
            Param(("amount", "value"), HALVES, "{}"),
            FROM._replace(values=UNITS, said="{}", enum=True),
            TO._replace(values=UNITS, said="in {}", enum=True),
        ),
        _length,
        "that makes {length} {to}",
    ),
    Tool(
        ("set_light", "change_light"),
        ("set the light", "make it bright"),
        (
            ROOM,
            Param(("level", "power"), NUMBERS[1:], "to {}"),
            Param(("color", "tone"), ("red", "blue", "warm"), "in {}", required=False, enum=True),
        ),
        _light,
        "the light in the {room} went from {before} to {level}",
    ),
    Tool(
        ("set_heat", "change_heat"),
        ("set the heat", "make it warm"),
        (ROOM, Param(("degrees", "level"), range(15, 26), "to {} degrees"), HOUR._replace(required=False)),
        _heat,
        "the {room} went from {before} to {degrees} in {minutes} minutes",
    ),
    Tool(
        ("add_meeting", "book_meeting"),
        ("plan a meeting", "i must talk"),
        (WHO, DAY, HOUR),
        _looks_up("office", "code"),
        "you meet {person} in office {office} under code {code}",
    ),
    Tool(
        ("find_meeting", "get_meeting"),
        ("when is the meeting", "when did i plan to talk"),
        (WHO, DAY._replace(keys=("after", "since"), said="after day {}"), MONTH),
        _looks_up("slot", "office"),
        "you meet {person} at slot {slot} in office {office}",
    ),
    Tool(
        ("order_items", "add_items"),
        ("order", "please bring"),
        (
            Param(("items", "goods"), ITEMS, "{}", around=("cart", "list"), many=3),
            Param(("express", "fast"), (True, False), "by express|by normal mail", required=False),
        ),
        _looks_up("code", "total"),
        "your order has code {code} and costs {total}",
    ),
    Tool(
        ("get_price", "read_price"),
        ("what is the price", "how much do i pay"),
        (
            Param(("item", "good"), ITEMS, "of {}", around=("cart", "list")),
            Param(("count", "pieces"), range(2, 60), "for {} pieces"),
        ),
        _looks_up("price", "stock"),
        "{count} pieces of {item} cost {price}",
    ),
)
BY_NAME: Mapping[str, Tool] = {name: tool for tool in POOL for name in tool.names}


def execute(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a call in any spelling, nested or flat, once it is valid under its schema.

    ValueError where no tool has this name, or the tool does not have, or lacks, such a parameter.
    """
    tool = BY_NAME.get(name)
    if tool is None:
        raise ValueError(f"no tool is called {name!r:.40}")
    spelled = {key: param.keys[0] for param in tool.params for key in param.keys}
    values: dict[str, Any] = {}
    for key, value in _flat(arguments):
        if key not in spelled:
            raise ValueError(f"{name} has no parameter {key!r:.40}")
        values[spelled[key]] = value
    missing = [param.keys[0] for param in tool.params if param.required and param.keys[0] not in values]
    if missing:
        raise ValueError(f"{name} needs {missing[0]}")
    return tool.run(values)


def _flat(arguments: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Parameters without the objects around them."""
    found = []
    for key, value in arguments.items():
        found += _flat(value) if isinstance(value, Mapping) else [(key, value)]
    return found
