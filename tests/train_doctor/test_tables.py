"""The doctor reads sparse gradients like dense ones, and its throwaway step moves no frozen table."""

from dataclasses import replace

import pytest
import torch

from quietreasoning.methods.plain import Plain
from quietreasoning.nn.product_key_memory import ProductKeyReader, ProductKeyTable
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.doctor import examine


class Remembering(Plain):
    """The backbone's final states read a memory before they are scored."""

    sparse = True

    def __init__(self, backbone, config, markers):
        super().__init__(backbone, config, markers)
        torch.manual_seed(0)
        self.table = ProductKeyTable(16, 8, 2, 8, 3, sparse_grad=self.sparse)
        self.reader = ProductKeyReader(backbone.width, 2, 8, 8)
        backbone.register_forward_hook(self.read)

    def read(self, _, args, states):
        hidden_BTD = states.hidden_BTD
        return replace(states, hidden_BTD=hidden_BTD + self.reader(hidden_BTD, self.table).out_RTD)


class Dense(Remembering):
    sparse = False


class Unread(Remembering):
    def read(self, _, args, states):
        self.reader(states.hidden_BTD, self.table)


def test_a_memory_is_healthy_and_weighs_the_same_sparse_or_dense(backbone, markers, batch):
    found = []
    for kind in (Remembering, Dense):
        backbone._forward_hooks.clear()
        diagnosis = examine(kind(backbone, Plain.Config(), markers), batch)
        assert diagnosis.healthy, [str(finding) for finding in diagnosis.findings]
        found.append(diagnosis.terms[0].gradient_norm)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_memory_that_no_term_reaches_is_named(backbone, markers, batch):
    findings = examine(Unread(backbone, Plain.Config(), markers), batch).findings
    assert "parameter table.values" in {finding.where for finding in findings}
    assert {finding.check for finding in findings} == {"unreached-parameter"}


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_a_table_that_is_not_enabled_stays(backbone, markers, batch, name):
    method = Remembering(backbone, Plain.Config(), markers)
    optim = OptimConfig(name=name, lr=0.1, weight_decay=0.1)
    assert examine(method, batch, optim=optim, enable=("backbone", "reader")).healthy
    method.table.values.requires_grad_(False)
    assert examine(method, batch, optim=optim).healthy
