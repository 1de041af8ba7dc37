"""All checks, and running those that apply."""

from collections.abc import Iterator

from penstock.core.card import Card
from penstock.core.catalogue import CONTRACTS
from penstock.core.errors import ConfigError
from penstock.testing.applies import Check
from penstock.testing.checks import compiling, construction, contracts, gradients, traits, values
from penstock.testing.failure import CheckError

CHECKS: dict[str, Check] = {
    name.removeprefix("check_"): check
    for module in (construction, contracts, values, gradients, traits, compiling)
    for name, check in vars(module).items()
    if name.startswith("check_") and check is not compiling.check_inductor
}


def applicable(mechanism: type | Card) -> Iterator[Check]:
    """Yield the checks for a mechanism, given as class or as card, by its contract and its gates."""
    card = mechanism if isinstance(mechanism, Card) else getattr(mechanism, "card", None)
    if card is None or card.contract not in CONTRACTS:
        raise ConfigError(
            f"{getattr(mechanism, '__name__', mechanism)}: a mechanism has a contract and a card, from @mechanism(...)"
        )
    for check in CHECKS.values():
        if getattr(check, "when", lambda _: True)(card):
            yield check


def check_mechanism(cls: type) -> None:
    """Hold a mechanism to every check that applies to it.

    Raises:
        CheckError: naming every check that failed, and how.
    """
    failed = []
    for check in applicable(cls):
        try:
            check(cls)
        except Exception as error:  # noqa: BLE001 - whatever a mechanism raises in a check is a finding to report
            kind = "" if isinstance(error, CheckError) else f"{type(error).__name__}: "
            failed.append(f"  {check.__name__.removeprefix('check_')}: {kind}{str(error).strip().splitlines()[0]}")
    if failed:
        name = cls.card.name  # type: ignore[attr-defined]
        raise CheckError(f"{name} fails {len(failed)} of {len(list(applicable(cls)))} checks:\n" + "\n".join(failed))
