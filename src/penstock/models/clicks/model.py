"""A click model: embedded fields, an interaction of your choice, and a logit for each target."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from penstock.core import ConfigError, DataError, FieldInteraction, Size
from penstock.core.catalogue import get
from penstock.core.choice import Choice, build_choice
from penstock.core.module import MechanismType
from penstock.models.clicks.embedding import FieldEmbedding, Rows
from penstock.models.clicks.fields import Fields
from penstock.models.files import CONFIG, fill, read, save_model
from penstock.ops.linear import Linear

if TYPE_CHECKING:
    import numpy as np

    from penstock.models.clicks.encoding import Encoder

FIELDS = "fields.json"


class ClickModel(nn.Module, metaclass=MechanismType):
    """Logits for rows of a table, `Rows -> (B, targets)`: embeddings, a `FieldInteraction`, and a linear map.

    Args:
        fields: what is read and what is predicted, as `penstock.models.clicks.encoding.fit` finds it.
        model: the interaction, a name such as "gdcn", or a mapping with the key `mechanism` and arguments.
        dim: width of the embeddings.
        sparse: whether the table's gradient holds only the rows that were read; `ClickOptimizer` makes use of it.
        table: the form of the table of embeddings, see `penstock.models.clicks.tables.build_table`; whole by default.
        device: where the parameters live.
        dtype: their type.
    """

    arguments: dict[str, Any]

    def __init__(
        self,
        fields: Fields,
        model: Choice = "dcn-v2",
        dim: Size = 16,
        *,
        sparse: bool = True,
        table: Mapping[str, Any] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        place = {"device": device, "dtype": dtype}
        self.fields, self.dim, self.tasks, self.table = fields, dim, len(fields.targets), table
        apart = _reads_items(model, fields)
        self.embedding = FieldEmbedding(fields, dim, sparse=sparse, table=table, items=bool(apart), **place)
        known = {"fields": self.embedding.fields, "dim": dim, "tasks": self.tasks, **apart, **place}
        built = build_choice("ClickModel: model", model, FieldInteraction, known)
        self.interaction = cast("FieldInteraction", built)
        width = self.interaction.width
        gives_logits = self.interaction.gives_logits or (width == 1 and self.tasks == 1)
        if gives_logits and width != self.tasks:
            raise ConfigError(
                f"ClickModel: {self.interaction.name} answers {width} targets, and there are {self.tasks}: "
                f"{', '.join(target.label for target in fields.targets)}"
            )
        self.head = None if gives_logits else Linear(width, self.tasks, **place)

    @property
    def name(self) -> str:
        """Name of the interaction."""
        return self.interaction.name

    def forward(self, rows: Rows) -> Tensor:
        """Return the logits of `rows`, `(B, targets)`."""
        return self.answer(self.embedding(rows))

    def answer(self, x: Tensor) -> Tensor:
        """Return the logits of embedded rows `x` `(B, fields, dim)`."""
        y = self.interaction(x)
        return y if self.head is None else self.head(y)

    def spec(self) -> dict[str, Any]:
        """Return what makes the same model again, beside the fields, of which it has the digest."""
        chosen = {key: value for key, value in self.interaction.spec().items() if key not in ("fields", "dim", "tasks")}
        digest = hashlib.sha256(self.fields.to_json().encode()).hexdigest()
        form = {} if self.table is None else {"table": dict(self.table)}
        return {"model": "clicks", "interaction": chosen, "dim": self.dim, **form, "fields": digest}

    def save(self, folder: str | Path) -> None:
        """Write the model into `folder`: `config.json`, `fields.json` and `model.safetensors`.

        Raises:
            DataError: where the folder cannot be written.
        """
        save_model(self, folder, {FIELDS: self.fields.to_json()})

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str | None = None) -> Self:
        """Return the model saved in `folder`, ready to predict.

        Raises:
            DataError: where a file is missing or damaged, or the files do not belong together.
        """
        folder = Path(folder)
        spec, tensors = read(folder, str(device or "cpu"))
        if not isinstance(spec, dict) or spec.get("model") != "clicks":
            raise DataError(f"{folder} does not hold a click model")
        if not (folder / FIELDS).is_file():
            raise DataError(f"{folder} holds no click model: {FIELDS} is missing")
        text = (folder / FIELDS).read_text("utf-8")
        if hashlib.sha256(text.encode()).hexdigest() != spec["fields"]:
            raise DataError(f"{folder}: {FIELDS} is not of the model in {CONFIG}")
        vectors = tensors.get("embedding.vectors")
        words = {"table": spec.get("table"), "device": device, "dtype": None if vectors is None else vectors.dtype}
        model = cls(Fields.from_json(text), spec["interaction"], spec["dim"], **words)
        fill(model, tensors, folder)
        return model.eval()

    def predict(self, data: Any, *, batch: int = 4096) -> "np.ndarray":
        """Return the probability of each target in each row of a table: `(rows,)`, or `(rows, targets)` where several.

        Args:
            data: a CSV or Parquet file or a data frame, see `penstock.tables.read`. Columns that the model does not know are
                left out; values that it has not seen are one value, new.
            batch: rows at a time.

        Raises:
            DataError: a column that the model reads is not there, or a value does not fit it; the message has the row.
        """
        import numpy as np

        parts = list(self.predictions(data, batch=batch))
        whole = np.concatenate(parts) if parts else np.zeros((0, self.tasks), np.float32)
        return whole[:, 0] if self.tasks == 1 else whole

    @torch.no_grad()
    def predictions(self, data: Any, *, batch: int = 4096, encoder: "Encoder | None" = None) -> Iterator["np.ndarray"]:
        """Yield what `predict` returns batch by batch, `(rows, targets)`, so that no more than a batch is in memory.

        Args:
            data: as for `predict`.
            batch: rows at a time.
            encoder: what reads the rows; it counts the values that are new.
        """
        from penstock.models.clicks.encoding import Encoder

        encoder, was, device = encoder or Encoder(self.fields), self.training, self.embedding.vectors.device
        self.eval()
        try:
            for rows in encoder.rows(data):
                for start in range(0, len(rows), batch):
                    part = rows.take(slice(start, start + batch)).to(device)
                    yield torch.sigmoid(self(part).float()).cpu().numpy()
        finally:
            self.train(was)


def _reads_items(model: Choice, fields: Fields) -> dict[str, Any]:
    """Return where the target and the items of lists are, for an interaction that reads these one by one; else nothing.

    It is nothing, too, where the history is named and is other fields.
    """
    name = model if isinstance(model, str) else (model or {}).get("mechanism")
    if not isinstance(name, str) or not getattr(get(name), "reads_items", False):
        return {}
    lists = fields.of("history")
    first = len(fields) - len(lists)
    found = list(range(first, first + sum(field.longest for field in lists)))
    named = None if isinstance(model, str) else (model or {}).get("history")
    if named is not None and list(named) != found:
        return {}
    if not lists or not fields.of("categorical"):
        raise ConfigError(f"ClickModel: {name} reads a column of lists beside a category, and there are not both")
    return {"target": len(fields.of("numeric")), "history": found}
