"""What chaos.py is made of.

formula.py    a worker that scores by formula, and says what it is at
session.py    one session of the search: a driver in a process of its own
cluster.py    the nodes of a Ray cluster on this machine, and all processes that come of them
database.py   a PostgreSQL server that is stopped and started
disturber.py  keeps sessions going, and kills
content.py    what is on record, what has changed in it, and what it must be equal to
"""
