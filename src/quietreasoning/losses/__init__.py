"""Loss functions: torch alone, each returns a sum with its count; the loop divides."""
