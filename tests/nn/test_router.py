"""The planner: hard decisions with the gradient of soft ones, nothing for parts that are not asked."""

import torch

from quietreasoning.nn.router import PARTS, Router, choose, neutral, use_or_skip

R, D, E = 6, 8, 5


def made(threshold=0.3):
    torch.manual_seed(0)
    sizes = {"experts": 2, "adapters": E, "active": 2, "episodic": (0, 1, 4), "knn_max": 0.5}
    router = Router(D, 4, **sizes, threshold=threshold)
    with torch.no_grad():
        for head in router.heads.values():
            head.weight.normal_(std=3.0)
    return router


POOLED = torch.randn(R, D, generator=torch.Generator().manual_seed(1))


def test_gates_are_zero_or_themselves_and_learn_either_way():
    gate = torch.tensor([0.1, 0.3, 0.31, 0.9], requires_grad=True)
    used = use_or_skip(gate, 0.3)
    assert used.tolist() == [0, 0, gate[2].item(), gate[3].item()]
    used.sum().backward()
    assert gate.grad.tolist() == [1] * 4, "a skipped module can be asked for again"


def test_a_plan_says_what_its_logits_say():
    plan = made()(POOLED, PARTS)
    gate = plan.logits["ssm"].sigmoid()
    assert torch.equal(plan.ssm_RG, torch.where(gate > 0.3, gate, 0.0))
    assert (plan.ssm_RG == 0).any() and (plan.ssm_RG > 0).any()
    torch.testing.assert_close(plan.temperature_R.log2(), plan.logits["temperature"][:, 0].tanh())
    assert plan.episodic_R.tolist() == [(0, 1, 4)[i] for i in plan.logits["episodic"].argmax(-1)]
    assert (plan.knn_R >= 0).all() and (plan.knn_R <= 0.5).all()
    share = plan.logits["adapters"].softmax(-1)
    for row in range(R):
        best = share[row].sort(descending=True).indices[:2]
        assert plan.choice.indices_RK[row].tolist() == best.tolist()
        torch.testing.assert_close(plan.choice.weights_RK[row], share[row, best] / share[row, best].sum())


def test_what_is_not_asked_is_not_there():
    plan = made()(POOLED, ("pkm",))
    assert (
        set(plan.logits) == {"pkm"} and plan.ssm_RG is plan.choice is plan.temperature_R is plan.knn_R is None
    )
    router = Router(D, 4, experts=0, adapters=E, active=2, episodic=(0, 1), knn_max=0.5)
    assert "ssm" not in router.heads


def test_a_row_is_planned_alone():
    router = made()
    whole = router(POOLED, PARTS)
    for row in range(R):
        alone = router(POOLED[row : row + 1], PARTS)
        for part, logits in whole.logits.items():
            torch.testing.assert_close(alone.logits[part][0], logits[row])


def test_a_fresh_router_lets_everything_run():
    """Gates begin near 0.4, above the threshold: a module that is skipped from the start learns late."""
    torch.manual_seed(0)
    router = Router(64, 32, experts=2, adapters=E, active=2, episodic=(0, 1), knn_max=0.5)
    plan = router(torch.randn(200, 64), PARTS)
    assert abs(plan.ssm_RG.mean() - 0.4) < 0.1 and (plan.ssm_RG > 0).float().mean() > 0.7


def test_without_a_workspace_all_that_is_asked_is_used():
    plan = neutral(3, ("ssm", "pkm", "temperature", "adapters"), made(), torch.device("cpu"))
    assert (
        plan.ssm_RG.tolist() == [[1, 1]] * 3 and plan.pkm_R.tolist() == plan.temperature_R.tolist() == [1] * 3
    )
    assert plan.choice.weights_RK.tolist() == [[0.5, 0.5]] * 3 and plan.logits == {}
    assert neutral(3, (), made(), torch.device("cpu")).choice is None


def test_more_adapters_than_there_are_cannot_be_chosen():
    choice = choose(torch.tensor([[0.2, 0.8]]), 5)
    assert choice.indices_RK.tolist() == [[1, 0]]
    torch.testing.assert_close(choice.weights_RK.sum(-1), torch.ones(1))
