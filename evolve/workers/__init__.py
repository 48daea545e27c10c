"""Who scores candidates, and how the driver reaches them.

worker.py    merges a candidate into a live model and scores it
pool.py      what the driver needs of its workers
cluster.py   these as Ray actors
timeouts.py  how long their work may take
dispatch.py  keeps them busy; who is tried again, and who is given up
"""
