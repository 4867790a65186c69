"""Bridges to other libraries, each in a module named after it and imported only when asked for: zuko, pyro, sbi."""
