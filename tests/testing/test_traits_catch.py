"""The checks of traits and contracts fail on what does not keep them, and on a trait that is kept but not declared."""

import pytest
import torch
from broken import Broken, hold

from penstock.core import Codes, Halting, Routing, Selection, Size
from penstock.testing.checks import contracts, traits
from toys import (
    AbstractCodes,
    AbstractDecay,
    AbstractGated,
    AbstractNoise,
    AbstractParts,
    AbstractPool,
    AbstractShares,
    AbstractSkip,
    AbstractTokenSkip,
    AbstractTop,
)

CASES = Broken()
scan = AbstractDecay.scan


def declaring(base, *more):
    from broken import CARDS

    return {"traits": {*CARDS[base].get("traits", ()), *more}}


def forgetting(base, trait):
    from broken import CARDS

    return {"traits": CARDS[base]["traits"] - {trait}}


def averaging(self, x, state):
    return x * self.decay(torch.sigmoid(self.to_decay(x.mean(1, keepdim=True)))), state


def peeking(self, x, block):
    openness = self.gate(self.alpha)
    ahead = torch.cat([x[:, 1:], x[:, -1:]], 1)
    return x + openness * block(ahead), Halting(openness, x.new_ones(()), {})


def rounding(self, x, decay, state):
    y, last = scan(self, x, decay, state)
    return y, last.float().to(x.dtype)


def changing_with_length(self, x, decay, state):
    y, last = scan(self, x, decay, state)
    return y * (2 if x.shape[1] > 50 else 1), last


def writing_the_state(self, x, decay, state):
    y, last = scan(self, x, decay, state)
    return y, state.copy_(last) if x.shape[1] == 1 else last


def keeping_all(self, x, state):
    return x, x if state is None or state.dim() == 2 else torch.cat([state, x], 1)


def optional(self, dim: Size, *, centered: bool = False) -> None:
    AbstractDecay.__init__(self, dim)
    self.centered = centered


def centering(self, x, decay, state):
    return scan(self, x - x.mean(1, keepdim=True) if self.centered else x, decay, state)


def computing_all(self, x, block):
    openness = self.gate((self.score(x) > 0).to(x.dtype))
    return x + openness * (block(x) - x), Halting(openness.squeeze(-1), openness.mean(), {})


CASES.add("causal", "after the inputs from 1 on were changed, before 1", AbstractDecay, extend=averaging)
CASES.add("causal", "after the inputs from 1 on were changed, before 1", AbstractSkip, forward=peeking)
CASES.add("steps", "length 3, in pieces", AbstractDecay, scan=lambda self, x, a, h: scan(self, x, a, torch.zeros_like(h)))
CASES.add(
    "steps",
    "from init_state",
    AbstractDecay,
    init_state=lambda self, batch, dtype=None, **_: torch.ones(batch, 4, dtype=dtype),
)
CASES.add("steps", "they differ by", AbstractDecay, scan=rounding)
CASES.add("steps", "length 63, in pieces", AbstractDecay, scan=changing_with_length)
CASES.add(
    "steps",
    "begin with [1] instead of the batch of 3",
    AbstractDecay,
    init_state=lambda self, *_, **__: torch.zeros(1, 4).double(),
)
CASES.add("steps", "the state handed to step 0, afterwards", AbstractDecay, scan=writing_the_state)
CASES.add("causal", "before 1, with centered=True", AbstractDecay, __init__=optional, scan=centering)
CASES.add("steps", "in pieces cut at [2, 3, 6], with centered=True", AbstractDecay, __init__=optional, scan=centering)
CASES.add("constant_state", "the state takes 256 bytes after 8 tokens and 2048 after 64", AbstractDecay, extend=keeping_all)
CASES.add("linear_time", "doubling the length from 64 adds", AbstractDecay, declaring(AbstractDecay, "linear-time"))
CASES.add("stochastic", "a call in training repeats itself with another seed", card=declaring(AbstractGated, "stochastic"))
CASES.add("identity_at_init", "a fresh instance: they differ", card=declaring(AbstractGated, "identity-at-init"))
CASES.add("skips", "with the gates closed the block is given 128 of 128", AbstractTokenSkip, forward=computing_all)
CASES.add("skips", "operations with the gates closed", card=declaring(AbstractGated, "skips"))


for base, trait in (
    (AbstractDecay, "causal"),
    (AbstractDecay, "steps"),
    (AbstractDecay, "constant-state"),
    (AbstractNoise, "stochastic"),
    (AbstractPool, "unordered"),
    (AbstractSkip, "identity-at-init"),
    (AbstractTokenSkip, "skips"),
):
    message = f"the trait {trait!r} holds, but the card does not declare it"
    CASES.add(trait.replace("-", "_"), message, base, forgetting(base, trait))
CASES.add(
    "linear_time",
    "the trait 'linear-time' holds, but the card does not declare it",
    AbstractDecay,
    scan=lambda self, x, decay, state: (x * decay, state),
)


CASES.add(
    "unordered",
    "items in another order: they differ",
    AbstractPool,
    total=lambda self, x, gate, here: (x * gate * here).sum(1) + (x * here)[:, 0],
)
CASES.add(
    "absent_items",
    "without the items that are masked: they differ",
    AbstractPool,
    total=lambda self, x, gate, here: (x * gate * here).mean(1),
)
CASES.add(
    "absent_items",
    "with something else in the items that are masked: they differ",
    AbstractPool,
    total=lambda self, x, gate, here: (x * gate * here).sum(1) + (x.amax((1, 2)) > 30).unsqueeze(1),
)
CASES.add(
    "absent_items",
    "with all items there, and without a mask: they differ",
    AbstractPool,
    forward=lambda self, x, mask=None: x.sum(1) if mask is None else AbstractPool.forward(self, x, mask),
)
CASES.add(
    "absent_items",
    "the summary of no items is not finite",
    AbstractPool,
    total=lambda self, x, gate, here: (x * gate * here).sum(1) / here.sum(1),
)
CASES.add(
    "absent_items",
    "the gradient of the summary of no items is not finite",
    AbstractPool,
    total=lambda self, x, gate, here: (x * gate * here).square().sum(1).sqrt(),
)


def partial(message, mix, **changes):
    CASES.add("partial", message, AbstractParts, mix=lambda self, x, gate, *given: mix(x, gate, *given), **changes)


def fuse(x, gate, *_):
    return (gate * x).sum(-2)


def taking_all(self, *streams):
    return AbstractParts.forward(self, *streams)


def far(x):
    return (x.amax((1, 2)) > 30)[:, None, None]


partial("it takes `present`, but the card does not declare", fuse, card={"traits": set()})
partial("but it does not take `present`", fuse, forward=taking_all)
partial(
    "absent hold 100.0, not 0", lambda x, gate, streams, _: fuse(x, gate) + (streams[0].amax((1, 2)) > 30)[:, None, None]
)
partial("absent hold nan: the output is not finite", lambda x, gate, streams, _: fuse(x, gate) + 0 * streams[1])
partial("hold 0.0: the output is not finite", lambda x, gate, *_: fuse(x, gate) / gate.sum(-2))
partial("the gradient of score.weight is not finite", lambda x, gate, *_: fuse(x, gate.square().sqrt()))
partial("all streams present", lambda x, gate, _, present: fuse(x, gate) + (present is not None))
partial(
    "a full sample beside others",
    lambda x, gate, _, present: fuse(x, gate) + (0 if present is None else 1 - present.double().mean()),
)
CASES.add("output", "comes out instead of (1, 4)", AbstractPool, total=lambda self, x, gate, here: x[:, 0, :3])


def residual(change):
    """Return the forward pass of a `Skip` whose output or halting is changed."""

    def forward(self, x, block):
        openness = self.gate(self.alpha)
        return change(x, openness, block(x), Halting(openness, x.new_ones(()), {}))

    return forward


CASES.add(
    "positions_apart",
    "positions in another order",
    mix=lambda self, x, gate: self.out(gate) + x.roll(1, -2 if x.dim() > 1 else 0),
)
CASES.add("positions_apart", "time as two axes", mix=lambda self, x, gate: self.out(gate) + (x.dim() == 4))
CASES.add("positions_apart", "one position, without", mix=lambda self, x, gate: self.out(gate) + (x.dim() == 1))
CASES.add("skip_ends", "with its gates at 0", AbstractSkip, forward=residual(lambda x, g, y, h: (2 * x + g * y, h)))
CASES.add("skip_ends", "with its gates at 1", AbstractSkip, forward=residual(lambda x, g, y, h: (x + g * y / 2, h)))
CASES.add(
    "halting",
    "openness has shape (3, 6, 8), which does not fit (3, 6)",
    AbstractSkip,
    forward=residual(lambda x, g, y, h: (x + g * y, h._replace(openness=g * x))),
)
CASES.add(
    "halting",
    "cost is a share between 0 and 1, got 18.0",
    AbstractSkip,
    forward=residual(lambda x, g, y, h: (x + g * y, h._replace(cost=x.new_tensor(18.0)))),
)


def routing(message, change):
    CASES.add("routing", message, AbstractShares, route=lambda self, w, i, z: change(Routing(w, i, z, {}), w, i, z))


routing("an index lies outside -1 to 2", lambda r, w, i, z: r._replace(indices=i + 1))
routing("indices are not integers", lambda r, w, i, z: r._replace(indices=i.double()))
routing("a dropped route has a weight", lambda r, w, i, z: r._replace(indices=i.masked_fill(i == 2, -1)))
routing("the loss 'z' is not a scalar", lambda r, w, i, z: r._replace(losses={"z": z}))
routing("weights and indices differ in shape", lambda r, w, i, z: r._replace(weights=w[:, :1]))
routing("indices for 23 of 24 tokens", lambda r, w, i, z: r._replace(weights=w[1:], indices=i[1:]))
routing("24 tokens go in, logits for 23 come out", lambda r, w, i, z: r._replace(logits=z[1:]))
routing("logits with tokens in another order: they differ", lambda r, w, i, z: r._replace(logits=z.cumsum(0)))


class Reversed(Selection):
    """Puts tokens back in the wrong places."""

    def put_back(self, tokens, into):
        return super().put_back(tokens.flip(1), into)


class Lost(Selection):
    """Puts nothing back."""

    def put_back(self, tokens, into):
        return into


def selection(message, change, form=Selection):
    def select(self, x, indices):
        return form(*change(x, x.gather(1, indices.unsqueeze(-1).expand(-1, -1, 4)), indices))

    CASES.add("selection", message, AbstractTop, select=select)


selection("length is 4, 8 tokens went in", lambda x, kept, i: (kept, i, 4))
selection("a token is named twice", lambda x, kept, i: (kept, 0 * i, 8))
selection("tokens and indices differ in number", lambda x, kept, i: (x, i, 8))
selection("an index lies outside 0 to 7", lambda x, kept, i: (kept, i + 8, 8))
selection("unchanged tokens put back: they differ", lambda x, kept, i: (kept, i, 8), Reversed)
selection("put_back does not set as many tokens as were kept", lambda x, kept, i: (kept, i, 8), Lost)


def codes(message, change):
    CASES.add("codes", message, AbstractCodes, pass_on=lambda self, x, chosen, i: Codes(*change(x, chosen, i), {}))


codes("no gradient reaches the input", lambda x, chosen, i: (chosen, i))
codes("the values of index", lambda x, chosen, i: (chosen + x, i))
codes("an index is not an integer of at least 0", lambda x, chosen, i: (chosen + x - x.detach(), i - 1))
codes("indices have shape (128,), which does not begin with (4, 32)", lambda x, y, i: (y + x - x.detach(), i.flatten()))
codes("(4, 32, 4) goes in, (4, 32, 1) comes out", lambda x, chosen, i: ((chosen + x - x.detach())[..., :1], i))


@pytest.mark.parametrize(("check", "message", "base", "card", "changes"), CASES)
def test_a_broken_mechanism_is_caught(check, message, base, card, changes):
    hold(check, message, base, card, changes)


@pytest.mark.parametrize("module", [traits, contracts], ids=["traits", "contracts"])
def test_every_check_is_seen_to_fail(module):
    checks = {name.removeprefix("check_") for name in vars(module) if name.startswith("check_")} - {"output"}
    assert checks <= {case.values[0] for case in CASES}
