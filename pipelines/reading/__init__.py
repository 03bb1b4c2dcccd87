"""A pipeline file as typed objects: YAML with lines, variables, includes, validation, order."""
