"""The version of the project. It enters no fingerprint: a release alone reruns nothing."""

VERSION = "0.1.0"
