"""Attacks on an edit."""
