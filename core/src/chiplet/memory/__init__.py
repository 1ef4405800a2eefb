"""Memory: pages, the radix tree, and KvManager, the only door to both."""
