"""Experiments: tasks, recipes, runs, comparisons and the reports on them. Imports engine and miniature, never serve."""
