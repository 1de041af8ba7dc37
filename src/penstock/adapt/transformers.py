"""`LanguageModel` as a model of `transformers`: importing this enters it in AutoConfig and AutoModelForCausalLM.

model = PenstockForCausalLM.of(LanguageModel(256, 64, 4, mixer="gla"))
model.generate(tokens, max_new_tokens=20)           # the state of the mixers is the cache
model.save_pretrained("folder"); AutoModelForCausalLM.from_pretrained("folder")
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from penstock.core import ConfigError
from penstock.models.language import LanguageModel
from penstock.models.sequence import build_model


class PenstockConfig(PreTrainedConfig):
    """The spec of a `LanguageModel`, and the names that others look for in a configuration.

    Args:
        spec: what `LanguageModel.spec` returns.
        words: what every configuration takes.
    """

    model_type = "penstock"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]

    def __init__(self, spec: dict[str, Any] | None = None, **words: Any) -> None:
        spec = dict(spec or {"model": "language", "vocabulary": 256, "dim": 16, "layers": 1})
        self.spec = spec
        self.vocab_size, self.hidden_size = spec["vocabulary"], spec["dim"]
        self.num_hidden_layers = spec["layers"]
        words["tie_word_embeddings"] = spec.get("tied", True)
        super().__init__(**words)


@dataclass
class Alike:
    """The sequences of a batch that are padded alike, which are read together.

    Args:
        rows: which of the batch, `(N,)`.
        begin: where their tokens begin.
        end: where they end.
        state: of the mixers after what was read of them.
    """

    rows: Tensor
    begin: int
    end: int
    state: Any = None


class States:
    """The cache: the state of every mixer after the tokens that were seen; it grows only where a mixer's state does.

    Sequences that are padded otherwise have states of their own, in `groups`.
    """

    is_compileable = False

    def __init__(self) -> None:
        self.state: Any = None
        self.groups: list[Alike] = []
        self.seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - as caches have it
        """Return how many tokens were seen, padding among them."""
        return self.seen

    def reorder_cache(self, order: Tensor) -> None:
        """Take the states of these sequences, as beam search asks for; sequences that trade states are padded alike."""
        self.state = _mapped(self.state, lambda x: x.index_select(0, order.to(x.device)))
        for each in self.groups:
            own = (order[each.rows, None] == each.rows).int().argmax(1)
            each.state = _mapped(each.state, lambda x, own=own: x.index_select(0, own.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence."""
        self.state = _mapped(self.state, lambda x: x.repeat_interleave(repeats, 0))
        for each in self.groups:
            each.state = _mapped(each.state, lambda x: x.repeat_interleave(repeats, 0))
            copies = torch.arange(repeats, device=each.rows.device)
            each.rows = (each.rows.unsqueeze(1) * repeats + copies).flatten()


class PenstockForCausalLM(PreTrainedModel, GenerationMixin):
    """A `LanguageModel` whose calls, outputs and files are those of `transformers`.

    Mixers with a state take in every token, and padding would be one: sequences of a batch that `attention_mask` says are
    padded at their ends are read without it, those together that are padded alike. After padding at the left `generate` goes
    on with the states of each.

    Args:
        config: with the spec of the model.
    """

    config_class = PenstockConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_cache_class = True
    _is_stateful = True

    def __init__(self, config: PenstockConfig) -> None:
        super().__init__(config)
        model = build_model(config.spec)
        if not isinstance(model, LanguageModel):
            raise ConfigError(f"PenstockForCausalLM: the spec must be of a LanguageModel, got {type(model).__name__}")
        self.model = model
        self.post_init()

    @classmethod
    def of(cls, model: LanguageModel, **words: Any) -> "PenstockForCausalLM":
        """Return a model of `transformers` that holds `model` itself.

        Args:
            model: it.
            words: for the configuration, such as `eos_token_id`, at which `generate` ends a sequence.
        """
        with torch.device("meta"):
            made = cls(PenstockConfig(model.spec(), **words))
        made.model = model
        return made.train(model.training)

    def _init_weights(self, module: Any) -> None:
        """Leave weights as the mechanisms drew them."""

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the embeddings."""
        return self.model.embedding

    def get_output_embeddings(self) -> torch.nn.Module | None:
        """Return the map to the logits, or None where it is the embeddings."""
        return self.model.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: States | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **words: Any,  # noqa: ARG002 - positions and the like, which mixers keep in their states
    ) -> CausalLMOutputWithPast:
        """Return the logits after each of `input_ids` `(B, T)`, the loss where there are labels, and the cache.

        Raises:
            ConfigError: if `attention_mask` leaves out more than padding, which stands at the left where there is a cache.
        """
        cache = past_key_values
        if cache is None and use_cache and not self.training:
            cache = States()
        begins = cache is None or not cache.seen
        mask = attention_mask if begins or attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        groups = alike(mask, left=cache is not None)
        if not begins:
            if groups:
                raise ConfigError("PenstockForCausalLM: attention_mask must not leave out tokens that come to a cache")
            groups = cast("States", cache).groups
        state = None if cache is None else cache.state
        if groups:
            x = self.read_groups(input_ids, groups, begins=begins, cached=cache is not None)
        else:
            x, state = self.read(input_ids, state, cached=cache is not None)
        if cache is not None:
            cache.seen += input_ids.shape[1]
            cache.groups, cache.state = groups, state
        logits = self.model.logits(x[:, -logits_to_keep:] if logits_to_keep else x)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cast("Any", cache))

    def read(self, tokens: Tensor, state: Any, *, cached: bool) -> tuple[Tensor, Any]:
        """Return the stream after tokens of one length, and where it is cached the state."""
        if cached:
            return self.model.advance(tokens, state)
        return self.model.stack(self.model.embedding(tokens), tokens), None

    def read_groups(self, tokens: Tensor, groups: list[Alike], *, begins: bool, cached: bool) -> Tensor:
        """Return the stream after sequences that are padded otherwise, with zeros where they are padded."""
        parts = []
        for each in groups:
            begin, end = (each.begin, each.end) if begins else (0, tokens.shape[1])
            x, each.state = self.read(tokens[each.rows, begin:end], each.state, cached=cached)
            parts.append(F.pad(x, (0, 0, begin, tokens.shape[1] - end)))
        return torch.cat(parts)[torch.cat([each.rows for each in groups]).argsort()]

    def prepare_inputs_for_generation(  # pyrefly: ignore
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = True,
        **words: Any,  # noqa: ARG002 - positions and the like
    ) -> dict[str, Any]:
        """Return the tokens that the cache has not seen."""
        if not use_cache:
            return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        cache = past_key_values if isinstance(past_key_values, States) else States()
        mask = None if cache.seen else attention_mask
        return {"input_ids": input_ids[:, cache.seen :], "attention_mask": mask, "past_key_values": cache, "use_cache": True}

    def _prepare_attention_mask_for_generation(self, inputs: Tensor, *_: Any) -> Tensor:  # pyrefly: ignore
        """Return a mask where none was given: a token that is also used for padding may stand in a text."""
        return torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: Any, *_: Any) -> bool:  # pyrefly: ignore
        if generation_config.use_cache is not False:
            model_kwargs.setdefault("past_key_values", States())
        return False


def alike(mask: Tensor | None, *, left: bool) -> list[Alike]:
    """Return the sequences that a mask says are padded alike, or nothing where none is padded.

    Args:
        mask: 0 for padding, `(B, T)`.
        left: all padding must be at the left, since tokens follow.

    Raises:
        ConfigError: if something else is left out than padding.
    """
    if mask is None or torch.compiler.is_compiling() or bool(mask.all()):
        return []
    mask = mask.bool()
    begin, count = mask.int().argmax(1), mask.sum(1)
    place = torch.arange(mask.shape[1], device=mask.device)
    whole = (place >= begin.unsqueeze(1)) & (place < (begin + count).unsqueeze(1))
    if not torch.equal(whole, mask) or not bool(count.all()) or (left and not bool(mask[:, -1].all())):
        where = "at the left" if left else "at the ends"
        raise ConfigError(f"PenstockForCausalLM: attention_mask must leave out padding {where}, and not a whole sequence")
    kinds, kind = torch.stack((begin, begin + count), 1).unique(dim=0, return_inverse=True)
    return [Alike((kind == index).nonzero().squeeze(1), *span) for index, span in enumerate(kinds.tolist())]


def _mapped(state: Any, change: Any) -> Any:
    """Return a tree of states with every tensor changed."""
    return torch.utils._pytree.tree_map_only(Tensor, change, state)


AutoConfig.register("penstock", PenstockConfig, exist_ok=True)
AutoModelForCausalLM.register(PenstockConfig, PenstockForCausalLM, exist_ok=True)
