"""Before a search starts.

preflight.py      what can be refused: models, space, tasks, documents
contamination.py  a warning when a published benchmark or a test split is searched on
resources.py      workers, memory, disk, time
rehearsal.py      one candidate, tried
inspection.py     all of it, for ``heterosis inspect``
draft.py          a first config for models and tasks, for ``heterosis init``
"""
