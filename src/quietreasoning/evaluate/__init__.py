"""One door, `harness.evaluate`: accuracy with intervals, cost beside it, controls beside every quiet arm."""
