"""`python -m nnsight_mmflow` is the command `mmflow`."""

import sys

from nnsight_mmflow.command_line import main

sys.exit(main())
