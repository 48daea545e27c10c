"""The recipe language: mergekit's YAML, strict.

recipe.py      a recipe
rules.py       what must hold between its keys and documents
parameters.py  its settings: gradients and filters, resolved for one tensor
reference.py   which model is meant
command.py     the command that merges its file
discovery.py   what it says of the search that found it
faults.py      what is wrong with a mapping, in our words
"""
