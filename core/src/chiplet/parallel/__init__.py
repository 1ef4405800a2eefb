"""Groups of ranks, and how layers are cut among them."""
