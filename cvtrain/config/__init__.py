"""What a command line and its YAML files mean: groups, keys, rules, aliases. No torch here."""
