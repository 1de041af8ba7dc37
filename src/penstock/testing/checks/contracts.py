"""What the contracts themselves promise."""

import torch

from penstock.core import Codes, Halting, Mechanism, Routing, Selection
from penstock.testing.applies import to
from penstock.testing.failure import CheckError, expect, same
from penstock.testing.harness import block, call, draw, gates_held, make, run, tensors

SAME_SHAPE = ("Activation", "ChannelMixer", "SequenceMixer", "ImageMixer")


def check_output(cls: type[Mechanism]) -> None:
    """What comes out has the type and the shape that the contract states."""
    module = make(cls)
    for batch, time in ((1, 1), (2, 7)):
        inputs = draw(module, batch=batch, time=time)
        out, sizes = call(module, inputs), tuple(inputs[0].shape)
        forms = {"Router": Routing, "TokenSelector": Selection, "Codebook": Codes}
        if form := forms.get(cls.card.contract):
            expect(isinstance(out, form), f"returns {type(out).__name__}, the contract says {form.__name__}")
            continue
        if cls.card.contract == "Skip":
            expect(isinstance(out, tuple) and len(out) == 2, "does not return (y, Halting)")
            expect(isinstance(out[1], Halting), f"returns {type(out[1]).__name__} beside y, the contract says Halting")
            out = out[0]
        expect(isinstance(out, torch.Tensor), f"returns {type(out).__name__}, the contract says a tensor")
        got = tuple(out.shape)
        if cls.card.contract in (*SAME_SHAPE, "Skip"):
            expect(got == sizes, f"{sizes} goes in, {got} comes out")
        elif cls.card.contract == "Forecaster":
            wanted = (batch, module.horizon, sizes[-1])
            expect(got == wanted, f"{sizes} goes in, {got} comes out instead of {wanted}")
        elif cls.card.contract in ("Pooling", "FieldInteraction"):
            wanted = (batch, module.width)
            expect(got == wanted, f"{sizes} goes in, {got} comes out instead of {wanted}")
        else:
            expect(len(got) == 3 and got[0] == batch, f"{sizes} goes in, {got} comes out: 3 axes are expected")


@to("Activation", "ChannelMixer", "Codebook")
def check_positions_apart(cls: type[Mechanism]) -> None:
    """Each position is treated alone, however many axes there are before the last."""
    module = make(cls)
    (x,) = draw(module, batch=2, time=6)
    whole = run(module, (x,))[0]
    order = torch.tensor([4, 0, 5, 1, 3, 2])
    same(run(module, (x[:, order],))[0], whole[:, order], "positions in another order")
    same(run(module, (x.flatten(0, 1),))[0], whole.flatten(0, 1), "batch and time as one axis")
    same(run(module, (x.unflatten(1, (2, 3)),))[0], whole.unflatten(1, (2, 3)), "time as two axes")
    same(run(module, (x[1, 2],))[0], whole[1, 2], "one position, without any axis before it")


@to("Pooling")
def check_absent_items(cls: type[Mechanism]) -> None:
    """An item that is masked counts for nothing, whatever it holds; a set without items has a finite summary."""
    module = make(cls)
    (x,) = draw(module, batch=2, time=6)
    here = torch.tensor([True, True, False, True, False, True]).expand(2, 6)
    y = run(module, (x, here))[0]
    same(run(module, (x,))[0], run(module, (x, torch.ones_like(here)))[0], "with all items there, and without a mask")
    same(run(module, (x[:, here[0]],))[0], y, "without the items that are masked")
    other = torch.where(here.unsqueeze(-1), x, 100.0 * x + 1.0)
    same(run(module, (other, here))[0], y, "with something else in the items that are masked")
    empty = call(module, (x.requires_grad_(), torch.zeros_like(here)))
    expect(bool(empty.isfinite().all()), "the summary of no items is not finite")
    if empty.requires_grad:
        (grad,) = torch.autograd.grad(empty.sum(), x, allow_unused=True)
        expect(grad is None or bool(grad.isfinite().all()), "the gradient of the summary of no items is not finite")


@to("Skip")
def check_skip_ends(cls: type[Mechanism]) -> None:
    """Closed, a `Skip` passes its input on; open, it gives the block's output, with or without the input added."""
    module = make(cls)
    (x,) = draw(module)
    with gates_held(module, 0.0):
        same(run(module, (x,))[0], x, "with its gates at 0")
    with gates_held(module, 1.0):
        y = run(module, (x,))[0]
    if not any(torch.allclose(y, full, atol=1e-9) for full in (block(x), x + block(x))):
        raise CheckError("with its gates at 1 it gives neither block(x) nor x + block(x)")


@to("Skip")
def check_halting(cls: type[Mechanism]) -> None:
    """`openness` fits batch and time, and `cost` is a share."""
    module = make(cls)
    (x,) = draw(module, batch=3, time=6)
    halting = call(module, (x,))[1]
    try:
        torch.broadcast_to(halting.openness, x.shape[:2])
    except RuntimeError as error:
        raise CheckError(f"openness has shape {tuple(halting.openness.shape)}, which does not fit (3, 6)") from error
    cost = halting.cost.detach()
    expect(bool(((cost >= 0) & (cost <= 1)).all()), f"cost is a share between 0 and 1, got {cost.tolist()}")


@to("Router")
def check_routing(cls: type[Mechanism]) -> None:
    """Indices name experts or -1, a dropped route weighs nothing, and no token's logits depend on the order of tokens."""
    module = make(cls)
    (x,) = draw(module, batch=4, time=6)
    routing = call(module, (x,))
    n, experts = routing.logits.shape
    expect(n == len(x), f"{len(x)} tokens go in, logits for {n} come out")
    expect(routing.weights.shape == routing.indices.shape, "weights and indices differ in shape")
    expect(routing.indices.shape[0] == n, f"indices for {routing.indices.shape[0]} of {n} tokens")
    expect(not routing.indices.is_floating_point(), "indices are not integers")
    within = (routing.indices >= -1) & (routing.indices < experts)
    expect(bool(within.all()), f"an index lies outside -1 to {experts - 1}")
    expect(not routing.weights[routing.indices < 0].any(), "a dropped route has a weight")
    for name, loss in routing.losses.items():
        expect(loss.dim() == 0, f"the loss {name!r} is not a scalar")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    same(call(module, (x[order],)).logits, routing.logits[order], "logits with tokens in another order")


@to("TokenSelector")
def check_selection(cls: type[Mechanism]) -> None:
    """The tokens kept are named once each, and `put_back` sets them where they came from."""
    module = make(cls)
    (x,) = draw(module, batch=3, time=8)
    chosen = call(module, (x,))
    expect(chosen.length == 8, f"length is {chosen.length}, 8 tokens went in")
    expect(chosen.tokens.shape[:2] == chosen.indices.shape, "tokens and indices differ in number")
    expect(bool(((chosen.indices >= 0) & (chosen.indices < 8)).all()), "an index lies outside 0 to 7")
    for row in chosen.indices.tolist():
        expect(len(set(row)) == len(row), f"a token is named twice: {row}")
    old = x.gather(1, chosen.indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    same(chosen.put_back(old, x), x, "unchanged tokens put back")
    marked = chosen.put_back(torch.full_like(old, 7.0), x)
    expect(int((marked == 7.0).all(-1).sum()) == chosen.indices.numel(), "put_back does not set as many tokens as were kept")


@to("Codebook")
def check_codes(cls: type[Mechanism]) -> None:
    """An index is an integer that decides the value, and a gradient reaches the input."""
    module = make(cls)
    (x,) = draw(module, batch=4, time=32)
    codes = call(module, (x.requires_grad_(),))
    expect(codes.values.shape == x.shape, f"{tuple(x.shape)} goes in, {tuple(codes.values.shape)} comes out")
    sizes = tuple(codes.indices.shape)
    expect(
        sizes[: x.dim() - 1] == x.shape[:-1], f"indices have shape {sizes}, which does not begin with {tuple(x.shape[:-1])}"
    )
    expect(
        not codes.indices.is_floating_point() and int(codes.indices.min()) >= 0, "an index is not an integer of at least 0"
    )
    values = codes.values.detach().flatten(0, -2)
    flat = codes.indices.reshape(len(values), -1)
    for index in flat.unique(dim=0):
        chosen = values[(flat == index).all(-1)]
        same(chosen, chosen[:1].expand_as(chosen), f"the values of index {index.tolist()}")
    (grad,) = torch.autograd.grad(tensors(codes)[0].sum(), x, allow_unused=True)
    expect(grad is not None and bool(grad.any()), "no gradient reaches the input")
