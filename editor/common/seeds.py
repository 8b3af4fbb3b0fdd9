"""The range of seeds that give different noise. Needs no torch."""

LARGEST_SEED = 2**32 - 1
"""torch's CPU generator ignores what is beyond: two seeds would give the same noise"""
