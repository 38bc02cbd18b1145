"""Evaluation: episodes over a split become figures with intervals.

run.py plays the attempts, intervals.py holds the statistics of a rate, horizon.py success against task length."""
