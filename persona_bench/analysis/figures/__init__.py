"""Tables -> pictures."""
