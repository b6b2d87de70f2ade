"""Scanning datasets of any size for samples that would move a model along a persona vector.

inputs -> samples -> measures, a shard at a time (local or cluster) -> parts -> the output and its summary (run).
"""
