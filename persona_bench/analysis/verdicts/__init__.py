"""Tables and frames -> a verdict a claim, by rules written before the numbers."""
