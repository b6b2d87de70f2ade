"""Frames -> tidy tables, one row a cell; a file a family of tables."""
