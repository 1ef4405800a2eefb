"""`chiplet plugin`: for those who write one."""
