"""How a part holds on to a model: by hooks and by calls around its modules, all of which can be undone."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from penstock.core import ConfigError

Arguments = tuple[Any, ...]
Change = Callable[..., Any]
HIDDEN = "hidden_states"
PREFIX = "penstock_"
"""How the attention functions of models with parts are called; the name of the usual one follows."""


def hidden(args: Arguments, kwargs: Mapping[str, Any]) -> Tensor:
    """Return the stream that a layer or one of its branches was called with."""
    return args[0] if args else kwargs[HIDDEN]


def with_hidden(x: Tensor, args: Arguments, kwargs: Mapping[str, Any]) -> tuple[Arguments, dict[str, Any]]:
    """Return the arguments of a call with `x` in the place of the stream."""
    return ((x, *args[1:]), dict(kwargs)) if args else ((), {**kwargs, HIDDEN: x})


def first(output: Any) -> Tensor:
    """Return the stream of what a module gave, which may be a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_first(y: Tensor, output: Any) -> Any:
    """Return what a module gave with `y` in the place of the stream."""
    return (y, *output[1:]) if isinstance(output, tuple) else y


class _Hook:
    """A hook that does nothing while its part is off. It is copied with the model, as a closure would not be."""

    def __init__(self, part: nn.Module, change: Change) -> None:
        self.part, self.change = part, change

    def before(self, _: nn.Module, args: Arguments, kwargs: dict[str, Any]) -> Any:
        return self.change(args, kwargs) if self.part.on else None

    def after(self, _: nn.Module, args: Arguments, kwargs: dict[str, Any], output: Any) -> Any:
        return self.change(output, args, kwargs) if self.part.on else None


class _Chain:
    """The `forward` of a module with calls around it, the latest outermost."""

    def __init__(self, base: Change) -> None:
        self.base = base
        self.around: list[tuple[nn.Module, Change]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(self.around) > 1:
            return self.run(len(self.around), *args, **kwargs)
        part, call = self.around[0]  # without a partial, which each branch of each token would make
        return call(self.base, *args, **kwargs) if part.on else self.base(*args, **kwargs)

    def run(self, depth: int, /, *args: Any, **kwargs: Any) -> Any:
        if depth == 0:
            return self.base(*args, **kwargs)
        part, call = self.around[depth - 1]
        if not part.on:
            return self.run(depth - 1, *args, **kwargs)
        return call(partial(self.run, depth - 1), *args, **kwargs)


class Ties:
    """What one part holds on to. A part ties itself in `attach`; `undo` leaves nothing behind."""

    def __init__(self, model: nn.Module, part: nn.Module) -> None:
        self.model, self.part = model, part
        self._undo: list[Callable[[], object]] = []

    def before(self, module: nn.Module, change: Change) -> None:
        """Call `change(args, kwargs)` before `module`; it returns None, or other `(args, kwargs)`."""
        hook = _Hook(self.part, change)
        self._undo.append(module.register_forward_pre_hook(hook.before, with_kwargs=True).remove)

    def after(self, module: nn.Module, change: Change) -> None:
        """Call `change(output, args, kwargs)` after `module`; it returns None, or another output."""
        hook = _Hook(self.part, change)
        self._undo.append(module.register_forward_hook(hook.after, with_kwargs=True).remove)

    def around(self, module: nn.Module, call: Change, *, replaces: bool = False) -> None:
        """Call `call(inner, *args, **kwargs)` instead of `module`, whose own work is `inner(*args, **kwargs)`.

        Args:
            module: whose calls are taken over.
            call: what is called.
            replaces: `call` never calls `inner`; two of those on one module are refused.
        """
        chain = module.__dict__.get("forward")
        if not isinstance(chain, _Chain):
            chain = _Chain(module.forward)
            module.forward = chain
        if replaces:
            if module.__dict__.get("_replaced_by"):
                raise ConfigError(f"insert: {type(module).__name__} is replaced already: remove {module._replaced_by} first")
            module.__dict__["_replaced_by"] = type(self.part).__name__
            self._undo.append(partial(module.__dict__.pop, "_replaced_by", None))
        entry = (self.part, call)
        chain.around.append(entry)
        self._undo.append(partial(_leave, module, chain, entry))

    def attention(self, core: nn.Module, call: Change) -> None:
        """Call `call(inner, core, q, k, v, mask, **kwargs)` instead of the attention function where `core` calls it."""
        config: Any = core.config
        if not config._attn_implementation.startswith(PREFIX):
            _switch(self.model, config, _registered(config._attn_implementation))
        entry = (self.part, call)
        core.__dict__.setdefault("_penstock_attention", []).append(entry)
        self.before(core, partial(_check, config))
        self._undo.append(partial(_leave_attention, self.model, core, entry))

    def later(self, call: Change, *args: Any) -> None:
        """Call `call(*args)` when the part is taken out."""
        self._undo.append(partial(call, *args))

    def undo(self) -> None:
        """Let go of everything."""
        while self._undo:
            self._undo.pop()()


def _leave(module: nn.Module, chain: _Chain, entry: tuple[nn.Module, Change]) -> None:
    chain.around.remove(entry)
    if not chain.around:
        del module.__dict__["forward"]
        usual = getattr(type(module), "forward", None)
        if getattr(chain.base, "__func__", None) is not usual:
            module.forward = chain.base


def _leave_attention(model: nn.Module, core: nn.Module, entry: tuple[nn.Module, Change]) -> None:
    core.__dict__["_penstock_attention"].remove(entry)
    if not core.__dict__["_penstock_attention"]:
        del core.__dict__["_penstock_attention"]
    config: Any = core.config
    held = any(part.__dict__.get("_penstock_attention") for part in model.modules() if getattr(part, "config", 0) is config)
    if not held and config._attn_implementation.startswith(PREFIX):
        _switch(model, config, config._attn_implementation.removeprefix(PREFIX))


def _switch(model: nn.Module, config: Any, implementation: str) -> None:
    owner: Any = next((part for part in model.modules() if hasattr(part, "set_attn_implementation")), None)
    if owner is None or not owner._can_set_attn_implementation():
        raise ConfigError(f"insert: {type(model).__name__} does not call its attention through the registry of transformers")
    owner.set_attn_implementation(implementation)
    if config._attn_implementation != implementation:
        config._attn_implementation = implementation


def _check(config: Any, *_: Any) -> None:
    if not config._attn_implementation.startswith(PREFIX):
        raise ConfigError(
            f"the attention function was set to {config._attn_implementation!r} after a part was put in: remove the part, "
            "set the function, and put the part in again"
        )


def _registered(usual: str) -> str:
    """Register an attention function that lets parts in, on top of the usual one, and return its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = PREFIX + usual
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(name, partial(_attend, usual))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[usual])
    return name


def _attend(usual: str, core: nn.Module, *args: Any, **kwargs: Any) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager: Any = getattr(sys.modules[type(core).__module__], "eager_attention_forward", None)
    inner = ALL_ATTENTION_FUNCTIONS.get_interface(usual, eager)
    for part, call in core.__dict__.get("_penstock_attention", ()):
        if part.on:
            inner = partial(call, inner)
    return inner(core, *args, **kwargs)
