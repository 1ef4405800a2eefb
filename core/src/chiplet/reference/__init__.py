"""Reference: a plain, correct version of everything; fallback and oracle."""
