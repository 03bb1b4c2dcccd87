"""What stages, runs and files say of each other, by name.

Frozen classes, each with one form in JSON, which is its fields. Engine, stages, reports, the site
and MLflow all read and write them through these classes. A file for each subject, so that a stage
depends on those alone that it uses.
"""
