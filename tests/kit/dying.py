"""Workers that kill themselves at prompts whose keys say so; a module, since workers import it by name."""

import os
import signal
from pathlib import Path

from nnsight_mmflow.workers.crew import Worker

ONCE, ALWAYS, FAILS = "kills its worker once, marked by ", "kills its worker always", "fails"


class Dying(Worker):
    """Ends as the kernel ends a process whose memory runs out: by SIGKILL, in the middle of the work."""

    def do(self, task, given):
        for _, (prompt, *_) in given[2]:
            if prompt.key == ALWAYS:
                os.kill(os.getpid(), signal.SIGKILL)
            if prompt.key.startswith(ONCE):
                marker = Path(prompt.key.removeprefix(ONCE))
                if not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        return super().do(task, given)
