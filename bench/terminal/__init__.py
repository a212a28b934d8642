"""Tables for a terminal, none wider than 100 columns."""
