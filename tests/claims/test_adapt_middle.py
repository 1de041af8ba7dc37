"""What a trained decoder keeps when tokens skip its middle by gates that have learned which of them can."""

import pydoc_data.topics

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from penstock import adapt
from penstock.adapt.data import stretches
from penstock.bench.adapt import loss_of

SIZES = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
WORDS = {"vocab_size": 256, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
LENGTH, BATCH = 32, 16


def trained(text, seed, steps=300):
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **WORDS))
    random, optimizer = torch.Generator().manual_seed(seed), torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 20) * max(0.05, 1 - step / steps)
        starts = torch.randint(len(text) - LENGTH - 1, (BATCH,), generator=random)
        x = torch.stack([text[start : start + LENGTH] for start in starts])
        optimizer.zero_grad()
        model(input_ids=x, labels=x, use_cache=False).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.claim("skip-middle")
def test_gates_come_to_the_share_that_was_asked_for_and_lose_less_than_chance():
    """Gates in a trained decoder of 4 layers are asked for 75% of the layers' work; nothing else learns in 150 steps.

    On seeds 0 to 4 what gates of 0 leave out by themselves brings the work to 71%, 70%, 83%, 72% and 61%. Calibrated for
    75%, and never above that, it costs 0.09, 0.15, 0.09, 0.22 and 0.10 nats of 2.3 to 2.5 on held-out text. The same gates
    given to tokens by chance cost 0.041, 0.072, 0.020 and 0.073 more on the first four seeds, and 0.004 less on the last.
    The paper trains from scratch, and finds no gain over fewer layers; neither is shown here.
    """
    text = torch.tensor(list("".join(text for _, text in sorted(pydoc_data.topics.topics.items())).encode()))
    cut = int(len(text) * 0.9)
    model, held = trained(text[:cut], 0), stretches(text[cut:], LENGTH, BATCH, 16)
    before = loss_of(model, held)
    handle = adapt.insert(model, adapt.SkipMiddle(0.75))
    assert abs(loss_of(model, held) - before) < 1e-4
    adapt.train(handle, text[:cut], steps=150, rate=1e-2, batch=BATCH, length=LENGTH)
    handle.spent()
    loss_of(model, held)
    assert abs(handle.spent() - 0.75) < 0.12
    handle.calibrate(stretches(text[cut // 2 : cut], LENGTH, BATCH, 6), budgets=(0.75,))
    loss = loss_of(model, held)
    spent = handle.spent()
    for part in handle.parts.values():
        part.random = True
    assert loss_of(model, held) > loss + 0.01
    assert abs(handle.spent() - spent) < 0.02
    assert loss < before + 0.25
