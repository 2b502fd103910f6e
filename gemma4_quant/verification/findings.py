"""What a verification reports, whatever it looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """A difference between a file and its checkpoint.

    subject: the tensor, key, token or text. is_fault: whether the file is wrong, or merely different.
    """

    subject: str
    problem: str
    is_fault: bool = True


@dataclass(frozen=True)
class Part:
    """One part of a verification: how many things were compared, and what was found."""

    name: str
    n_compared: int
    unit: str
    findings: Sequence[Finding] = field(default=())

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that make the file wrong."""
        return tuple(finding for finding in self.findings if finding.is_fault)
