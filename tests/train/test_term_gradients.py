"""The norm of each term's gradient is in the log, and measuring it changes nothing else."""

import pytest
import torch
from pydantic import ValidationError
from train_toys import Remembering, Toy, logged, run_toy, toy_batches, toy_plan

from quietreasoning.config import UserError
from quietreasoning.contract import StepOutput, Term
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.loop import train
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.state import TrainState
from quietreasoning.train.term_gradients import term_norms


def trained(method, **config):
    config = TrainConfig(**{"steps": 4, "batch_size": 8, "log_every": 1} | config)
    optim = OptimConfig(name="adamw", lr=0.05, clip=0.3)
    state = TrainState.create(method, config, optim)
    return list(train(state, toy_batches(8), config, optim)), state


@pytest.mark.parametrize("kind", [Toy, Remembering], ids=["dense", "sparse"])
def test_measuring_changes_no_bit_of_the_run(kind):
    torch.manual_seed(0)
    without, one = trained(kind(dropout=0.3), accumulate=2)
    torch.manual_seed(0)
    measured, two = trained(kind(dropout=0.3), accumulate=2, term_gradients=2)
    assert [set(r.gradients) for r in measured] == [set(), {"answer", "halt"}, set(), {"answer", "halt"}]
    assert [(r.loss, r.losses, r.grad_norm) for r in without] == [
        (r.loss, r.losses, r.grad_norm) for r in measured
    ]
    for (name, p), q in zip(one.method.named_parameters(), two.method.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_a_norm_is_that_of_the_terms_share_on_the_first_lane():
    records, _ = trained(Toy(), steps=1, accumulate=2, term_gradients=1)
    for name, term in Toy()(toy_batches(8)(0, 0, 2, 0, 1)).terms.items():
        method, whole = Toy(), toy_batches(8)(0, 0, 1, 0, 1)
        part = method(toy_batches(8)(0, 0, 2, 0, 1)).terms[name]
        (part.weight * part.total / method.units(whole)[term.unit]).backward()
        squares = sum(float(p.grad.square().sum()) for p in method.parameters() if p.grad is not None)
        assert records[0].gradients[name] == pytest.approx(squares**0.5, rel=1e-5)
    alone, _ = trained(Only(), steps=1, term_gradients=1)
    assert alone[0].gradients == {"answer": pytest.approx(alone[0].grad_norm, rel=1e-5), "idle": 0}


class Only(Toy):
    """One term with a gradient, and one that has none."""

    def forward(self, batch, carry=None):
        out = super().forward(batch, carry)
        idle = Term(out.terms["halt"].total.detach(), "sequence")
        return StepOutput({"answer": out.terms["answer"], "idle": idle})


def test_they_are_in_the_log_at_those_steps_alone(tmp_path):
    run_toy(tmp_path, toy_plan(steps=4, log_every=1, term_gradients=2))
    assert [step for step, norm in logged(tmp_path, "gradient/halt") if norm > 0] == [2, 4]
    assert [step for step, norm in logged(tmp_path, "gradient/answer") if norm > 0] == [2, 4]


def test_a_step_that_is_not_logged_is_not_measured():
    with pytest.raises(ValidationError, match=r"no multiple of log_every=10.* choose 0 or 20"):
        TrainConfig(steps=1, term_gradients=15)
    with pytest.raises(UserError, match=r"train\.compile=false"):
        trained(Toy(), compile=True, term_gradients=1)


def test_nothing_is_measured_of_a_weight_of_zero():
    method = Toy()
    out = method(toy_batches(8)(0, 0, 1, 0, 1))
    norms = term_norms(
        {"answer": Term(out.terms["answer"].total, "token", 0.0)}, {}, list(method.parameters())
    )
    assert norms == {"answer": 0}
