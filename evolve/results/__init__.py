"""What a run leaves for people and programs.

summary.py  what came of it, in numbers and words: summary.json
table.py    a line for each trial: trials.csv
export.py   recipes of trials: best.yaml, front/
outcome.py  all of these files
"""
