"""Looking at the gates of any model: `with watch(model) as gates: model(x)`, then `print(gates.table())`."""

from penstock.inspect.rows import Row, Table
from penstock.inspect.watching import Watch, watch

__all__ = ["Row", "Table", "Watch", "watch"]
