"""What is put into a trained model keeps its promises: every method, on every architecture that it claims."""

import copy

import pytest
import torch

pytest.importorskip("transformers")

from cases import CASES, DECODERS, MODELS, batch, labels, small

from penstock import adapt
from penstock.core import ConfigError, DataError
from penstock.core.errors import PenstockError

PAIRS = [pytest.param(case, name, id=f"{key}-{name}") for key, case in CASES.items() for name in case.models]
DECODING = [
    pytest.param(case, name, id=f"{key}-{name}") for key, case in CASES.items() for name in case.models if name in DECODERS
]
ONE_EACH = [pytest.param(case, case.models[0], id=key) for key, case in CASES.items()]


def run(model, name, **words):
    with torch.no_grad():
        return model(**batch(name), **words).logits


def fitted(case, name):
    model = small(name)
    handle = adapt.insert(model, case.make(), case.where)
    case.ready(handle, batch(name))
    return model, handle


def hooks(model):
    return [
        (path, kind)
        for path, part in model.named_modules()
        for kind, value in vars(part).items()
        if ((kind.endswith("_hooks") or kind.startswith("_penstock")) and value) or kind in ("forward", "_replaced_by")
    ]


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_inserted_it_changes_nothing_that_the_paper_does_not(case, name):
    model = small(name)
    expected = run(model, name)
    adapt.insert(model, case.make(), case.where)
    if case.near is not None:
        assert (run(model, name) - expected).abs().max() <= case.near * expected.abs().max()


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_removed_it_leaves_nothing(case, name):
    model = small(name)
    expected, keys, before = run(model, name), list(model.state_dict()), hooks(model)
    flags = [p.requires_grad for p in model.parameters()]
    config = model.config.to_dict()
    handle = adapt.insert(model, case.make(), case.where)
    case.ready(handle, batch(name))
    changed = run(model, name)
    assert torch.equal(changed, expected) != case.changes
    assert handle.remove() is model
    assert list(model.state_dict()) == keys
    assert torch.equal(run(model, name), expected)
    assert hooks(model) == before
    assert [p.requires_grad for p in model.parameters()] == flags
    assert model.config.to_dict() == config


@pytest.mark.parametrize(("case", "name"), [pair for pair in PAIRS if pair.values[0].trains])
def test_only_its_parameters_are_trained(case, name):
    model, handle = fitted(case, name)
    model.train()
    model(**batch(name), **labels(name)).loss.backward()
    mine = {id(p) for p in handle.parameters()}
    assert mine
    for path, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in mine), path
    assert any(p.grad.abs().max() > 0 for p in handle.parameters())


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_a_saved_adapter_is_loaded_into_its_model(case, name, tmp_path):
    model, handle = fitted(case, name)
    expected = run(model, name)
    handle.save(tmp_path / "gates")
    handle.save(tmp_path / "gates")  # over the first
    assert sorted(path.name for path in (tmp_path / "gates").iterdir()) == ["adapter.json", "adapter.safetensors"]
    other = small(name)
    again = adapt.load(other, tmp_path / "gates")
    assert torch.equal(run(other, name), expected)
    assert again.state_dict().keys() == handle.state_dict().keys()


@pytest.mark.parametrize(("case", "name"), ONE_EACH)
def test_another_model_is_refused(case, name, tmp_path):
    _, handle = fitted(case, name)
    handle.save(tmp_path)
    with pytest.raises(DataError, match="other weights"):
        adapt.load(small(name, seed=7), tmp_path)
    assert adapt.load(small(name, seed=7), tmp_path, other=True)
    different = small(next(other for other in MODELS if other != name))
    with pytest.raises(DataError, match="the adapter is for a model with family"):
        adapt.load(different, tmp_path)
    assert not hooks(different)


@pytest.mark.parametrize(("case", "name"), [pair for pair in DECODING if pair.values[0].decodes])
def test_generation_with_a_cache_is_that_without(case, name):
    model, _ = fitted(case, name)
    words = {"max_new_tokens": 6, "do_sample": False}
    tokens = batch(name)["input_ids"]
    assert torch.equal(model.generate(tokens, **words), model.generate(tokens, use_cache=False, **words))


@pytest.mark.parametrize(("case", "name"), DECODING)
def test_padding_on_the_left_changes_nothing(case, name):
    model, _ = fitted(case, name)
    tokens = batch(name)["input_ids"]
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), tokens), 1)
    mask = (padded > 0).long()
    with torch.no_grad():
        places = (mask.cumsum(1) - 1).clamp_min(0)
        found = model(padded, attention_mask=mask, position_ids=places).logits[:, 3:]
    torch.testing.assert_close(found, run(model, name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("case", "name"), ONE_EACH)
def test_a_copy_is_a_model_of_its_own(case, name):
    model, handle = fitted(case, name)
    other = copy.deepcopy(model)
    expected = run(model, name)
    assert torch.equal(run(other, name), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(run(model, name), expected)
    handle.remove()
    assert hooks(other)


@pytest.mark.parametrize(("case", "name"), ONE_EACH)
def test_switched_off_it_is_the_model_alone(case, name):
    model, handle = fitted(case, name)
    changed = run(model, name)
    with handle.off():
        alone = run(model, name)
    assert torch.equal(run(model, name), changed)
    handle.remove()
    assert torch.equal(run(model, name), alone)


@pytest.mark.parametrize(("case", "name"), ONE_EACH)
def test_a_second_of_the_same_is_refused(case, name):
    model, handle = fitted(case, name)
    with pytest.raises(ConfigError, match="has one already"):
        adapt.insert(model, case.make())
    handle.remove()
    adapt.insert(model, case.make(), case.where)


@pytest.mark.parametrize("first", CASES)
@pytest.mark.parametrize("second", CASES)
def test_two_methods_stack_or_are_refused(first, second):
    name = "llama"
    one, two = CASES[first], CASES[second]
    if name not in one.models or name not in two.models:
        pytest.skip("not for this architecture")
    model = small(name)
    expected, keys = run(model, name), list(model.state_dict())
    below = adapt.insert(model, one.make(), one.where)
    message = ""
    try:
        above = adapt.insert(model, two.make(), two.where)
    except ConfigError as error:
        message = str(error)
    else:
        assert {id(p) for p in below.parameters()}.isdisjoint(id(p) for p in above.parameters())
        below.remove()
        above.remove()
    adapt.remove(model)
    assert not message or "remove" in message
    assert torch.equal(run(model, name), expected)
    assert list(model.state_dict()) == keys
    assert not hooks(model)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), [pair for pair in ONE_EACH if pair.values[0].compiles])
def test_it_compiles_as_one_graph(case, name):
    model, _ = fitted(case, name)
    words = {} if name in ("bert", "vit") else {"use_cache": False}
    expected = run(model, name, **words)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, name, **words), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("case", "name"), ONE_EACH)
def test_the_whole_model_is_saved_and_not_loaded_without_its_gates(case, name, tmp_path):
    model, _ = fitted(case, name)
    expected = run(model, name)
    adapt.save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match=r"loaded by penstock\.adapt\.from_pretrained"):
        type(model).from_pretrained(tmp_path)
    assert torch.equal(run(adapt.from_pretrained(tmp_path).eval(), name), expected)
    alone = type(model).from_pretrained(tmp_path, attn_implementation="sdpa")
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"loaded by penstock\.adapt\.from_pretrained"):
        type(model).from_pretrained(tmp_path / "plain")
    alone.config.attn_implementation = model.config.attn_implementation
    with pytest.raises(ConfigError, match="was saved with gates, and has none"):
        adapt.check(alone)
    assert adapt.check(model) is model


@pytest.mark.parametrize("wrong", [{"where": "blocks.*"}, {"where": lambda path, module: False}])
def test_a_place_that_is_not_there_is_named(wrong):
    with pytest.raises(ConfigError, match="where must match attention"):
        adapt.insert(small("llama"), adapt.GatedAttention(), **wrong)


def test_what_cannot_take_a_gate_says_so():
    with pytest.raises(ConfigError, match="Linear has no stack of layers with attention"):
        adapt.insert(torch.nn.Linear(2, 2), adapt.GatedAttention())
    with pytest.raises(ConfigError, match="what must be a method"):
        adapt.insert(small("llama"), "gateskip")
    with pytest.raises(ConfigError, match="did you mean 'gateskip'"):
        adapt.find("gate-skip")


@pytest.mark.parametrize(
    ("where", "count"),
    [("layers.1", 0), ("layers.1.*", 2), ("layers.0.*|layers.2.*", 4), ("*.mlp", 3), ("model.layers.2.self_attn", 1)],
)
def test_where_takes_patterns(where, count):
    model = small("llama")
    if not count:
        with pytest.raises(ConfigError, match="where must match"):
            adapt.insert(model, adapt.GateSkip(), where)
    else:
        assert len(adapt.insert(model, adapt.GateSkip(), where).parts) == count


def test_damaged_files_are_reported(tmp_path):
    handle = adapt.insert(small("llama"), adapt.GatedAttention())
    handle.save(tmp_path)
    with pytest.raises(DataError, match=r"adapter\.json is missing"):
        adapt.load(small("llama"), tmp_path / "elsewhere")
    (tmp_path / "adapter.safetensors").write_bytes(b"not tensors")
    with pytest.raises(PenstockError, match="damaged"):
        adapt.load(small("llama"), tmp_path)
