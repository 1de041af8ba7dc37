"""Calls of every operation, drawn at random: decays near 0 and 1, and exactly 0 and 1."""

import torch
import torch.nn.functional as F


def log_decays(*shape, dtype):
    """Log decays of all strengths, some of them of 1 and some of 0."""
    g = F.logsigmoid(torch.randn(shape, dtype=dtype)) * 10 ** torch.empty(shape, dtype=dtype).uniform_(-3, 2)
    g[:, 2::5] = 0
    g[:, 3::9] = -torch.inf
    return g


def linear_recurrence(batch, time, size, dtype, sequences):
    a = log_decays(batch, time, *size, dtype=torch.float64).exp()
    if dtype.is_complex:
        a = torch.polar(a, torch.randn_like(a))
    return {"a": a.to(dtype), "b": torch.randn(batch, time, *size, dtype=dtype)}, torch.randn(sequences, *size, dtype=dtype)


def gated_linear_attention(batch, time, size, dtype, sequences, *, per_channel=True):
    heads, key, value = size
    q, k = torch.randn(2, batch, time, heads, key, dtype=dtype)
    decay = log_decays(batch, time, heads, key if per_channel else 1, dtype=dtype)
    inputs = {"q": q, "k": k, "v": torch.randn(batch, time, heads, value, dtype=dtype), "log_decay": decay}
    return inputs, torch.randn(sequences, heads, key, value, dtype=dtype)


def gated_linear_attention_by_head(*args):
    return gated_linear_attention(*args, per_channel=False)


def gated_delta_rule(batch, time, size, dtype, sequences, *, per_channel=False):
    inputs, state = gated_linear_attention(batch, time, size, dtype, sequences, per_channel=per_channel)
    inputs["k"] = F.normalize(inputs["k"], dim=-1)
    beta = torch.rand(inputs["k"].shape[:3], dtype=dtype)
    beta[:, ::7] = 0
    beta[:, 1::8] = 1
    return {**inputs, "beta": beta}, state


def gated_delta_rule_by_channel(*args):
    return gated_delta_rule(*args, per_channel=True)


def gated_slot_attention(batch, time, size, dtype, sequences):
    slots, key, value = size
    q, k = torch.randn(2, batch, time, 2, key, dtype=dtype)
    v, g = torch.randn(batch, time, 2, value, dtype=dtype), log_decays(batch, time, 2, slots, dtype=dtype)
    return {"q": q, "k": k, "v": v, "log_decay": g}, torch.randn(sequences, 2, slots, key + value, dtype=dtype)


def selective_scan(batch, time, size, dtype, sequences):
    channels, state = size
    x, delta = torch.randn(2, batch, time, channels, dtype=dtype)
    b, c = torch.randn(2, batch, time, state, dtype=dtype)
    delta = F.softplus(delta) * 10 ** torch.empty_like(delta).uniform_(-3, 1)
    delta[:, 2::5] = 0
    inputs = {"x": x, "delta": delta, "b": b, "c": c, "a": -torch.rand(channels, state, dtype=dtype) * 20}
    return inputs, torch.randn(sequences, channels, state, dtype=dtype)


def short_convolution(batch, time, size, dtype, sequences):
    channels, width = size
    inputs = {
        "x": torch.randn(batch, time, channels, dtype=dtype),
        "weight": torch.randn(channels, width, dtype=dtype),
        "bias": torch.randn(channels, dtype=dtype),
    }
    return inputs, torch.randn(sequences, width - 1, channels, dtype=dtype)


DRAWS = {
    "gated_slot_attention": gated_slot_attention,
    "selective_scan": selective_scan,
    "short_convolution": short_convolution,
    "gated_delta_rule": gated_delta_rule,
    "gated_delta_rule_by_channel": gated_delta_rule_by_channel,
    "linear_recurrence": linear_recurrence,
    "gated_linear_attention": gated_linear_attention,
    "gated_linear_attention_by_head": gated_linear_attention_by_head,
}
SIZES = {
    "gated_slot_attention": [(16, 16, 16), (3, 5, 7), (20, 64, 16), (64, 16, 32)],
    "selective_scan": [(16, 4), (5, 3), (40, 16), (64, 1)],
    "short_convolution": [(16, 4), (5, 3), (100, 2), (40, 1)],
    "gated_delta_rule": [(1, 16, 16), (2, 5, 3), (1, 64, 20), (3, 20, 64)],
    "linear_recurrence": [(5,), (3, 37), (96,), (130,)],
    "gated_linear_attention": [(1, 16, 16), (2, 5, 3), (1, 64, 20), (3, 20, 64)],
}


FIXED = {"selective_scan": ("a",), "short_convolution": ("weight", "bias")}


def sizes(case):
    return next(SIZES[name] for name in SIZES if case.startswith(name))


def draw(case, batch, time, size, dtype=torch.float64, sequences=None):
    """Return the operation's name, its tensors by name that want gradients, `initial_state` among them."""
    inputs, state = DRAWS[case](batch, time, size, dtype, batch if sequences is None else sequences)
    inputs["initial_state"] = state
    return case.split("_by_")[0], {name: x.requires_grad_() for name, x in inputs.items()}


def cut(case, tensors, start, stop):
    """Return the steps from `start` to `stop` of all tensors that have steps, without the state."""
    fixed = FIXED.get(case.split("_by_")[0], ())
    return {n: x if n in fixed else x[:, start:stop] for n, x in tensors.items() if n != "initial_state"}
