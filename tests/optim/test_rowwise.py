"""Row-wise Adam equals a loop over rows, and leaves the rows that were not read alone, to the bit."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quietreasoning.optim.optimizers import OPTIMIZERS, build_optimizer
from quietreasoning.optim.rowwise import DECAY, FLOOR, RowwiseAdam, rowwise_names, touched_rows
from quietreasoning.optim.settings import OptimConfig

ROWS, WIDTH = 30, 4


class Memory(nn.Module):
    rowwise = ("values",)

    def __init__(self, sparse=True):
        super().__init__()
        torch.manual_seed(0)
        self.values = nn.Parameter(torch.randn(ROWS, WIDTH))
        self.sparse = sparse

    def forward(self, ids):
        return F.embedding(ids, self.values, sparse=self.sparse)


class Model(nn.Module):
    def __init__(self, sparse=True):
        super().__init__()
        self.memory = Memory(sparse)
        self.shared = self.memory  # found once, by its first name
        self.out = nn.Linear(WIDTH, 5)

    def forward(self, ids):
        return self.out(self.memory(ids))


def reads(step, rows=ROWS):
    """Ids of one step, with repeats; a third of the rows is never read."""
    draw = torch.Generator().manual_seed(step)
    return torch.randint(0, rows, (7,), generator=draw) // 3 * 3 + torch.arange(7) % 2


def fit(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        ids = reads(step) % ROWS
        F.cross_entropy(model(ids), ids % 5).backward()
        optimizer.step()
        optimizer.zero_grad()


class Twin:
    """One Python loop over rows, numbers in float64."""

    def __init__(self, table, lr, beta2, eps):
        self.table, self.lr, self.beta2, self.eps = table.double().clone(), lr, beta2, eps
        self.square, self.count = [0.0] * len(table), [0] * len(table)
        self.all, self.steps = 0.0, 0

    def step(self, grad):
        means = [sum(value**2 for value in g.tolist()) / len(g) for g in grad.double()]
        touched = [mean for mean in means if mean]
        self.steps += 1
        self.all = DECAY * self.all + (1 - DECAY) * sum(touched) / len(touched)
        least = FLOOR * (self.all / (1 - DECAY**self.steps)) ** 0.5
        for i, (g, mean) in enumerate(zip(grad.double(), means, strict=True)):
            if mean:
                self.count[i] += 1
                self.square[i] = self.beta2 * self.square[i] + (1 - self.beta2) * mean
                rms = (self.square[i] / (1 - self.beta2 ** self.count[i])) ** 0.5
                self.table[i] -= self.lr * g / (max(rms, least) + self.eps)


@pytest.mark.parametrize("sparse", [True, False])
def test_it_equals_a_loop_over_rows(sparse):
    table = nn.Parameter(torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)))
    twin = Twin(table.detach(), 0.01, 0.9, 1e-8)
    optimizer = RowwiseAdam([table], lr=0.01, beta2=0.9)
    for step in range(12):
        loss = (F.embedding(reads(step) % ROWS, table, sparse=sparse) * torch.arange(WIDTH)).sin().sum()
        loss.backward()
        twin.step(table.grad.to_dense() if sparse else table.grad)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(table.detach().double(), twin.table, rtol=1e-5, atol=1e-6)
    assert optimizer.state[table]["count"].flatten().tolist() == twin.count


def test_a_row_of_much_gradient_moves_by_the_rate_and_one_of_little_by_little_however_late_they_come():
    table = nn.Parameter(torch.zeros(ROWS, WIDTH))
    optimizer = RowwiseAdam([table], lr=0.01)
    direction = torch.tensor([1.0, -2.0, 0.5, 3.0])
    for step in range(3):
        table.grad = torch.zeros(ROWS, WIDTH)
        table.grad[step] = direction
        table.grad[10 + step] = 1e-4 * direction
        table.grad[20:] = 1e-3
        optimizer.step()
    moved = table.detach().square().mean(1).sqrt()
    torch.testing.assert_close(moved[:3], torch.full((3,), 0.01), rtol=1e-3, atol=0)
    assert (moved[10:13] < 1e-5).all() and (moved[10:13] > 0).all()


def test_no_row_moves_further_than_the_rate_at_first_whatever_the_size_of_the_loss():
    moved = []
    for scale in (1.0, 1e-6, 1e6):
        table = nn.Parameter(torch.zeros(ROWS, WIDTH))
        optimizer = RowwiseAdam([table], lr=0.01, eps=0.0)
        table.grad = scale * torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(2))
        optimizer.step()
        moved.append(table.detach())
    torch.testing.assert_close(moved[0], moved[1])
    torch.testing.assert_close(moved[0], moved[2])
    assert moved[0].square().mean(1).sqrt().max() < 0.0101


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("sparse", [True, False])
def test_rows_without_a_read_keep_every_bit_under_any_optimizer(name, sparse):
    model = Model(sparse)
    before = model.memory.values.detach().clone()
    config = OptimConfig(name=name, lr=0.1, weight_decay=0.5, betas=(0.9, 0.95))
    optimizer = build_optimizer(model, dict(model.named_parameters()), config)
    fit(model, optimizer, 20)
    read = torch.cat([reads(step) % ROWS for step in range(20)]).unique()
    same = (model.memory.values == before).all(1)
    assert 0 < len(read) < ROWS and not same[read].any()
    same[read] = True
    assert same.all()


def test_sparse_and_dense_gradients_give_the_same_table_to_the_bit():
    tables = []
    for sparse in (True, False):
        model = Model(sparse)
        fit(model, build_optimizer(model, dict(model.named_parameters()), OptimConfig(lr=0.05)), 15)
        tables.append(model.memory.values)
    assert torch.equal(*tables)


def test_a_row_whose_gradient_is_zero_was_not_read():
    indices = torch.tensor([[4, 2, 4]])
    values = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 2.0]])
    rows, grads = touched_rows(torch.sparse_coo_tensor(indices, values, (6, 2), check_invariants=True))
    assert rows.tolist() == [4] and grads.tolist() == [[0.0, 2.0]]


def test_tables_are_found_by_their_module_and_the_rest_trains_as_before():
    model = copy.deepcopy(Model())
    model.memory.values = nn.Parameter(model.memory.values.detach().clone())  # as loading and sharding do
    assert rowwise_names(model) == {"memory.values"}
    config = OptimConfig(name="muon", lr=0.1, weight_decay=0.3, lr_scale={"memory": 10.0})
    optimizer = build_optimizer(model, dict(model.named_parameters()), config)
    assert [type(part).__name__ for part in optimizer.parts] == ["Muon", "AdamW", "RowwiseAdam"]
    (group,) = optimizer.parts[-1].param_groups
    assert group["params"] == [model.memory.values]
    optimizer.set_lr(0.5)
    assert group["lr"] == pytest.approx(0.5) and group["beta2"] == 0.95 and group["weight_decay"] == 0
    alone = build_optimizer(model, {"memory.values": model.memory.values}, OptimConfig(name="sgd"))
    assert [type(part) for part in alone.parts] == [RowwiseAdam]


def test_a_reloaded_state_goes_on_bit_for_bit_and_is_two_numbers_a_row_and_two_a_table():
    config = OptimConfig(lr=0.05)
    one = Model()
    optimizer = build_optimizer(one, dict(one.named_parameters()), config)
    fit(one, optimizer, 5)
    state = copy.deepcopy(optimizer.state())
    assert {k: (v.shape, v.nbytes) for k, v in state["memory.values"].items()} == {
        "square": ((ROWS, 1), 4 * ROWS),
        "count": ((ROWS, 1), 4 * ROWS),
        "steps": ((), 4),
        "mean": ((), 4),
    }
    two = Model()
    two.load_state_dict(one.state_dict())
    again = build_optimizer(two, dict(two.named_parameters()), config)
    again.load_state(state)
    fit(one, optimizer, 5, first=5)
    fit(two, again, 5, first=5)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_bf16_tables_learn_too():
    table = nn.Parameter(torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16))
    optimizer = RowwiseAdam([table], lr=0.5)
    F.embedding(torch.tensor([3, 3, 8]), table, sparse=True).sum().backward()
    optimizer.step()
    assert table.dtype == torch.bfloat16 and (table[3] < -0.25).all() and table[4].sum() == 0
