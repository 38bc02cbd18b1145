"""Evaluation: episodes over a split become figures with intervals.

run.py plays the attempts, within what budget.py allows and as suite.py lists them; figures.py sums them up. Statistics:
intervals.py of one rate, passes.py of attempts together, compare.py of two runs, calibration.py of confidences;
horizon.py, survival.py and hazard.py of task length, conditioning.py of planted errors, minutes.py of people's time.
score.py judges stored episodes again."""
