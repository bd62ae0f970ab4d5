"""A key/value cache that keeps what the prompt's last queries look at, in few bits."""
