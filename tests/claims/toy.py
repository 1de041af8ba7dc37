"""Small training runs for claims: seconds each, the same every time."""

import math

import torch
import torch.nn.functional as F

from penstock.bench.tasks.text import Text


def fit(module, batch, loss, *, steps, learning_rate):
    """Train with Adam, a warm-up, a cosine and clipping at 1 on the `loss(module, *batch(step))` of each step."""
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate, betas=(0.9, 0.95))
    module.train()
    for step in range(steps):
        pace = min(1.0, (step + 1) / 20) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * pace
        optimizer.zero_grad()
        loss(module, *batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return module.eval()


def next_token_loss(model, inputs, targets):
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def read_text(model, seed, *, steps=150, learning_rate=4e-3, length=32, size=16):
    """Train a language model of 256 tokens on text and return its loss on other text, in nats a byte."""
    text = Text(length=length, held_out=200)
    fit(
        model,
        lambda step: text.batch("train", seed, step, size)[:2],
        next_token_loss,
        steps=steps,
        learning_rate=learning_rate,
    )
    with torch.no_grad():
        return next_token_loss(model, *next(text.evaluation("valid", 200))[:2]).item()


def opened(module, *inputs):
    """Return what the module's `Gate` called `gate` gives for these inputs."""
    seen = []
    hook = module.gate.register_forward_hook(lambda gate, given, openness: seen.append(openness))
    with torch.no_grad():
        module(*inputs)
    hook.remove()
    return seen[0]
