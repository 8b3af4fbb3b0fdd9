"""Verifies an artifact's folder: hashes, agreement of its parts, tables, signature."""
