"""Recall: closed it is the model bit for bit, open it says what it found; it never reads itself."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quietreasoning.backbone import BackboneConfig, LoraConfig, load_backbone, role_of
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.memory.episodic import EpisodicStore
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.ffn_input import read_ffn
from quietreasoning.memory.journal import Entry
from quietreasoning.memory.made import say_how_made
from quietreasoning.methods import METHODS
from quietreasoning.methods.recall.events import encoded, encoder_of, prepended, tokens_of
from quietreasoning.train.doctor import examine

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from contract_cases import MARKERS, VOCAB, backbone_for, batch_of, datastore, make, pad, scratch, store

ROWS = list(range(6))
Recall = METHODS["recall"]


def built(backbone, **settings):
    torch.manual_seed(1)
    return Recall(backbone, Recall.Config(**settings), MARKERS)


def filled(folder, entries, encoder, *, dim=32):
    settings = EpisodicSettings(backend="flat", ttl_days=30)
    with EpisodicStore(folder, dim=dim, encoder=encoder, settings=settings) as opened:
        opened.write_many(entries)
        say_how_made(folder, encoder=encoder, dim=dim, settings=settings)
    return str(folder)


def encode(backbone, ids_BT):
    with torch.no_grad():
        return encoded(backbone(ids_BT, role_of(ids_BT, Role.PROMPT)).hidden_BTD, ids_BT != IGNORE).numpy()


def said(method, prompt_BP, **options):
    return method.generate(prompt_BP, max_new_tokens=4, **options).answers


def test_closed_it_is_the_model_bit_for_bit(tmp_path):
    backbone, batch = scratch(), batch_of(ROWS)
    plain = make("plain", backbone)
    closed = built(backbone, episodic={"store": store(), "encoder": "rows"}, weights={"answer": 1}).eval()
    total = plain(batch).terms["answer"].total
    assert torch.equal(closed(batch).terms["answer"].total, total), "the gate begins closed"
    old = Entry(torch.ones(32).numpy(), "", (3, 4, 5), created=0.0)  # long forgotten
    opened = built(
        backbone,
        episodic={"store": filled(tmp_path, [old], "rows"), "encoder": "rows"},
        knn=datastore(backbone),
        weights={"answer": 1},
    ).eval()
    opened.store.reader.gate.data.fill_(0.7)
    opened.config.knn.__dict__["rare_entity_threshold"] = 1.0  # no question is as rare as that
    assert torch.equal(opened(batch).terms["answer"].total, total), "all events have expired"
    free = said(plain.eval(), batch.prompt_BP)
    assert said(opened, batch.prompt_BP) == free
    full = make("recall-knn", backbone).eval()
    assert said(full, batch.prompt_BP) != free
    assert said(full, batch.prompt_BP, control="zero") == said(full, batch.prompt_BP, effort=0) == free


def toy(backbone, folder, rows):
    """Questions whose answers stand in the store alone, behind the same words in another order."""
    draw = torch.Generator().manual_seed(3)
    prompts_BP = torch.stack([torch.randperm(36, generator=draw)[:5] for _ in range(rows)])
    answers_B1 = torch.randint(0, 36, (rows, 1), generator=draw)
    entries = [
        Entry(vector, "", (*prompt.flip(0).tolist(), *MARKERS.answer_prefix, int(answer)))
        for vector, prompt, answer in zip(encode(backbone, prompts_BP), prompts_BP, answers_B1, strict=True)
    ]
    batch = replace(batch_of(list(range(rows))), prompt_BP=prompts_BP, answer_BA=answers_B1)
    return batch, filled(folder, entries, encoder_of(backbone))


def rows_of(batch, rows):
    return type(batch)(**{name: value[rows] for name, value in vars(batch).items()})


def test_what_is_found_changes_the_logits_and_after_some_steps_the_answer(tmp_path):
    backbone = scratch(tie=True)
    batch, folder = toy(backbone, tmp_path, 340)
    method = built(backbone, episodic={"store": folder, "events": 1, "candidates": 2}, weights={"answer": 1})
    asked = rows_of(batch, slice(320, 340))

    def right(**options):
        given = [row[0] if row else None for row in said(method.eval(), asked.prompt_BP, **options)]
        return sum(a == b for a, b in zip(given, asked.answer_BA[:, 0].tolist(), strict=True))

    before = right()
    gate = method.store.reader.gate
    rest = [p for p in method.parameters() if p.requires_grad and p is not gate]
    optimizer = torch.optim.Adam([{"params": rest, "lr": 0.01}, {"params": [gate], "lr": 0.1}])
    frozen = {name: p.clone() for name, p in backbone.state_dict().items()}
    for step in range(24):
        optimizer.zero_grad()
        some = rows_of(batch, slice(step % 8 * 40, step % 8 * 40 + 40))
        method.train()(some).terms["answer"].total.backward()
        optimizer.step()
    after = right()
    assert before <= 3 and after >= 15, (before, after)
    assert right(control="zero") == before and right(control="shuffle") <= 4
    assert all(torch.equal(p, frozen[name]) for name, p in backbone.state_dict().items())


def test_a_row_reads_neither_itself_nor_what_it_may_not(tmp_path):
    backbone, batch = scratch(), batch_of(ROWS)
    vectors = encode(backbone, batch.prompt_BP)
    rows = tokens_of(batch.prompt_BP)
    entries = [Entry(v, "", (1, *row, 2)) for v, row in zip(vectors, rows, strict=True)]
    folder = filled(tmp_path, entries, "rows")
    method = built(
        backbone,
        episodic={"store": folder, "encoder": "rows", "corrupt": 0, "events": 6},
        weights={"answer": 1},
    )
    hidden = backbone(batch.prompt_BP, role_of(batch.prompt_BP, Role.PROMPT)).hidden_BTD
    for training, own in ((False, True), (True, False)):
        found = method.store.find(hidden, batch.prompt_BP, 6, training=training).found
        top = [row[0].entry.tokens[1:-1] for row in found]
        assert all((list(tokens) == row) == own for tokens, row in zip(top, rows, strict=True))
    method.config.episodic.__dict__["corrupt"] = 1.0 - 1e-9
    kept = method.store.find(hidden, batch.prompt_BP, 2, training=True)
    foreign = method.store.corrupted(kept, batch.prompt_BP, batch.keys_B)
    alone = method.store.corrupted(
        replace(kept, asked_BD=kept.asked_BD[2:3], found=kept.found[2:3]),
        batch.prompt_BP[2:3],
        batch.keys_B[2:3],
    )
    ids = [[one.entry.id for one in row] for row in foreign.found]
    assert ids != [[one.entry.id for one in row] for row in kept.found]
    assert [one.entry.id for one in alone.found[0]] == ids[2], "drawn by the row's own key"


@pytest.mark.parametrize("case", ["recall-knn", "recall-prepend-only"])
def test_the_doctor_finds_nothing(case):
    diagnosis = examine(make(case), batch_of(list(range(8))))
    assert diagnosis.healthy, [str(finding) for finding in diagnosis.findings]


def seen(query, keys, tokens, asked=None, own=-1.0, k=8):
    """Distances to the query and tokens of what `asked` finds, less what is the query's own, one by one."""
    first = ((keys - (query if asked is None else asked)) ** 2).sum(1).argsort()[:k]
    far = ((keys[first] - query) ** 2).sum(1)
    kept = far > own * (query**2).sum()
    order = far[kept].argsort()
    return far[kept][order], tokens[first][kept][order]


def lambda_of(part, query, far, tokens):
    near, told = (far / (query**2).sum() + 1e-4).log().tolist(), tokens.tolist()
    shares = (-far).softmax(0)
    other = [at for at, token in zip(near, told, strict=True) if token != told[0]]
    most = max(float(shares[tokens == token].sum()) for token in set(told))
    figures = torch.tensor([near[0], (other or near[-1:])[0] - near[0], most, math.log(len(set(told)))])
    inner = torch.tanh(part.found[0](figures))
    return 0.5 * torch.sigmoid(part.query(query.float()) + part.found[2](inner))[0].double(), shares


def stored(method):
    folder = Path(method.config.knn.keys)
    keys, values = (
        np.concatenate([np.load(f) for f in sorted(folder.glob(f"{n}-*.npy"))]) for n in ("keys", "values")
    )
    return torch.from_numpy(keys).double(), torch.from_numpy(values)


def mixture_by_hand(method, batch, foreign_BA=None, own=-1.0):
    """- log p of the answers' first two tokens, of rows not known as popular; how many they are."""
    keys, values = stored(method)
    total, count = torch.zeros((), dtype=torch.double), 0
    for row in range(len(batch)):
        if batch.rare_B[row] == 0:
            continue
        one = rows_of(batch, slice(row, row + 1))
        ids = [*tokens_of(one.prompt_BP)[0], *MARKERS.answer_prefix, *tokens_of(one.answer_BA)[0]]
        answer = len(tokens_of(one.answer_BA)[0])
        method.eval()
        hidden = method._read(one).answer_BAD[0]
        for at in range(min(answer, 2)):
            place = len(ids) - answer + at - 1
            query = read_ffn(method.backbone.model, torch.tensor([ids[: place + 1]]))[0, -1].double()
            asked = None if foreign_BA is None else keys[foreign_BA[row, at]]
            far, tokens = seen(query, keys, values, asked, own)
            share, shares = lambda_of(method.mixture.weight, query, far, tokens)
            p_knn = shares[tokens == ids[place + 1]].sum()
            p_lm = method.backbone.logits(hidden[at]).double().softmax(-1)[ids[place + 1]].detach()
            total = total - torch.log(share * p_knn + (1 - share) * p_lm)
            count += 1
    return total, count


def stir(part):
    for weights in part.parameters():
        weights.data.normal_(std=0.5)


def test_lambda_learns_by_the_likelihood_of_the_mixture():
    method, batch = make("recall-knn"), batch_of(ROWS)
    part = method.mixture.weight
    stir(part)
    method.store = None  # what is read changes nothing here but the model's share
    naive, count = mixture_by_hand(method, batch)
    wanted = torch.autograd.grad(naive, list(part.parameters()))
    term = method.eval()(batch).terms["mixture"].total  # a row may find itself
    got = torch.autograd.grad(term, list(part.parameters()))
    assert method.units(batch)["lookup"] == count > 4
    torch.testing.assert_close(term.double(), naive, rtol=1e-3, atol=1e-4)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=2e-2, atol=2e-3)

    method.config.knn.__dict__["corrupt"] = 0.0
    learned = method.train()(batch).terms["mixture"].total.detach()
    torch.testing.assert_close(learned.double(), mixture_by_hand(method, batch, own=1e-5)[0].detach())
    assert float(learned) > 1.05 * float(term.detach()), "in training a row does not find its own keys"
    method.config.knn.__dict__["corrupt"] = 1.0 - 1e-9
    foreign_BA = method.mixture.datastore.foreign(batch, 1.0 - 1e-9)
    alone = method.mixture.datastore.foreign(rows_of(batch, slice(2, 3)), 1.0 - 1e-9)
    assert torch.equal(alone[0], foreign_BA[2]) and foreign_BA.unique().numel() > 4, "drawn by the row's key"
    mixed = method.train()(batch).terms["mixture"].total.detach()
    torch.testing.assert_close(mixed.double(), mixture_by_hand(method, batch, foreign_BA, 1e-5)[0].detach())
    part.requires_grad_(False)
    assert not method.mixture._corrupt(), "foreign neighbours are for lambda alone"


def test_shuffled_neighbours_are_as_far_as_they_are():
    """Each row mixes in what the row before it finds, with its own distances and its own lambda."""
    backbone, batch = scratch(), batch_of(ROWS)
    method = built(backbone, knn=datastore(backbone), weights={"mixture": 1}).eval()
    stir(method.mixture.weight)
    keys, values = stored(method)
    texts = [[*row, *MARKERS.answer_prefix] for row in tokens_of(batch.prompt_BP)]
    queries = [read_ffn(backbone.model, torch.tensor([ids]))[0, -1].double() for ids in texts]
    wanted, misled = [], []
    for row, query in enumerate(queries):
        p_lm = backbone.model(torch.tensor([texts[row]])).logits[0, -1].double().softmax(-1)
        for said_of, own in ((wanted, query), (misled, queries[row - 1])):
            far, tokens = seen(own, keys, values, queries[row - 1])
            share, shares = lambda_of(method.mixture.weight, own, far, tokens)
            p = ((1 - share) * p_lm).index_add(0, tokens.long(), share * shares)
            said_of.append(int(p.argmax()))
    got = method.generate(batch.prompt_BP, max_new_tokens=1, control="shuffle").tokens
    assert [row[-1] for row in got] == wanted != misled


def test_budgets_hold_and_are_counted():
    method, prompt_BP = make("recall-knn").eval(), batch_of(ROWS).prompt_BP
    method.markers = replace(MARKERS, eos=-1)
    router, knn = method.mixture.router, method.mixture.datastore.knn
    for bias, lookups in ((50.0, 2), (-50.0, 0)):
        router.weight.data.zero_()
        router.bias.data.fill_(bias)
        knn.counts.lookups, method.spent = 0, type(method.spent)()
        method.generate(prompt_BP, max_new_tokens=5)
        assert (method.spent.answers, method.spent.queries) == (6, 6)
        assert method.spent.lookups == knn.counts.lookups == 6 * lookups
        cost, _ = method(batch_of(ROWS)).metrics["lookups"]
        assert float(cost) == 6 + sum(min(lookups, len(r)) for r in tokens_of(batch_of(ROWS).answer_BA))
    method.generate(prompt_BP, max_new_tokens=2, control="zero")
    assert method.spent.answers == 12 and method.spent.queries == 6


def test_a_workspace_model_recalls_the_same_in_any_company():
    backbone = backbone_for("workspace-trunk").eval()
    backbone.model.model.set_features(("pkm",))
    method = built(
        backbone,
        features=("pkm",),
        episodic={"store": store(), "encoder": "rows", "events": 2},
        knn=datastore(backbone),
        weights={"answer": 1, "mixture": 1, "rare": 1},
    ).eval()
    method.store.reader.gate.data.fill_(0.7)
    method.markers = replace(MARKERS, eos=-1)
    batch = batch_of(ROWS)
    together = said(method, batch.prompt_BP)
    alone = [said(method, pad([row]))[0] for row in tokens_of(batch.prompt_BP)]
    assert together == alone and together != said(method, batch.prompt_BP, control="zero")
    gold = replace(batch, answer_BA=torch.tensor(together)[:, :2])
    hits, count = method(gold).metrics["token_accuracy"]
    assert int(hits) == int(count), "training reads what writing reads"


def test_prepended_text_stands_before_the_prompt_whole_or_not_at_all():
    method, batch = make("recall-prepend-only").eval(), batch_of(ROWS)
    found = method._find(method._first_reading(batch.prompt_BP), batch.prompt_BP, None, None)
    for room in (None, 16):
        for row, prompt, events in zip(
            tokens_of(prepended(found.read, batch.prompt_BP, room)),
            tokens_of(batch.prompt_BP),
            found.read,
            strict=True,
        ):
            first, second = (list(one.entry.tokens) for one in events)
            fits = [
                r for r in ([*second, *first, *prompt], [*first, *prompt], prompt) if len(r) <= (room or 99)
            ]
            assert row == fits[0]
    backbone = method.backbone
    ids = prepended(found.read, batch.prompt_BP, None)
    plain = make("plain", backbone).eval()
    assert said(method, batch.prompt_BP) == said(plain, ids) != said(plain, batch.prompt_BP)


def test_what_would_go_stale_or_have_no_effect_is_refused(tmp_path):
    backbone = scratch()
    with pytest.raises(UserError, match=r"encoder=rows, and encoder=[0-9a-f]{64}:last"):
        built(backbone, episodic={"store": store()}, weights={"answer": 1}).open_stores()
    files = datastore(scratch(seed=5))
    with pytest.raises(UserError, match="model_sha256"):
        built(backbone, knn=files, weights={"mixture": 1}).open_stores()
    backbone.model.save_pretrained(tmp_path)
    config = BackboneConfig(path=str(tmp_path), tune="lora", lora=LoraConfig(rank=2))
    with pytest.raises(UserError, match="go stale"):
        built(load_backbone(config, VOCAB), episodic={"store": store(), "encoder": "rows"})
    prepend = {"store": store(), "encoder": "rows", "reading": "prepend"}
    with pytest.raises(UserError, match=r"weights\.answer"):
        built(backbone, episodic=prepend, weights={"answer": 1})
    tuned = built(load_backbone(config, VOCAB), episodic=prepend | {"project": False}, weights={"answer": 1})
    tuned(batch_of(ROWS)).terms["answer"].total.backward()
    assert all((p.grad is not None) == ("lora_" in name) for name, p in tuned.named_parameters())
    for wrong in ({"weights": {"mixture": 1}}, {"features": ("pkm",)}):
        with pytest.raises((UserError, ValueError), match=r"no effect|features"):
            built(backbone, episodic={"store": store(), "encoder": "rows"}, **wrong)
    with pytest.raises(ValueError, match=r"knn\.corrupt=0\.5 has no effect"):
        built(backbone, knn=files | {"corrupt": 0.5}, weights={"rare": 1})


def test_the_right_candidates_are_brought_near():
    method, batch = make("recall").eval(), batch_of(list(range(12)))
    method.store.query_map.map.weight.data.add_(0.1 * torch.randn(32, 32))
    term = method(batch).terms["retrieve"].total
    hidden = method.backbone(batch.prompt_BP, role_of(batch.prompt_BP, Role.PROMPT)).hidden_BTD
    found = method.store.find(hidden, batch.prompt_BP, 2, training=False)
    naive = 0.0
    for row, (asked_D, answer) in enumerate(zip(found.asked_BD, tokens_of(batch.answer_BA), strict=True)):
        scores = [
            10.0 * float(asked_D.detach() @ torch.tensor(one.entry.vector_D)) for one in found.found[row]
        ]
        words = " ".join(map(str, answer[:-1]))
        right = [f" {words} " in f" {' '.join(map(str, one.entry.tokens))} " for one in found.found[row]]
        if any(right):
            total = sum(map(math.exp, scores))
            naive -= math.log(sum(math.exp(s) for s, ok in zip(scores, right, strict=True) if ok) / total)
    assert naive > 0 and float(term) == pytest.approx(naive, rel=1e-4)
