"""Logs to tables to verdicts to figures and report."""
