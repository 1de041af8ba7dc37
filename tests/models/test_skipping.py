"""Models that skip tokens: what is computed, that it equals the masked form, and what a budget means."""

import pytest
import torch
from torch import nn

from penstock.core import ConfigError, DataError, auxiliary_losses
from penstock.models import Classifier, LanguageModel, build_model, calibrate, set_budget, shares
from penstock.ops.attention import rotary

SHAPE = {"vocabulary": 32, "dim": 16, "layers": 2}
FORMS = [(name, keys) for name in ("mixture-of-depths", "gateskip") for keys in ("kept", "all")]


def model_of(name, keys="kept", *, budget=0.5, dtype=torch.float64, seed=0, **more):
    torch.manual_seed(seed)
    model = LanguageModel(**SHAPE, skip={"mechanism": name, "keys": keys, "budget": budget, **more}, dtype=dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def tokens(batch=3, time=12, seed=1):
    """Return sequences in which no token comes twice, since equal ones tie but for rounding."""
    return torch.rand(batch, 32, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :time]


def masked_attention(mixer, x, seen):
    """Return attention of all positions to those of `seen` `(B, T)`, computed in full."""
    q, k, v = mixer.project(x)
    scores = torch.einsum("bthd,bshd->bhts", rotary(q), rotary(k)) / mixer.project.width**0.5
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() & seen.bool()[:, None, None, :]
    weights = torch.where(mask, scores, -torch.inf).softmax(-1).nan_to_num(0.0)
    return mixer.out(torch.einsum("bhts,bshd->bthd", weights, v).flatten(2))


def masked(model, x):
    """Return the logits with every layer computed for every token, and products with zeros."""
    x = model.embedding(x)
    for block in model.blocks():
        skip = block.skips[0]
        if skip.by_branch:
            for skip, norm, branch in zip(
                block.skips, (block.mixer_norm, block.channel_norm), (block.mixer, block.channel), strict=True
            ):
                h = norm(x)
                gate = torch.sigmoid(skip.to_gate(h.detach()))
                keep = skip.choose(gate.mean(-1))
                seen = keep if skip.keys == "kept" else torch.ones_like(keep)
                y = masked_attention(branch, h, seen) if branch is block.mixer else branch(h)
                x = x + keep.unsqueeze(-1) * gate * y
        else:
            scores = skip.router(x)
            by_predictor = skip.select == "level" and not skip.training
            keep = skip.choose((skip.predictor(x) if by_predictor else scores).squeeze(-1))
            seen = keep if skip.keys == "kept" else torch.ones_like(keep)
            a = masked_attention(block.mixer, block.mixer_norm(x), seen)
            x = x + keep.unsqueeze(-1) * scores * (a + block.channel(block.channel_norm(x + a)))
    return model.logits(model.norm(x))


def gradients(model, call, x):
    model.zero_grad()
    with auxiliary_losses(model):
        y = call(x)
    y.square().mean().backward()
    return y.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("select", ["top", "level"])
@pytest.mark.parametrize(("name", "keys"), FORMS)
def test_the_compacted_form_equals_the_masked_one_in_values_and_gradients(name, keys, select):
    model = model_of(name, keys).eval()
    if select == "level":
        calibrate(model, tokens(16, 12, seed=5))
    x = tokens(11)
    y, grads = gradients(model, model, x)
    expected, wanted = gradients(model, lambda x: masked(model, x), x)
    torch.testing.assert_close(y, expected)
    assert grads.keys() == wanted.keys()
    for key, grad in grads.items():
        torch.testing.assert_close(grad, wanted[key], msg=key)


@pytest.mark.parametrize(("name", "keys"), FORMS)
def test_in_training_too(name, keys):
    model = model_of(name, keys).train()
    y, grads = gradients(model, model, tokens())
    expected, wanted = gradients(model, lambda x: masked(model, x), tokens())
    torch.testing.assert_close(y, expected)
    for key in wanted:
        torch.testing.assert_close(grads[key], wanted[key], msg=key)


def rows_given(model, x):
    """Return how many tokens the channel mixers, and the queries and the keys of the attention, were computed for."""
    counts = {"channel": 0, "query": 0, "key": 0}

    def count(what):
        def hook(_module, inputs, _output):
            counts[what] += inputs[0].numel() // inputs[0].shape[-1]

        return hook

    handles = []
    for block in model.blocks():
        handles.append(block.channel.register_forward_hook(count("channel")))
        handles.append(block.mixer.project.query.register_forward_hook(count("query")))
        handles.append(block.mixer.project.key.register_forward_hook(count("key")))
    with torch.no_grad(), auxiliary_losses(model):
        model(x)
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "keys"), FORMS)
def test_skipped_tokens_are_not_computed(name, keys, training):
    model = model_of(name, keys, budget=0.25).train(training)
    counts = rows_given(model, tokens(4, 12))
    every, some = 2 * 4 * 12, 2 * 4 * 3
    assert counts == {"channel": some, "query": some, "key": every if keys == "all" else some}


@pytest.mark.parametrize("keys", ["kept", "all"])
def test_what_the_gate_has_read_is_not_read_again(keys):
    model, rows = model_of("gateskip", keys).eval(), []
    for block in model.blocks():
        for norm in (block.mixer_norm, block.channel_norm):
            norm.register_forward_hook(lambda _m, given, _y: rows.append(given[0].shape[:2].numel()))
    model(tokens(4, 12))
    assert rows == [48] * 4


def test_few_tokens_are_computed_to_fill_up_sequences_that_keep_fewer():
    model = model_of("gateskip", "all").eval()
    calibrate(model, tokens(64, 24, seed=7))
    with shares(model) as found:
        counts = rows_given(model, tokens(32, 24))
    kept = [round(share * 32 * 24) for share in found]
    assert counts["channel"] == kept[1] + kept[3]
    assert kept[0] + kept[2] <= counts["query"] < 1.25 * (kept[0] + kept[2])


@pytest.mark.parametrize("name", ["mixture-of-depths", "gateskip"])
def test_choosing_by_level_needs_no_later_token(name):
    model = model_of(name).eval()
    calibrate(model, tokens(32, 12, seed=7))
    x = tokens(2)
    changed = torch.cat([x[:, :6], (x[:, 6:] + 1) % 32], 1)
    with torch.no_grad():
        torch.testing.assert_close(model(changed)[:, :6], model(x)[:, :6])


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("name", ["mixture-of-depths", "gateskip"])
def test_a_calibrated_budget_is_kept_on_other_data(name, budget, layers):
    torch.manual_seed(0)
    model = LanguageModel(32, 16, layers, skip=name)
    set_budget(model, budget)
    calibrate(model, torch.randint(32, (1024, 32)))
    with torch.no_grad(), shares(model.eval()) as found:
        model(torch.randint(32, (1024, 32)))
    assert abs(sum(found) / len(found) - budget) < 0.02


@pytest.mark.parametrize("budget", [0.25, 0.4, 0.5, 0.75, 0.9])
@pytest.mark.parametrize(("name", "keys"), FORMS)
def test_of_tokens_whose_scores_tie_a_share_is_computed(name, keys, budget):
    model = model_of(name, keys, budget=budget).eval()
    few = torch.arange(32).remainder(2).expand(64, 32)
    x, other = (few.gather(1, torch.rand(64, 32, generator=torch.Generator().manual_seed(s)).argsort(1)) for s in (3, 4))
    calibrate(model, x)
    with torch.no_grad(), shares(model) as found:
        model(other)
    assert abs(found[0] - budget) < 0.02
    assert abs(sum(found) / len(found) - budget) < 0.02


def test_where_places_are_the_same_too_the_next_layers_make_up_for_it():
    model = model_of("gateskip", "all", budget=0.4).eval()
    x = torch.tensor([7, 8, 9]).expand(64, 3)
    calibrate(model, x)
    with torch.no_grad(), shares(model) as found:
        model(x)
    assert sorted(round(3 * share) for share in found) == [1, 1, 1, 2]


def test_a_budget_of_one_computes_all_and_a_level_above_all_scores_nothing():
    model = model_of("gateskip", "all").eval()
    set_budget(model, 1.0)
    assert rows_given(model, tokens())["channel"] == 2 * 36
    calibrate(model, tokens())
    assert rows_given(model, tokens())["channel"] == 2 * 36
    for block in model.blocks():
        for skip in block.skips:
            skip.level.fill_(torch.inf)
    assert rows_given(model, tokens()) == {"channel": 0, "query": 0, "key": 0}
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()), model.logits(model.norm(model.embedding(tokens()))))


@pytest.mark.parametrize("budget", [0, -0.1, 1.5, float("nan"), True, "half"])
def test_a_budget_that_is_no_share_is_refused(budget):
    with pytest.raises(ConfigError, match="budget"):
        model_of("gateskip", budget=budget)
    with pytest.raises(ConfigError, match="budget: target must be a share above 0 and at most 1"):
        set_budget(model_of("gateskip"), budget)


def test_scores_that_are_not_numbers_are_an_error_that_says_where():
    model = model_of("mixture-of-depths").eval()
    with torch.no_grad():
        model.embedding.weight[3] = torch.nan
    with pytest.raises(DataError, match="mixture-of-depths: the scores of token"):
        model(torch.tensor([[1, 3, 2, 2]]))


def test_ties_go_to_the_tokens_that_come_first():
    model = model_of("gateskip", "all").eval()
    with shares(model) as found, torch.no_grad():
        model(torch.full((2, 8), 4))
    assert found == [0.5] * 4
    skip = model.blocks()[0].skips[0]
    assert skip.choose(torch.zeros(1, 6, dtype=torch.float64)).tolist() == [[1, 1, 1, 0, 0, 0]]


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ConfigError, match="'gla' cannot: give keys='kept'"):
        LanguageModel(**SHAPE, mixer="gla", skip="gateskip")
    with pytest.raises(ConfigError, match="skip must be a Skip, and 'swiglu' is not"):
        LanguageModel(**SHAPE, skip="swiglu")
    with pytest.raises(ConfigError, match="nothing that skips by a budget"):
        set_budget(LanguageModel(**SHAPE), 0.5)
    with pytest.raises(ConfigError, match="mixture-of-depths cannot go token by token where it looks ahead"):
        model_of("mixture-of-depths", dtype=torch.float32).generate(tokens(1, 3), 2)


CACHED = [
    *((name, keys, mixer) for name, keys in FORMS for mixer in ("attention", "gated-attention", "local-attention")),
    ("mixture-of-depths", "kept", "gla"),
    ("gateskip", "kept", "hgrn"),
]


def stepping(name, keys, mixer):
    torch.manual_seed(0)
    kind = {"mechanism": mixer, "window": 4} if mixer == "local-attention" else mixer
    model = LanguageModel(32, 16, 3, mixer=kind, skip={"mechanism": name, "keys": keys, "budget": 0.5}, dtype=torch.float64)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    calibrate(model, torch.randint(32, (32, 12)))
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize(("name", "keys", "mixer"), CACHED)
def test_token_by_token_it_is_as_on_the_whole(name, keys, mixer):
    model, x = stepping(name, keys, mixer), torch.randint(32, (3, 12), generator=torch.Generator().manual_seed(9))
    expected, found, state = model(x), [], None
    for part in x.split([5, 1, 1, 3, 1, 1], 1):
        logits, state = model.extend(part, state)
        found.append(logits)
    torch.testing.assert_close(torch.cat(found, 1), expected)
    longer = x[:, :4]
    for _ in range(6):
        longer = torch.cat([longer, model(longer)[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(x[:, :4], 6), longer)


@torch.no_grad()
@pytest.mark.parametrize(("name", "keys"), FORMS)
def test_token_by_token_what_is_skipped_is_not_computed(name, keys):
    model, x, rows = stepping(name, keys, "attention"), torch.randint(32, (3, 12)), {"query": 0, "channel": 0}

    def count(what):
        return lambda _m, given, _y: rows.update({what: rows[what] + given[0].shape[0] * given[0].shape[1]})

    for block in model.blocks():
        block.mixer.project.query.register_forward_hook(count("query"))
        block.channel.register_forward_hook(count("channel"))
    found, state = [], None
    with shares(model) as each:
        for part in x.split(1, 1):
            state = model.extend(part[:1], state)[1]
            found += each
            each.clear()
    kept = torch.tensor(found).view(12, 3, -1).sum((0, 1)).tolist()
    assert rows == {"query": kept[0], "channel": kept[-1]}
    assert 0 < kept[0] < 36


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["gated-attention", "local-attention"])
def test_other_mixers_see_what_is_skipped(mixer):
    """Of a layer that computes all tokens, the outputs at some places are the same where only those are asked for."""
    block = stepping("gateskip", "all", mixer).blocks()[0].mixer
    x, places = torch.randn(2, 9, 16, dtype=torch.float64), torch.tensor([[0, 3, 8], [1, 2, 7]])
    wanted = places.unsqueeze(-1).expand(-1, -1, 16)
    torch.testing.assert_close(block.forward_at(x.gather(1, wanted), places, x), block(x).gather(1, wanted))


def test_a_recurrence_does_not_see_what_is_skipped():
    torch.manual_seed(0)
    model = LanguageModel(**SHAPE, mixer="gla", skip="mixture-of-depths", dtype=torch.float64).eval()
    block, x = model.blocks()[0], torch.randn(1, 8, 16, dtype=torch.float64)
    with torch.no_grad():
        places = block.skips[0].router(x).squeeze(-1).topk(4).indices.sort().values
        alone = x[:, places[0]]
        y = alone + block.mixer(block.mixer_norm(alone))
        y = y + block.channel(block.channel_norm(y)) - alone
        torch.testing.assert_close(block(x)[:, places[0]], alone + block.skips[0].router(alone) * y)


def test_a_list_of_skips_is_repeated_over_the_layers_and_stored_with_the_model(tmp_path):
    choices = [None, {"mechanism": "mixture-of-depths", "budget": 0.25}]
    model = LanguageModel(32, 16, 4, skip=choices).eval()
    assert [hasattr(block, "skips") for block in model.blocks()] == [False, True, False, True]
    calibrate(model, tokens(32))
    model.save(tmp_path)
    again = LanguageModel.load(tmp_path).eval()
    assert [block.skips[0].level for block in again.blocks()[1::2]] == [b.skips[0].level for b in model.blocks()[1::2]]
    assert build_model(model.spec()).spec() == model.spec()


def test_a_classifier_skips_too():
    model = Classifier(3, 16, 2, features=4, skip={"mechanism": "gateskip", "budget": 0.5}).eval()
    with torch.no_grad(), shares(model) as found:
        assert model(torch.randn(5, 8, 4)).shape == (5, 3)
    assert found == [0.5] * 4


def test_losses_of_skips_are_collected():
    model = model_of("gateskip", sparsity=0.4).train()
    with auxiliary_losses(model) as losses:
        model(tokens())
    assert sorted(losses.named()) == [f"layers.{layer}.skips.{branch}.sparsity" for layer in (0, 1) for branch in (0, 1)]
    assert 0 < losses.total().item() < 0.4


@pytest.mark.slow
@pytest.mark.parametrize(("name", "keys"), FORMS)
def test_compiled_the_top_is_one_graph_and_equals_the_eager_form(name, keys):
    torch._dynamo.reset()
    model = model_of(name, keys).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for time in (8, 12):
        torch.testing.assert_close(compiled(tokens(2, time)), model(tokens(2, time)))


@pytest.mark.slow
def test_compiled_a_level_stops_the_program_and_skips_nonetheless():
    torch._dynamo.reset()
    model = model_of("mixture-of-depths").eval()
    calibrate(model, tokens(32, 12))
    x = tokens(2)
    seen = []
    handle = model.blocks()[0].channel.register_forward_hook(lambda _m, inputs, _y: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        expected, rows = model(x), seen.pop()
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(x), expected)
    handle.remove()
    assert seen[-1] == rows < x.shape[1]
    with pytest.raises((torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError)):
        torch.compile(model, fullgraph=True, backend="eager")(x)
