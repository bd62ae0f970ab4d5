"""The two shipped configurations, over a recipe that knows nothing of them."""

import pytest

from quietreasoning.recipe import load_recipe
from quietreasoning.run import resolve


@pytest.mark.parametrize(("name", "lr", "strength", "tau"), [("bake", 1e-4, 0.2, 30), ("rl", 5e-4, 0.1, 25)])
def test_a_recipe_takes_its_optimizer_from_a_base(name, lr, strength, tau, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"base: [plain/pointer, base/muon-grokfast-{name}]\n")
    assert load_recipe(str(recipe)).provenance["optim.qk_clip.tau"] == f"base base/muon-grokfast-{name}"
    optim = resolve(str(recipe), []).config.stages[0].optim
    assert (optim.name, optim.lr, optim.grokfast.strength, optim.qk_clip.tau) == ("muon", lr, strength, tau)
    assert optim.grokfast.decay is None and optim.betas == (0.95, 0.95)
    off = resolve(str(recipe), ["optim.qk_clip=null", "optim.grokfast=null"]).config.stages[0].optim
    assert off.qk_clip is None and off.grokfast is None
