"""Comparing evalsvc's numbers with those of the programs that the field cites."""
