"""A model like any other: saved, found by AutoModel, tied, checkpointed, stretched; and its loss by hand."""

import math

import pytest
import torch
from made_models import ALL, CHUNK, awake, close, config, fresh, ids_of
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from quietreasoning.workspace import WorkspaceConfig, WorkspaceForCausalLM

IDS = ids_of(3, 3 * CHUNK + 2)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_comes_back(tied, tmp_path):
    model = awake(tie_word_embeddings=tied, features=ALL[:4])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is WorkspaceForCausalLM and again.config.features == ALL[:4]
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())
    with torch.no_grad():
        wanted = model(IDS)
        assert torch.equal(again(IDS).logits, wanted.logits)
        body = AutoModel.from_pretrained(tmp_path)
        assert torch.equal(body(IDS).last_hidden_state, model.model(IDS).last_hidden_state)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == again.config.to_dict()


def test_checkpointed_blocks_give_the_same_gradients():
    grads, hits = [], []
    for checkpointed in (False, True):
        model = awake(features=ALL[:4]).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(IDS, labels=IDS).loss.backward()
        grads.append({n: p.grad.to_dense() for n, p in model.named_parameters() if p.grad is not None})
        hits.append(model.model.table.hits)
    assert torch.equal(*hits) and hits[0].any(), "what is computed twice is counted once"
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 40
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_longer_context_by_yarn():
    long = config(max_position_embeddings=32).extended(128)
    assert (long.max_position_embeddings, long.rope_parameters["factor"]) == (128, 4.0)
    torch.manual_seed(0)
    model = WorkspaceForCausalLM(long).eval()
    ids = ids_of(1, 100)
    with torch.no_grad():
        stretched = model(ids).logits
        plain = WorkspaceForCausalLM(config(max_position_embeddings=32)).eval()
        plain.load_state_dict(model.state_dict())
        assert torch.isfinite(stretched).all() and not torch.allclose(plain(ids).logits, stretched)
    assert WorkspaceConfig.from_dict(long.to_dict()).rope_parameters == long.rope_parameters


def test_labels_are_shifted_once():
    """Three tokens: the mean of two cross-entropies, by hand; a masked one is left out."""
    model, ids = awake(), torch.tensor([[5, 9, 2]])
    with torch.no_grad():
        log_p = model(ids).logits[0].log_softmax(-1)
        first, second = -log_p[0, 9], -log_p[1, 2]
        close(model(ids, labels=ids).loss, (first + second) / 2)
        close(model(ids, labels=torch.tensor([[-100, -100, 2]])).loss, second)
        close(model(ids, labels=ids, num_items_in_batch=4).loss, (first + second) / 4)


def test_a_fresh_model_knows_nothing():
    with torch.no_grad():
        loss = fresh(initializer_range=0.02)(IDS, labels=IDS).loss
    assert abs(float(loss) - math.log(48)) < 0.05


def test_embeddings_stand_for_their_ids_and_all_states_are_returned():
    model = awake()
    with torch.no_grad():
        embeds = model.get_input_embeddings()(IDS)
        out = model(inputs_embeds=embeds, output_hidden_states=True)
        assert torch.equal(out.logits, model(IDS).logits)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(out.hidden_states[0], embeds)


def test_one_inner_step_works():
    model = awake(inner_steps=1, mean_steps=1)
    with torch.no_grad():
        trace = model(IDS, trace=True).trace
    assert all(a.executed_R.eq(1).all() for a in trace.advances if a is not None)
    model.train()(IDS, labels=IDS).loss.backward()


def test_int8_values_serve(tmp_path):
    model = awake()
    with torch.no_grad():
        wanted = model(IDS).logits
        model.model.table.quantize_()
        model.config.pkm_int8 = True
        served = model(IDS).logits
        close(served, wanted, 0.1)
        model.save_pretrained(tmp_path)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, served)
