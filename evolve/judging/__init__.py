"""From scores of documents to who is better.

objective.py   what is maximised
comparison.py  two models on the same documents
statistics.py  paired intervals
racing.py      which documents come when, and who stops early
sampling.py    which documents all candidates meet, where the best of them meet all
referee.py     what a candidate meets next, and what its scores amount to
races.py       how parents and finalists are compared
finals.py      the shortlist, and what the finals found
"""
