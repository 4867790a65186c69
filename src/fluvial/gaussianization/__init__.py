"""Flows fitted layer by layer without backpropagation, and the theory that says how many layers."""
