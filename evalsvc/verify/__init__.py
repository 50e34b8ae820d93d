"""Numbers computed a second time by the programs that the field cites."""
