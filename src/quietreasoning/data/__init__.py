"""Tasks yield Examples; an Encoder turns them into ids; Batches serves them by step number."""
