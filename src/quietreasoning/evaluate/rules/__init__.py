"""A YAML file of rules as one scorer: `load.load_rules(path).score(text, context)`. See docs/rules.md."""
