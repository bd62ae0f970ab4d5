"""`quiet ...`: thin commands over `quietreasoning.run`."""
