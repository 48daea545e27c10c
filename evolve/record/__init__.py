"""What a run keeps, durably; only its driver writes it.

trial.py    a candidate that was asked for, and what came of it
record.py   asks, scores and trials
tally.py    what these amount to
storage.py  the same as an Optuna study, also where its storage is away for a while
state.py    what a run keeps for its later sessions
folder.py   the run folder, and its lock
lease.py    a claim on it that other machines see
files.py    what is in it; summary_file.py: what its summary says
"""
