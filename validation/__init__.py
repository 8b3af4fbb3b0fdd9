"""Proves an artifact: runs it and compares it with the dynamic hook. Never imports `export`."""
