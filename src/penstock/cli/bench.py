"""`penstock bench ops`: how fast the shared operations are on this machine, beside other people's code."""

from typing import Literal

from penstock.core.arguments import Size


def bench(
    what: Literal["ops"] = "ops",
    /,
    *,
    batch: Size = 1,
    length: Size = 2048,
    heads: Size = 4,
    size: Size = 64,
    rounds: Size = 7,
) -> None:
    """Time operations by turns with the peers that are installed, and print a table.

    Args:
        what: what to time: ops, the shared operations.
        batch: sequences in a batch.
        length: steps of a sequence.
        heads: heads of matrix states.
        size: channels of a head.
        rounds: how often each code is timed; the median counts.
    """
    import torch

    from penstock.bench import ops
    from penstock.cli.text import table

    head = ("operation", "shape", "code", "forward ms", "", "and backward ms", "")
    rows = [
        (r.operation, r.shape, r.code, f"{r.forward:.2f}", f"{r.times:.1f}x", f"{r.both:.2f}", f"{r.times_both:.1f}x")
        for r in ops.table(batch, length, heads, size, rounds)
    ]
    print(f"{what}, float32, {torch.get_num_threads()} threads, medians of {rounds}; x: how much slower than penstock\n")
    print(table([head, *rows]))
    if (why := ops.disturbance()) is not None:
        print(f"\nThese times may mean nothing: {why}.")
