"""`quiet index episodic --text`: a text is read once, cut where it surprises, and nothing of it is lost."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone, role_of
from quietreasoning.capture import Teacher
from quietreasoning.config import UserError
from quietreasoning.contract import Role
from quietreasoning.data.tokenizers import train_words
from quietreasoning.indices import surprise
from quietreasoning.memory.episodic import EpisodicStore
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.surprise import SurpriseSettings, boundaries_numpy

WORDS = [f"w{i}" for i in range(30)]
SETTINGS = SurpriseSettings(cooldown=4)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    shape = ScratchConfig(layers=2, width=16, heads=2, mlp=16, context=24, init_std=0.5)
    tokenizer = train_words(WORDS)
    backbone = load_backbone(BackboneConfig(scratch=shape), len(tokenizer))
    return Teacher(backbone.eval(), tokenizer, "float32")


def ids_of(teacher, count, seed):
    drawn = torch.randint(len(WORDS), (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    text = " ".join(WORDS[i] for i in drawn)
    return text, torch.tensor(teacher.tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("count", [2, 24, 25, 61])
@pytest.mark.parametrize("kind", ["token", "bayes"])
def test_each_token_is_read_once_with_half_a_context_before_it(teacher, count, kind):
    _, ids_T = ids_of(teacher, count, 1)
    pieces = list(surprise.read(teacher.backbone, ids_T, SurpriseSettings(kind=kind)))
    tokens_T, states_TD, surprise_T = (torch.cat(part) for part in zip(*pieces, strict=True))
    assert torch.equal(tokens_T, ids_T) and surprise_T[0].isnan() and not surprise_T[1:].isnan().any()
    for t in range(1, count):  # twin: the window that it was new in, token by token
        first = 0 if t < 24 else 12 * ((t - 24) // 12 + 1)
        window_1T = ids_T[None, first : t + 1]
        hidden_1TD = teacher.backbone(window_1T, role_of(window_1T, Role.PROMPT)).hidden_BTD
        torch.testing.assert_close(states_TD[t], hidden_1TD[0, -1], rtol=1e-4, atol=1e-5)
        log_p_TV = teacher.backbone.logits(hidden_1TD)[0].log_softmax(-1)
        prior_V, after_V = log_p_TV[-2], log_p_TV[-1]
        wanted = -prior_V[ids_T[t]] if kind == "token" else (after_V.exp() * (after_V - prior_V)).sum()
        torch.testing.assert_close(surprise_T[t], wanted, rtol=1e-3, atol=1e-4)


def test_events_are_the_text_in_pieces(teacher, tmp_path):
    texts = [ids_of(teacher, count, count) for count in (90, 7)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in texts))
    settings = EpisodicSettings(backend="flat", dedupe_cosine=1.0)
    with EpisodicStore(tmp_path / "store", dim=16, encoder="e", settings=settings) as store:
        written = surprise.write_surprises(teacher, path, store, SETTINGS)
        (found,) = store.query(np.ones((1, 16), np.float32), 100)
        tokens = {one.entry.id: one.entry.tokens for one in found}
        events = [tokens[one.id] for one in written]
    wanted = []
    for _, ids_T in texts:
        found = [s for *_, s in surprise.read(teacher.backbone, ids_T, SETTINGS)]
        begins = boundaries_numpy(torch.cat(found).detach().numpy(), SETTINGS).nonzero()[0].tolist()
        edges = [0, *begins, len(ids_T)]
        wanted += [tuple(ids_T[a:b].tolist()) for a, b in pairwise(edges)]
    assert events == wanted and len(events) > 4


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"text": "w1 w2"}\n{"txt": 1}\n', r"a\.jsonl:2: needs a field text"),
        ("a.txt", "w1", "has 1 tokens"),
        ("a.txt", None, "cannot be read as text"),
    ],
)
def test_what_is_no_text_is_refused(teacher, tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    with (
        EpisodicStore(
            tmp_path / "s", dim=16, encoder="e", settings=EpisodicSettings(backend="flat")
        ) as store,
        pytest.raises(UserError, match=says),
    ):
        surprise.write_surprises(teacher, tmp_path / name, store, SETTINGS)
