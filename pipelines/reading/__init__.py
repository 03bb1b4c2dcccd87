"""A pipeline file as typed objects: YAML with places, variables, includes, validation, order."""
