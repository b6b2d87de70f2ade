"""Training sets for finetuning: eight families, each in a normal version and two with mistakes or a trait."""
