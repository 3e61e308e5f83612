"""What runs: one module a stage of a run. `python -m jobs.JOB RECIPE [--student NAME] [key=value ...]`."""
