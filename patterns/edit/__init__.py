"""MultEdit: facts written into weights, and whether they hold."""
