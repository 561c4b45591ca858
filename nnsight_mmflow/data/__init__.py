"""Questions and benchmarks from files, and the prompts that they become."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._later import group

if TYPE_CHECKING:
    from nnsight_mmflow.data.benchmarks import Benchmark as Benchmark
    from nnsight_mmflow.data.benchmarks import read_benchmark as read_benchmark
    from nnsight_mmflow.data.constraint_files import read_constraint_questions as read_constraint_questions
    from nnsight_mmflow.data.constraints import Constraint as Constraint
    from nnsight_mmflow.data.constraints import ConstraintQuestion as ConstraintQuestion
    from nnsight_mmflow.data.constraints import write_constraint_questions as write_constraint_questions
    from nnsight_mmflow.data.question_files import read_questions as read_questions
    from nnsight_mmflow.data.questions import Question as Question
    from nnsight_mmflow.data.questions import prompts_of as prompts_of

_WHERE = {
    "Question": "data.questions",
    "prompts_of": "data.questions",
    "read_questions": "data.question_files",
    "Benchmark": "data.benchmarks",
    "read_benchmark": "data.benchmarks",
    "Constraint": "data.constraints",
    "ConstraintQuestion": "data.constraints",
    "read_constraint_questions": "data.constraint_files",
    "write_constraint_questions": "data.constraints",
}

__all__ = sorted(_WHERE)
__getattr__, __dir__ = group(__name__, _WHERE)
