"""The only part that knows Inspect: provider, judge, solvers, metrics."""
