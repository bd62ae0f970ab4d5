"""Fields of experts and words that belong to each."""

FIELD_TERMS: dict[str, frozenset[str]] = {
    "physics": frozenset("distance speed time force energy mass".split()),
    "geometry": frozenset("area width length angle side circle triangle".split()),
    "chemistry": frozenset("salt grams mass volume strength acid solution".split()),
    "electricity": frozenset("voltage current ohms amps volts resistance".split()),
    "medicine": frozenset("dose doses pills patient treatment".split()),
    "cooking": frozenset("recipe guests eggs portions oven".split()),
    "finance": frozenset("cost price savings saves deposit interest profit".split()),
    "ecology": frozenset("smoke emission rate species habitat".split()),
    "logistics": frozenset("trips load truck route stock".split()),
}
