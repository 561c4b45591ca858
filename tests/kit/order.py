"""Which tests are quick, and which run first (conftest.py)."""

from pathlib import Path

# Of each folder these files, or all (""): a minute and a half together on two cores, `-m quick` (times of 2026-11-30).
QUICK = {
    "adapters": "adapters adapters_more real_configs",
    "bridge": "bridge",
    "data": "benchmarks_data odd_files questions",
    "house": "additions catalogue formerly house package security shapes",
    "inside": "called masks shipping",
    "model": "together turns versions",
    "patterns": "knockout lens patch prune_before prune_report",
    "prompts": "made_again pixels prompts prompts_more",
    "runs": "output",
    "show": "diagram explore_values",
    "spans": "",
}
# Of a quarter of a minute and more: first, so that no process waits for one of them at the end.
FIRST = {
    "test_the_remote_cases_pass",
    "test_the_rows_pass",
    "test_the_plain_cases_pass",
    "test_killed_workers_lose_nothing_and_a_run_goes_on_where_it_was",
    "test_kills_of_every_experiment_lose_and_repeat_nothing",
    "test_a_model_split_over_two_processes_gives_the_same_knockouts",
    "test_accuracy_with_and_without_the_image",
    "test_notebook_runs",
    "test_types",
}


def is_quick(path: Path) -> bool:
    """Whether the file is named above."""
    names = QUICK.get(path.parent.name)
    return names is not None and (not names or path.stem.removeprefix("test_") in names.split())
