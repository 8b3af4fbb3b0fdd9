"""Tuning: tries settings through the dynamic hook, and keeps what removes a concept at the least change elsewhere."""
