"""Judges: what says, of a picture, whether a concept is seen on it."""
