"""The checks every mechanism must pass; they are public, so that anyone can hold a gate of their own to them.

from penstock.testing import check_mechanism

check_mechanism(MyGate)     # raises, and lists every check that MyGate fails
"""

from penstock.testing.capabilities import capabilities
from penstock.testing.failure import CheckError
from penstock.testing.suite import CHECKS, applicable, check_mechanism

__all__ = ["CHECKS", "CheckError", "applicable", "capabilities", "check_mechanism"]
