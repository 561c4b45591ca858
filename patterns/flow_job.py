"""A knockout sweep that was sent to a server and is fetched later, also by another process."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow.patterns.flow_there import accepted_ids, entry_of, first_position

from nnsight_mmflow._errors import DataError, MMFlowError, RemoteFailure
from nnsight_mmflow._journal import Journal
from nnsight_mmflow._remote import in_words
from nnsight_mmflow._sweep_there import fetch_there, submit_there

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.flow_result import FlowResult

    from nnsight_mmflow._graph import Graph
    from nnsight_mmflow._plan import Plan
    from nnsight_mmflow._prompt import Prompt

Work = list[tuple["Prompt", "Plan", str]]
FILE = "job.json"


class FlowJob:
    """What `mmf.flow(..., remote=True, blocking=False, folder=...)` returns.

    Attributes:
        folder: where finished prompts and the result are kept.
        jobs: by prompt the server's id of its job, those that are not fetched yet. An id is a secret: who has it can
            read the result.
    """

    def __init__(
        self, graph: Graph, work: Work, given: dict, journal: Journal, folder: Path, jobs: dict[str, str]
    ) -> None:
        self.graph, self.folder, self.jobs = graph, folder, jobs
        self._work, self._given, self._journal = work, given, journal

    def __repr__(self) -> str:
        return f"FlowJob({len(self._work) - len(self.jobs)} of {len(self._work)} prompts fetched, folder={self.folder})"

    @property
    def status(self) -> dict[str, int]:
        """How many prompts are FETCHED, and how many jobs stand where (QUEUED, RUNNING, ...); fetches what is done."""
        return self._fetch()

    @in_words
    def _fetch(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for prompt, plan, identity in self._work:
            job = self.jobs.get(identity)
            if job is None:
                found["FETCHED"] += 1
                continue
            status, numbers = fetch_there(self.graph, job)
            if numbers is None:
                found[status] += 1
                continue
            only_correct, longest = self._given["only_correct"], self._given["max_new_tokens"]
            start = first_position(plan, prompt)
            entry = entry_of(self.graph, prompt, plan, identity, start, only_correct, longest, numbers)
            self._journal.add(entry)
            del self.jobs[identity]
            found["FETCHED"] += 1
        self.save(self.folder / FILE)
        return dict(found)

    def result(self, every: float = 1.0, timeout: float | None = None) -> FlowResult:
        """Waits until all is done, and returns the FlowResult.

        Args:
            every: seconds between two looks.
            timeout: how many seconds to wait at most; None: as long as it takes.

        Raises:
            RemoteFailure: a job failed, or the time is over; what is fetched stays in the folder.
        """
        from nnsight_mmflow.patterns.flow import flow

        ends = None if timeout is None else time.monotonic() + timeout
        while set(now := self._fetch()) != {"FETCHED"}:
            if ends is not None and time.monotonic() > ends:
                raise RemoteFailure(f"after {timeout} seconds the jobs stand at {now}: call result() again later.")
            time.sleep(every)
        prompts = [prompt for prompt, _, _ in self._work]
        return flow(self.graph, prompts, folder=self.folder, progress=False, report=str, **self._given)

    def save(self, file: str | PathLike[str]) -> None:
        """Writes what another process needs to pick the job up (`FlowJob.load`); no key, no prompt."""
        kept = {"folder": str(self.folder), "given": self._given, "jobs": self.jobs}
        Path(file).write_text(json.dumps(kept, indent=2) + "\n")

    @classmethod
    def load(cls, file: str | PathLike[str], graph: Graph, prompts: Prompt | Sequence[Prompt]) -> FlowJob:
        """The job of that file, with the same prompts.

        Raises:
            DataError: the file is none of a job, or the prompts are others.
        """
        from nnsight_mmflow.patterns.flow import flow

        try:
            kept = json.loads(Path(file).read_text())
            folder, given, jobs = Path(kept["folder"]), kept["given"], kept["jobs"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{file} holds no job that FlowJob.save wrote: {error}.") from error
        made = flow(graph, prompts, folder=folder, blocking=False, report=str, sent=jobs, **given)
        unknown = set(jobs) - {identity for _, _, identity in made._work}
        if unknown:
            raise DataError(
                f"{file} is of other prompts: {len(unknown)} of its {len(jobs)} jobs belong to none of these."
            )
        return made


def submit(
    graph: Graph,
    work: Work,
    given: dict,
    folder: str | PathLike[str] | None,
    journal: Journal,
    engine: str,
    sent: dict[str, str] | None = None,
) -> FlowJob:
    """Sends what is not finished, one job per prompt, and returns at once.

    Args:
        graph: the model, on a server.
        work: the prompts, with their plans and names.
        given: the settings of the sweep.
        folder: where finished prompts are kept.
        journal: those that are finished.
        engine: how it is run.
        sent: jobs that were sent before, by prompt.

    Raises:
        MMFlowError: the graph runs here, there is no folder, or another engine was asked for.
    """
    if not graph.remote or graph.remote == "local":
        raise MMFlowError(
            "blocking=False is for runs on a server: mmf.flow(..., remote=True, blocking=False, folder=DIR)."
        )
    if folder is None or engine != "rows":
        raise MMFlowError("blocking=False needs folder=, where finished prompts are kept, and engine='rows'.")
    jobs = {identity: job for identity, job in (sent or {}).items() if identity not in journal.done}
    for prompt, plan, identity in work:
        if identity not in journal.done and identity not in jobs:
            accepted = accepted_ids(graph, prompt, given["only_correct"])
            start = first_position(plan, prompt)
            jobs[identity] = submit_there(graph, plan, prompt, start, given["max_new_tokens"], accepted)
    made = FlowJob(graph, work, given, journal, Path(folder), jobs)
    made.save(Path(folder) / FILE)
    return made
