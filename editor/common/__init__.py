"""Errors, files, writing, names: what the other folders use and nothing of the method."""
