"""Statements of a text, judged against evidence: `scorer.ClaimScorer().examine(text, sources, reference)`."""
