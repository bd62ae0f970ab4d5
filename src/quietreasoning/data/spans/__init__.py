"""Tool calls, repeated results and code as spans of characters; spans as classes of tokens."""
