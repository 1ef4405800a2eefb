"""Command line: every flag is generated from the dataclass field that it sets."""
