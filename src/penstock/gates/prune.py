"""Physical pruning: take out the channels that a gate closes, and the weights that read them."""

import copy

from torch import Tensor, nn

from penstock.core import ConfigError

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def _check(producer: Layer, openness: Tensor, consumer: Layer) -> None:
    for role, layer in (("producer", producer), ("consumer", consumer)):
        if not isinstance(layer, Layer):
            raise ConfigError(f"prune: {role} must be a Linear or a Conv layer, got {type(layer).__name__}")
        groups = getattr(layer, "groups", 1)
        if groups != 1:
            raise ConfigError(f"prune: {role} must not be grouped, got groups={groups}")
    outputs, inputs = producer.weight.shape[0], consumer.weight.shape[1]
    if openness.shape != (outputs,):
        raise ConfigError(f"prune: openness must have shape ({outputs},), one per channel, got {tuple(openness.shape)}")
    if inputs % outputs or (inputs != outputs and not isinstance(consumer, nn.Linear)):
        raise ConfigError(f"prune: consumer must read the producer's {outputs} channels, got one with {inputs} inputs")
    if not bool((openness != 0).any()):
        raise ConfigError(f"prune: all {outputs} channels are closed; take out the layers instead")


def _resized(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    """Return a copy of a layer with other weights, and sizes that agree with them."""
    new = copy.deepcopy(layer)
    for name, old, part in (("weight", layer.weight, weight), ("bias", layer.bias, bias)):
        if old is not None and part is not None:
            setattr(new, name, nn.Parameter(part.detach().clone(), old.requires_grad))
    sizes = ("out_features", "in_features") if isinstance(layer, nn.Linear) else ("out_channels", "in_channels")
    for name, size in zip(sizes, weight.shape[:2], strict=True):
        setattr(new, name, size)
    return new


def prune(producer: Layer, openness: Tensor, consumer: Layer) -> tuple[Layer, Layer]:
    """Return copies of two layers without the channels that a gate between them closes; the output stays the same.

    Between the layers there may be what keeps channels apart: a nonlinearity, pooling, a normalization per channel
    (`prune_norm`), flattening before a `Linear` consumer. The gate comes last. Where a gate is neither 0 nor 1, the
    consumer's weights take it in, so that no gate is needed any more.

    Args:
        producer: the `Linear` or `Conv` layer whose outputs are gated.
        openness: of the gate, one per output channel; what is exactly 0 goes.
        consumer: the `Linear` or `Conv` layer that reads the gated channels.

    Raises:
        ConfigError: if the layers are of another kind, are grouped, do not fit, or if every channel is closed.
    """
    _check(producer, openness, consumer)
    openness = openness.detach().to(consumer.weight)
    keep = openness != 0
    first = _resized(producer, producer.weight[keep], None if producer.bias is None else producer.bias[keep])
    block = consumer.weight.shape[1] // len(keep)
    inputs = keep.repeat_interleave(block)
    scale = openness.repeat_interleave(block)[inputs]
    weight = consumer.weight[:, inputs] * scale.view(-1, *[1] * (consumer.weight.dim() - 2))
    return first, _resized(consumer, weight, consumer.bias)


def prune_norm(norm: nn.Module, openness: Tensor) -> nn.Module:
    """Return a copy of a batch normalization without the channels that a gate after it closes.

    Raises:
        ConfigError: if the module is not a batch normalization of as many channels.
    """
    if not isinstance(norm, Norm):
        raise ConfigError(f"prune_norm: norm must be a BatchNorm layer, got {type(norm).__name__}")
    if openness.shape != (norm.num_features,):
        raise ConfigError(f"prune_norm: openness must have shape ({norm.num_features},), got {tuple(openness.shape)}")
    keep = openness.detach() != 0
    new = copy.deepcopy(norm)
    for name, old in (*norm.named_parameters(), *norm.named_buffers()):
        if old.dim() == 1:
            part = old.detach()[keep].clone()
            setattr(new, name, nn.Parameter(part, old.requires_grad) if isinstance(old, nn.Parameter) else part)
    new.num_features = int(keep.sum())
    return new
