"""The version of the project. It is in no fingerprint: a new release alone reruns nothing."""

VERSION = "0.1.0"
