"""Hardware profiles as YAML files, each number with its source."""
