"""A knockout sweep that was sent to a server and is fetched later, also by another process."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnsight_mmflow._errors import DataError, MMFlowError, ServerError
from nnsight_mmflow._later import later
from nnsight_mmflow.files.output import output_folder, write_text
from nnsight_mmflow.patterns.flow.measure import accepted_ids, entry_of, first_position
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.job import Job
from nnsight_mmflow.runs.runner import Task
from nnsight_mmflow.runs.sweep import fetch_there, submit_there

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.flow.result import FlowResult
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.journal import Journal

FILE = "job.json"
JOB = re.compile(r"[\w-]+")  # a server's id goes into an address
# What a file may say of a sweep, and of which type.
GIVEN: dict[str, tuple[type, ...]] = {
    "edges": (list, type(None)),
    "window": (int, list),
    "only_correct": (bool,),
    "row_budget": (int,),
    "max_new_tokens": (int,),
    "controls": (int,),
}


class FlowJob(Job["FlowResult"]):
    """What `mmf.flow(..., remote=True, blocking=False, folder=...)` returns.

    Attributes:
        folder: where finished prompts and the result are kept.
        jobs: by prompt the server's id of its job, those that are not fetched yet. An id is a secret: who has it can
            read the result.
        work: the prompts, with their plans and names.
        given: the settings of the sweep.
        journal: keeps the numbers that are fetched.
    """

    def __init__(
        self, graph: Graph, work: list[Task], given: dict, journal: Journal, folder: Path, jobs: dict[str, str]
    ) -> None:
        self.graph, self.folder, self.jobs = graph, folder, jobs
        self.work, self.given, self.journal = work, given, journal

    def __repr__(self) -> str:
        fetched = sum(task.identity not in self.jobs for task in self.work)
        return f"FlowJob({fetched} of {len(self.work)} prompts fetched, folder={self.folder})"

    def _repr_html_(self) -> str:

        return later("job_html")(self)

    @property
    def status(self) -> dict[str, int]:
        """How many prompts are FETCHED, and how many jobs stand where (QUEUED, RUNNING, ...); fetches what is done."""
        return fetch(self.graph, self)

    def result(self, every: float = 1.0, timeout: float | None = None) -> FlowResult:
        """Waits until all is done, and returns the FlowResult; prompts whose job ENDED without numbers are run again.

        Args:
            every: seconds between two looks.
            timeout: how many seconds to wait at most; None: as long as it takes.

        Raises:
            ServerError: a job failed, or the time is over; what is fetched stays in the folder.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        while set(now := self.status) - {"FETCHED", "ENDED"}:
            if ends is not None and time.monotonic() > ends:
                raise ServerError(f"after {timeout} seconds the jobs stand at {now}: call result() again later.")
            time.sleep(every)
        prompts = [task.given[0] for task in self.work]
        return later("flow")(self.graph, prompts, folder=self.folder, progress=False, report=str, **self.given)

    def save(self, file: str | PathLike[str]) -> None:
        """Writes what another process needs to pick the job up (`FlowJob.load`); no key, no prompt, no place."""
        write_text(file, json.dumps({"given": self.given, "jobs": self.jobs}, indent=2) + "\n")

    @classmethod
    def load(
        cls,
        file: str | PathLike[str],
        graph: Graph,
        prompts: Prompt | Sequence[Prompt],
        folder: str | PathLike[str] | None = None,
    ) -> FlowJob:
        """The job of that file, with the same prompts.

        Of the file only the sweep's settings and the server's ids are taken. Which server is asked, with your key, is
        the graph's matter, and where is written yours: a file from someone else decides neither.

        Args:
            file: what `save` wrote; `flow` keeps one in its folder.
            graph: the model, on the server that has the jobs.
            prompts: the same as were sent, in any order.
            folder: the run's folder; None: the one in which the file lies.

        Raises:
            DataError: the file is none of a job, or the prompts are others.
        """
        from nnsight_mmflow.prompts.prompt import Prompt as OnePrompt
        from nnsight_mmflow.runs.identity import identities

        prompts = [prompts] if isinstance(prompts, OnePrompt) else list(prompts)
        given, jobs = read_job(file)
        unknown = set(jobs) - set(identities(prompts))
        if unknown:  # before anything is sent
            raise DataError(
                f"{file} is of other prompts: {len(unknown)} of its {len(jobs)} jobs belong to none of these."
            )
        folder = output_folder(folder if folder is not None else Path(file).parent)
        if not (folder / FILE).exists():
            write_text(folder / FILE, json.dumps({"given": given, "jobs": jobs}, indent=2) + "\n")
        return later("flow")(graph, prompts, folder=folder, blocking=False, report=str, **given)


def read_job(file: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """(the settings, the ids by prompt) that a job's file holds.

    Raises:
        DataError: it is no such file.
    """
    try:
        kept = json.loads(Path(file).read_bytes())
        given, jobs = dict(kept["given"]), dict(kept["jobs"])
        for name, value in given.items():
            known = GIVEN.get(name, ())
            wrong = isinstance(value, list) and not all(
                type(item) is (str if name == "edges" else int) for item in value
            )
            if wrong or not isinstance(value, known) or (isinstance(value, bool) and bool not in known):
                raise ValueError(f"{name}={value!r} is no setting of a sweep")
        for job in jobs.values():
            if not isinstance(job, str) or not JOB.fullmatch(job):
                raise ValueError(f"{job!r} is no id of a job")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file} holds no job that FlowJob.save wrote: {error}.") from error
    return given, jobs


@experiment
def fetch(graph: Graph, job: FlowJob) -> dict[str, int]:
    """Fetches what is done, and says how many prompts stand where; a job that failed is told once, then ENDED."""
    from nnsight.intervention.backends.remote import RemoteError

    counts: Counter[str] = Counter()
    with job.journal as journal:
        for task in job.work:
            identity, (prompt, _, plan, *_) = task.identity, task.given
            if identity in journal.done:  # by another process, it may be
                job.jobs.pop(identity, None)
            if identity not in job.jobs:
                counts["FETCHED" if identity in journal.done else "ENDED"] += 1
                continue
            try:
                status, numbers = fetch_there(graph, job.jobs[identity])
            except RemoteError:  # it ended, and no later look finds more: what sends the rest sends it again
                del job.jobs[identity]
                job.save(job.folder / FILE)
                raise
            if numbers is None:
                counts[status] += 1
                continue
            only_correct, longest = job.given["only_correct"], job.given["max_new_tokens"]
            journal.add({"id": identity, **entry_of(graph, prompt, plan, only_correct, longest, numbers)})
            del job.jobs[identity]
            counts["FETCHED"] += 1
        job.save(job.folder / FILE)
    return dict(counts)


def submit(
    graph: Graph,
    work: list[Task],
    given: dict,
    folder: str | PathLike[str] | None,
    journal: Journal,
    engine: str,
) -> FlowJob:
    """Sends what is neither finished nor sent before (the folder tells), one job per prompt, and returns at once.

    Args:
        graph: the model, on a server.
        work: the prompts, with their plans and names.
        given: the settings of the sweep.
        folder: where finished prompts are kept.
        journal: those that are finished.
        engine: how it is run.

    Raises:
        MMFlowError: the graph runs here, there is no folder, or another engine was asked for.
    """
    if folder is None or engine != "rows":
        raise MMFlowError("blocking=False needs folder=, where finished prompts are kept, and engine='rows'.")
    file = Path(folder) / FILE
    sent = read_job(file)[1] if file.exists() else {}
    jobs = {identity: job for identity, job in sent.items() if identity not in journal.done}
    job = FlowJob(graph, work, given, journal, Path(folder), jobs)
    for task in work:
        identity, (prompt, _, plan, *_) = task.identity, task.given
        if identity not in journal.done and identity not in jobs:
            accepted = accepted_ids(graph, prompt, given["only_correct"])
            start = first_position(plan, prompt)
            jobs[identity] = submit_there(graph, plan, prompt, start, given["max_new_tokens"], accepted)
            job.save(file)  # at once: a connection that breaks loses no job
    job.save(file)
    return job
