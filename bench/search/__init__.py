"""What every method reaches with its evaluations: comparisons at several budgets, with tables and pictures on top."""
