"""Attacks as their papers have them, one file each."""
