"""RULER's problems solved from the prompt alone, in English and in made-up words."""

import re
from collections import Counter


def solve(prompt: str) -> str:
    spaced = "\n\n" not in prompt  # made-up words
    text = prompt if spaced else re.sub(r"(?<=\w)([.,:?])(?=\s|$)", r" \1", " ".join(prompt.split()))
    body, _, question = text.removesuffix(" ?").rpartition(" wh" if spaced else " Wh")
    return (" " if spaced else ", ").join(answers(body, question))


def answers(text: str, question: str) -> list[str]:
    if match := re.fullmatch(r"at (?:is|are)(?: all)? the (number|code)s? of (.*)", question):
        noun, keys = match.groups()
        told = re.findall(rf"[Tt]he {noun} of (.+?) is (.+?) \.", text)
        return [value for key in keys.split(" , ") for name, value in told if name == key]
    if match := re.fullmatch(r"ich names stand for (.*)", question):
        known, names = {match[1]}, []
        for name, value in re.findall(r"[Ll]et (.+?) be (.+?) \.", text):
            if value in known:
                known.add(name)
                names.append(name)
        return names
    if match := re.fullmatch(r"ich (\d+) words come most often", question):
        words, n = text.partition(" : ")[2].split(), int(match[1])
        if "dots" in text.partition(" : ")[0]:
            return [word for word, _ in Counter(w for w in words if w != "...").most_common(n)]
        often = {word for word, _ in Counter(words).most_common(n)}
        return [word for word in dict.fromkeys(words) if word in often]
    relation, twin, name = re.fullmatch(r"at is the (\w+) of (the twin of )?(.*)", question).groups()
    places = {}
    for page in re.split(r"[Tt]his is about ", text)[1:]:
        who, _, facts = page.partition(" : ")
        places[who] = dict(re.findall(r"[Ii]ts (\w+) is (.+?) \.", facts))
    return [places[places[name]["twin"] if twin else name][relation]]
