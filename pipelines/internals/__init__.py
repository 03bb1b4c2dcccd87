"""All uses of what other libraries keep to themselves, with a check of their versions.

A file for each library, so that a stage depends on those alone that it uses.
"""
