"""One way to run an experiment: plan, cost, folder, result."""
