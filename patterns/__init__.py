"""One file per intervention or experiment. No pattern knows an architecture; none plots."""
