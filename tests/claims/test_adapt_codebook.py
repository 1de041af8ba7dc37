"""A small decoder that follows a machine with more states than it has neurons, and the codes that it is given then."""

import pytest
import torch
import torch.nn.functional as F

hf = pytest.importorskip("transformers")

from penstock import adapt  # noqa: E402

DIGITS, EDGES, STEPS = 7, 4, 16
STATES = DIGITS**2


def machine(draw):
    """Return where each state may go."""
    return torch.stack([torch.randperm(STATES, generator=draw)[:EDGES] for _ in range(STATES)])


def walks(edges, count, draw):
    """Return texts, two digits a state after a first token, and their states."""
    states = [torch.randint(STATES, (count,), generator=draw)]
    for _ in range(STEPS - 1):
        states.append(edges[states[-1], torch.randint(EDGES, (count,), generator=draw)])
    states = torch.stack(states, 1)
    return F.pad(torch.stack((states // DIGITS, states % DIGITS), 2).flatten(1), (1, 0), value=DIGITS), states


def teach(model, edges, steps, draw):
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(steps):
        x, _ = walks(edges, 64, draw)
        optimizer.zero_grad()
        model(input_ids=x, labels=x).loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def quality(model, edges, draw):
    """Return the loss, and which share of the four likeliest next states the machine allows, as the paper measures."""
    x, states = walks(edges, 300, draw)
    loss = model(input_ids=x, labels=x).loss.item()
    begun, likely = x[:, : 2 * STEPS - 3], []
    for digit in range(DIGITS):
        p = model(torch.cat((begun, torch.full((len(x), 1), digit)), 1)).logits.softmax(-1)
        likely.append(p[:, -2, digit, None] * p[:, -1, :DIGITS])
    best = torch.cat(likely, 1).topk(EDGES).indices
    return loss, (best.unsqueeze(2) == edges[states[:, -3]].unsqueeze(1)).any(2).float().mean().item()


def detectors(adapter, edges, draw):
    """Return for each state how precise its best code of the first layer is, and the best neuron that fires as often."""
    x, states = walks(edges, 600, draw)
    neurons = []
    hook = adapter.model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, given: neurons.append(given[0]))
    codes = adapt.read_codes(adapter, {"input_ids": x})["layers.0.mlp"][:, 4::2, 0, 0].flatten()
    hook.remove()
    at, fired = states[:, 1:].flatten(), neurons[0][:, 4::2].flatten(0, 1)
    order = fired.argsort(0, descending=True)
    table = torch.zeros(adapter.what.codes, STATES).index_put_((codes, at), torch.ones(()), accumulate=True)
    precise, found = table / table.sum(1, keepdim=True).clamp_min(1), table / table.sum(0)
    best = (precise * found).argmax(0)
    counts = table.sum(1)[best].long().tolist()
    neuron = [max((at[order[: max(n, 1)]] == state).float().mean(0)) for state, n in enumerate(counts)]
    return precise[best, range(STATES)], torch.stack(neuron), best.unique().numel()


@torch.no_grad()
def distance(model, x, digits):
    """Return how far the next digit is from those of given states, in total variation."""
    return ((model(x).logits[:, -1, :DIGITS].softmax(-1) - digits).abs().sum(1) / 2).mean().item()


def forcing(adapter, edges, draw):
    """Return how far the next digit is from those of other states: as it is, and with their codes forced."""
    (x, _), (y, states) = (walks(edges, 400, draw) for _ in range(2))
    x, y, there = x[:, :13], y[:, :13], states[:, 5]
    digits = F.one_hot(edges[there] // DIGITS, DIGITS).float().mean(1)
    forced = {}
    for alias, codes in adapt.read_codes(adapter, {"input_ids": y}).items():
        forced[alias] = torch.full_like(codes, -1)
        forced[alias][:, -1] = codes[:, -1]
    before = distance(adapter.model, x, digits)
    with adapt.force_codes(adapter, forced):
        after = distance(adapter.model, x, digits)
    return before, after, distance(adapter.model, y, digits)


def measured(seed):
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    edges = machine(draw)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(**sizes, vocab_size=DIGITS + 1, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    )
    teach(model, edges, 600, draw)
    before = quality(model, edges, draw)
    adapter = adapt.insert(model, adapt.Codebook(256), freeze=False)
    adapt.fit_codes(adapter, [{"input_ids": walks(edges, 256, draw)[0]}], generator=draw)
    untrained = quality(model, edges, draw)
    teach(model, edges, 450, draw)
    return before, untrained, quality(model, edges, draw), detectors(adapter, edges, draw), forcing(adapter, edges, draw)


@pytest.mark.slow
@pytest.mark.claim("codebook-features")
def test_codes_are_states_and_a_forced_code_is_another_state():
    """49 states of two digits, each of which may become four; a stream of 32, and 48 neurons in a feed-forward layer.

    Codes for each head and feed-forward layer, 256 each and one a vector. Seeds 0 to 4:

    - loss 0.811 / 0.809 / 0.803 / 0.814 / 0.817 without codes (nothing is below 0.771), and 0.872 / 0.887 / 0.884 / 0.910 /
      0.883 with them after 450 steps: 7 to 12 per cent more, and still falling. Of the four likeliest next states it allowed
      0.984 / 0.992 / 0.997 / 0.988 / 0.993, and then 0.972 / 0.968 / 0.980 / 0.952 / 0.964.
    - precision of a state's best code in the first feed-forward layer 0.938 / 0.923 / 0.949 / 0.963 / 0.903, and of the best
      neuron that is let fire as often 0.552 / 0.518 / 0.555 / 0.570 / 0.560. 47 / 49 / 49 / 49 / 49 states have a code of
      their own. Codes of heads stand for parts of a state: in a trial their precision was 0.4 to 0.8.
    - with all codes of another state forced at the last token, the next digit comes from 0.621 / 0.602 / 0.626 / 0.584 /
      0.629 to 0.160 / 0.169 / 0.176 / 0.179 / 0.161 in total variation from those of that state. It is at 0.120 / 0.134 /
      0.133 / 0.157 / 0.129 where the text has led there. One layer's codes are not enough, since the stream goes past them.
    """
    before, untrained, after, (codes, neurons, distinct), (other, forced, natural) = measured(0)
    assert after[0] < 1.15 * before[0] < 0.6 * untrained[0]
    assert min(before[1], after[1]) > 0.93
    assert codes.mean() > 0.86 > 0.65 > neurons.mean()
    assert distinct >= 45
    assert natural < forced < 0.22 < 0.5 < other
