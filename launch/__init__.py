"""Where it runs: turns a recipe into a graph of jobs and puts it somewhere. Imports no torch."""
