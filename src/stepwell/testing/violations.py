"""What a check found: the promise that was broken, and where."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

TEXT_CHARS_MAX = 4_000


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise. ``rule`` is its number, ``seq`` the journal entry that broke it, 0 if it is no entry."""

    rule: str
    instance_id: str
    seq: int
    text: str

    def __str__(self) -> str:
        where = f" entry {self.seq}" if self.seq else ""
        return f"{self.rule}: instance {self.instance_id!r}{where}: {self.text}"


@dataclass(slots=True)
class Report:
    """What was checked and what was found.

    Attributes:
        violations: in the order they were found; at most one for each entry.
        instances, entries, facts: how much was read.
        left_out: instances, or histories of instances, that were not checked because of a limit.
        examined: how often each rule had something to say about, so that a check that checks nothing can be seen.
    """

    violations: list[Violation] = field(default_factory=list[Violation])
    instances: int = 0
    entries: int = 0
    facts: int = 0
    left_out: int = 0
    examined: Counter[str] = field(default_factory=Counter[str])

    @property
    def ok(self) -> bool:
        return not self.violations

    @property
    def rules(self) -> set[str]:
        """The rules that were broken."""
        return {violation.rule for violation in self.violations}

    def add(self, rule: str, instance_id: str, text: str, seq: int = 0) -> None:
        self.violations.append(Violation(rule, instance_id, seq, text[:TEXT_CHARS_MAX]))

    def merge(self, other: Report) -> None:
        """Count what another report says as well."""
        self.violations += other.violations
        self.instances += other.instances
        self.entries += other.entries
        self.facts += other.facts
        self.left_out += other.left_out
        self.examined += other.examined

    def __str__(self) -> str:
        counts = f"{self.instances} instances, {self.entries} entries, {self.facts} facts"
        return "\n".join([f"{counts}: {len(self.violations)} violations", *map(str, self.violations)])
