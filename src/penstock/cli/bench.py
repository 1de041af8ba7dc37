"""`penstock bench`: how fast operations and models are on this machine, beside other people's code."""

from pathlib import Path
from typing import TYPE_CHECKING

from penstock.core.arguments import Count, Share, Size

if TYPE_CHECKING:
    from penstock.bench.attention import Row as AttentionRow
    from penstock.bench.clicks.speed import Row as ClickRow
    from penstock.bench.ops import Row


def ops(*, batch: Size = 1, length: Size = 2048, heads: Size = 4, size: Size = 64, rounds: Size = 7) -> None:
    """Time the shared operations by turns with the peers that are installed, and print a table.

    Args:
        batch: sequences in a batch.
        length: steps of a sequence.
        heads: heads of matrix states.
        size: channels of a head.
        rounds: how often each code is timed; the median counts.
    """
    from penstock.bench import ops as bench

    disturbed = bench.disturbance()
    rows = bench.table(batch, length, heads, size, rounds)
    _print(f"operations, medians of {rounds}; x: how much slower than penstock", _by_turns(rows), disturbed)


def activations(*, elements: Size = 2**22, rounds: Size = 15, eager: bool = False) -> None:
    """Time activations and gated linear units by turns with torch's operations and what torch's compiler makes of them.

    Args:
        elements: numbers of each tensor.
        rounds: how often each code is timed; the median counts.
        eager: leave `torch.compile` out, which otherwise takes part where there is a C++ compiler.
    """
    from penstock.bench import activations as bench
    from penstock.bench.ops import disturbance

    disturbed = disturbance()
    rows = bench.table(elements, rounds, compiled=not eager)
    title = f"{elements:,} numbers, medians of {rounds}; x: how much slower than penstock; {bench.allocator()}"
    _print(title, _by_turns(rows), disturbed)


def experts(*, tokens: Size = 2048, dim: Size = 512, hidden: Size = 1024, k: Size = 2, rounds: Size = 7) -> None:
    """Time mixtures of experts by turns with a dense layer of as many operations and the peers that are installed.

    Args:
        tokens: rows of the large calls.
        dim: width of a token.
        hidden: units of an expert.
        k: experts that a token goes to.
        rounds: how often each code is timed; the median counts.
    """
    from penstock.bench import experts as bench
    from penstock.bench.ops import disturbance

    disturbed = disturbance()
    rows = bench.table(tokens, dim, hidden, k, rounds)
    _print(f"mixtures of experts, medians of {rounds}; x: how much slower than penstock", _by_turns(rows), disturbed)


def decode(*mixers: str, dim: Size = 512, layers: Size = 4, position: Size = 2048, tokens: Size = 64) -> None:
    """Time language models that generate a token at a time, by turns with the peers that are installed.

    Args:
        mixers: the sequence mixers of our models; a few recurrent ones by default.
        dim: width of the stream.
        layers: number of blocks.
        position: how many tokens come before the second timing.
        tokens: how many tokens are timed; the median counts.
    """
    from penstock.bench import decode as bench
    from penstock.bench.ops import disturbance

    disturbed = disturbance()
    head = ("model", "parameters", "ms at the start", f"ms after {position}", "state bytes")
    rows = [
        (r.model, f"{r.parameters:,}", f"{r.first:.2f}", f"{r.later:.2f}", "-" if r.state is None else f"{r.state:,}")
        for r in bench.table(mixers or bench.RECURRENT, dim, layers, position, tokens)
    ]
    _print(f"one token, {layers} layers of width {dim}, medians of {tokens}", [head, *rows], disturbed)


def lengths(*mixers: str, length: list[int] | None = None, dim: Size = 256, rounds: Size = 5) -> None:
    """Time sequence mixers on sequences of several lengths, forward and backward, and say by what power of it they grow.

    Args:
        mixers: sequence mixers, with arguments as in gla,heads=2; ways of making the matrix of token-mixing by default.
        length: a length, as often as wanted, in rising order; 1024 to 8192 by default.
        dim: width of the stream.
        rounds: how often each is timed; the median counts.
    """
    from penstock.bench import lengths as bench
    from penstock.bench.ops import disturbance

    disturbed, asked = disturbance(), length or list(bench.LENGTHS)
    rows = [
        (r.mixer, *(f"{ms:.1f}" for ms in r.milliseconds), f"{r.power:.2f}", f"{r.power_of_operations:.2f}")
        for r in bench.table(mixers or bench.MIXERS, asked, dim, rounds)
    ]
    head = ("mixer", *(f"{n} ms" for n in asked), "power of length", "of operations")
    _print(f"one sequence of width {dim}, forward and backward, medians of {rounds}", [head, *rows], disturbed)


def sparse(
    *,
    width: Size = 4096,
    dim: Size = 2048,
    hidden: Size = 8192,
    rounds: Size = 200,
    layers: Count = 4,
    tokens: Size = 48,
) -> None:
    """Time a linear map, a gated feed-forward layer and a language model on a single row, dense and with sparse activations.

    Args:
        width: of the linear map, in and out.
        dim: width of the stream that the feed-forward layer is for.
        hidden: its width inside.
        rounds: how often map and layer are timed; the least time counts.
        layers: of the language model, made of attention and that feed-forward layer; 0 leaves it out.
        tokens: how many the model generates; the median time of one counts.
    """
    from penstock.bench import sparse as bench
    from penstock.bench.ops import disturbance

    disturbed = disturbance()
    rows = [
        (r.what, r.code, f"{r.sparsity:.0%}", f"{r.milliseconds:.2f}", f"{r.times:.1f}x")
        for r in bench.table(width, dim, hidden, rounds, layers, tokens)
    ]
    head = ("layer", "code", "dropped", "ms", "")
    title = f"one row, least of {rounds}, and of tokens the median of {tokens}; x: how much faster than torch's dense"
    _print(title, [head, *rows], disturbed)


def attention(*, length: Size = 4096, heads: Size = 8, size: Size = 64, rounds: Size = 7) -> None:
    """Time attention by patterns by turns with FlexAttention and dense attention.

    Args:
        length: tokens, a square number, so that they also make an image.
        heads: heads of queries, keys and values.
        size: channels of a head.
        rounds: how often each code is timed; the median counts.
    """
    from penstock.bench import attention as bench
    from penstock.bench.ops import disturbance

    disturbed = disturbance()
    rows = [
        (r.pattern, r.code, f"{r.forward:.1f}", f"{r.faster:.1f}x", *(("-", "-") if r.both is None else _faster(r)))
        for r in bench.table(length, heads, size, rounds)
    ]
    head = ("pattern", "code", "forward ms", "", "and backward ms", "")
    title = f"{length} tokens, {heads} heads of {size}, medians of {rounds}; x: how much faster than dense causal attention"
    _print(title, [head, *rows], disturbed)


def _faster(row: "AttentionRow") -> tuple[str, str]:
    return f"{row.both:.1f}", f"{row.faster_both:.1f}x"


def _by_turns(rows: "list[Row]") -> list[tuple[str, ...]]:
    head = ("operation", "shape", "code", "forward ms", "", "and backward ms", "")
    return [
        head,
        *(
            (r.operation, r.shape, r.code, f"{r.forward:.2f}", f"{r.times:.2f}x", f"{r.both:.2f}", f"{r.times_both:.2f}x")
            for r in rows
        ),
    ]


def skip(
    *, dim: Size = 512, layers: Size = 8, batch: Size = 8, length: Size = 32, share: Share = 0.5, rounds: Size = 9
) -> None:
    """Time models that skip layers, examples or tokens, by turns with the same models computed in full.

    Args:
        dim: width of the stream.
        layers: of the full model, even.
        batch: sequences.
        length: tokens of each.
        share: of the layers or tokens, above 0 and at most 1, that is computed.
        rounds: how often each model is timed; the fewest milliseconds count.
    """
    from penstock.bench import skip as bench
    from penstock.bench.ops import disturbance

    bench.check(layers, share)
    disturbed = disturbance()
    head = ("what is skipped", "by", "operations", "forward ms", "faster", "training ms", "faster")
    rows = [
        (r.skipped, r.name, f"{r.share:.0%}", f"{r.forward:.1f}", f"{r.times:.2f}x", f"{r.both:.1f}", f"{r.times_both:.2f}x")
        for r in bench.table(dim, layers, batch, length, share, rounds)
    ]
    _print(f"{layers} layers of width {dim}, {batch} x {length} tokens, best of {rounds}", [head, *rows], disturbed)


def clicks(
    *models: str,
    rows: Size = 60_000,
    values: Size = 1_000_000,
    batch: Size = 4096,
    dim: Size = 10,
    peer: Path | None = None,
    zoo: Path | None = None,
    workers: Count = 1,
) -> None:
    """Time the training of click models, and that of FuxiCTR's on the same rows, batch and model size.

    Args:
        models: which of dnn, dcn-v2, autoint and finalmlp; all by default.
        rows: rows that are trained on.
        values: that the 39 fields have together.
        batch: rows of a step.
        dim: width of the embeddings.
        peer: an interpreter that has fuxictr, which is then timed first.
        zoo: the folder model_zoo of FuxiCTR's repository, whose classes the peer trains.
        workers: processes that load rows for FuxiCTR; 1 is what it does by default.
    """
    from penstock.bench.clicks import speed as bench
    from penstock.bench.ops import disturbance

    disturbed = disturbance()
    sizes = {"rows": rows, "values": values, "batch": batch, "dim": dim, "workers": workers}
    found = bench.table(models or tuple(bench.MODELS), **sizes, peer=peer, zoo=zoo)
    head = ("model", "parameters", "rows/s", "rows/s busy", "FuxiCTR rows/s", "rows/s busy", "faster", "busy")
    lines = [(r.model, f"{r.parameters:,}", f"{r.ours:,.0f}", f"{r.ours_busy:,.0f}", *_beside(r)) for r in found]
    _print(f"{rows:,} rows of 39 fields, batch {batch}; busy: by the processor's time alone", [head, *lines], disturbed)


def _beside(row: "ClickRow") -> tuple[str, ...]:
    if row.theirs is None or row.theirs_busy is None:
        return "-", "-", "-", "-"
    times = f"{row.ours / row.theirs:.2f}x", f"{row.ours_busy / row.theirs_busy:.2f}x"
    return f"{row.theirs:,.0f}", f"{row.theirs_busy:,.0f}", *times


def _print(title: str, rows: list[tuple[str, ...]], disturbed: str | None) -> None:
    import torch

    from penstock.cli.text import table

    print(f"{title}; float32, {torch.get_num_threads()} threads\n")
    print(table(rows))
    if disturbed is not None:
        print(f"\nThese times may mean nothing: {disturbed}.")
