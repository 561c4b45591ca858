"""What the conformance suite found, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from nnsight_mmflow.show.html import box, heading, swatch, table

OUTCOMES = {"pass": "#00573F", "fail": "#B00020", "not applicable": "#BBBBBB"}


def report_html(report: CheckReport) -> str:
    """A row per check; what failed is named first."""
    failed = [line for line in report.lines if line.outcome == "fail"]
    verdict = f"{len(failed)} of {len(report.lines)} checks failed" if failed else "all that applies passed"
    lines = [*failed, *(line for line in report.lines if line not in failed)]
    rows = [(line.name, swatch(OUTCOMES[line.outcome], line.outcome), line.detail) for line in lines]
    return box(heading(f"{report.model}: {verdict}"), table(("check", "outcome", "what was found"), rows))


@dataclass(frozen=True)
class Line:
    """One line of the table: what was checked, "pass", "fail" or "not applicable", and the numbers or the reason."""

    name: str
    outcome: str
    detail: str


@dataclass(frozen=True)
class CheckReport:
    """What the suite found.

    Attributes:
        model: the name of the model that was checked.
        lines: what each check found, in order.
    """

    model: str
    lines: tuple[Line, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not any(line.outcome == "fail" for line in self.lines)

    def _repr_html_(self) -> str:
        return report_html(self)

    def __repr__(self) -> str:
        failed = sum(line.outcome == "fail" for line in self.lines)
        return f"CheckReport({self.model!r}, {len(self.lines)} checks, {failed} failed)"

    def __str__(self) -> str:
        width = max(len(line.name) for line in self.lines)
        rows = [f"{line.name.ljust(width)}  {line.outcome.ljust(14)}  {line.detail}" for line in self.lines]
        failed = sum(line.outcome == "fail" for line in self.lines)
        verdict = "all that applies passed" if not failed else f"{failed} of {len(self.lines)} checks failed"
        return "\n".join([f"{self.model}: {verdict}", "", *rows])
