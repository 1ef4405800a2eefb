"""Runner: plans become forward passes and tokens."""
