"""One program instead of many tool calls: stubs, eligibility, a run in the sandbox, reward, pairs."""
