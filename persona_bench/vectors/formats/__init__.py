"""Other projects' vector files, in and out; nothing in one is ever executed."""
