"""Tools by the names they had first."""
