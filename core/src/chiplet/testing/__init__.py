"""Testing: fakes and suites for those who build on Chiplet."""
