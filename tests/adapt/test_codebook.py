"""Codebook features in a model: where codes stand, which fire, and others in their place."""

import pytest
import torch

pytest.importorskip("transformers")

from cases import batch, small

import penstock
from penstock import adapt
from penstock.core import ConfigError, DataError, ShapeError


def coded(at="heads+mlp", codes=24, active=2, name="llama"):
    return adapt.insert(small(name), adapt.Codebook(codes, active, at))


def test_codes_stand_where_they_are_asked_for_and_are_the_layer():
    handle = coded()
    assert list(handle.parts) == [f"layers.{i}.{branch}" for i in range(3) for branch in ("attention", "mlp")]
    assert list(coded("layer").parts) == ["layers.0", "layers.1", "layers.2"]
    given, core = [], handle.places["layers.1.attention"].core
    book = handle.parts["layers.1.attention"].book
    inside = book.register_forward_hook(lambda _, args, codes: given.append((args[0], codes.values)))
    outside = core.o_proj.register_forward_hook(lambda _, args, output: given.append((args[0], output)))
    handle.model(**batch("llama"))
    (heads, values), (mapped, _) = given
    inside.remove(), outside.remove()
    assert torch.equal(mapped, values)
    alone = penstock.build("codebook-features", dim=32, codes=24, active=2, groups=4)
    alone.load_state_dict(book.state_dict())
    torch.testing.assert_close(alone(heads).values, values)


def test_what_fires_is_read_counted_and_watched():
    handle, data = coded(), batch("llama")
    read = adapt.read_codes(handle, data)
    assert {alias: tuple(codes.shape) for alias, codes in read.items() if alias[:8] == "layers.2"} == {
        "layers.2.attention": (2, 12, 4, 2),
        "layers.2.mlp": (2, 12, 1, 2),
    }
    counts = adapt.count_codes(handle, [data, data])
    for alias, codes in read.items():
        for group in range(codes.shape[2]):
            expected = 2 * torch.bincount(codes[:, :, group].flatten(), minlength=24)
            assert torch.equal(counts[alias][group], expected)
    with penstock.inspect.watch(handle.model) as gates:
        handle.model(**data)
    assert len(gates.table()) == 6
    assert all(row.mechanism == "codebook-features" for row in gates.table())


def test_fitted_codes_stand_amid_what_the_model_gives_without_codes():
    handle = coded("mlp", codes=8, active=1)
    with handle.off():
        given = []
        hook = handle.places["layers.2.mlp"].host.register_forward_hook(lambda _, __, output: given.append(output))
        expected = handle.model(**batch("llama")).logits
        hook.remove()
    before = (handle.model(**batch("llama")).logits - expected).norm()
    adapt.fit_codes(handle, [batch("llama")], generator=torch.Generator().manual_seed(0))
    book, x = handle.parts["layers.2.mlp"].book, given[0].flatten(0, 1)
    a = book.normalize(x)
    torch.testing.assert_close(a.std(-1, correction=0).mean(), x.std(-1, correction=0).mean(), rtol=1e-3, atol=0)
    torch.testing.assert_close(a.mean(), x.mean(), rtol=1e-3, atol=1e-6)
    near = book.nearest(a)[:, 0, 0]
    for code in near.unique():
        torch.testing.assert_close(book.codes[0, code], a[near == code, 0].mean(0), rtol=1e-4, atol=1e-5)
    assert (handle.model(**batch("llama")).logits - expected).norm() < 0.8 * before
    many = coded("mlp", codes=40, active=1)
    adapt.fit_codes(many, [batch("llama")], rounds=0)
    book = many.parts["layers.2.mlp"].book
    torch.testing.assert_close(book(x).values, book.normalize(x).flatten(1))


def test_forced_codes_fire_and_others_are_chosen_as_before():
    handle, data = coded(active=1), batch("llama")
    chosen, plain = adapt.read_codes(handle, data), handle.model(**data).logits
    wanted = torch.full((12, 4, 1), -1)
    wanted[5, 2] = 7
    with adapt.force_codes(handle, {"layers.0.attention": wanted, "layers.1.mlp": 3}):
        with adapt.force_codes(handle, {"layers.1.mlp": 4}):
            assert (adapt.read_codes(handle, data)["layers.1.mlp"] == 4).all()
        forced = adapt.read_codes(handle, data)
        changed = handle.model(**data).logits
    expected = torch.where(wanted >= 0, wanted, chosen["layers.0.attention"])
    assert torch.equal(forced["layers.0.attention"], expected)
    assert not torch.equal(expected, chosen["layers.0.attention"])
    assert (forced["layers.1.mlp"] == 3).all()
    assert not torch.equal(changed, plain)
    assert torch.equal(handle.model(**data).logits, plain)


def test_the_distance_to_the_codes_is_added_to_the_loss_in_training():
    handle, data = coded(), batch("llama")
    words = {**data, "labels": data["input_ids"]}
    plain = handle.model(**words).loss
    handle.model.train()
    whole = handle.model(**words).loss
    handle.model(**data)
    assert handle.penalty() > 0
    handle.model(**data)
    torch.testing.assert_close(whole, plain + handle.penalty())


def test_it_says_what_it_needs():
    handle = coded()
    with pytest.raises(ConfigError, match=r"unknown place 'layers\.1\.mpl'"), adapt.force_codes(handle, {"layers.1.mpl": 1}):
        pass
    with pytest.raises(ConfigError, match="integers from -1 to 23, got 24"), adapt.force_codes(handle, {"layers.1.mlp": 24}):
        pass
    too_many = adapt.force_codes(handle, {"layers.1.mlp": torch.zeros(5, 1, 1, dtype=torch.long)})
    with too_many, pytest.raises(ShapeError, match=r"forced must broadcast to \(..., groups, active\)=\(2, 12, 1, 2\)"):
        handle.model(**batch("llama"))
    with pytest.raises(DataError, match="a batch"):
        adapt.count_codes(handle, [])
    with pytest.raises(ConfigError, match="codebook-features, got gated-attention"):
        adapt.read_codes(adapt.insert(small("llama"), adapt.GatedAttention()), batch("llama"))
    with pytest.raises(ConfigError, match="active must be at most codes"):
        penstock.build("codebook-features", dim=4, codes=2, active=3)
