"""What bench_search.py is made of.

skills.py      the tiny language that the models speak, its documents and its tokenizer
zoos.py        zoos: a base, experts with conflicting skills, tasks; trained here
scoring.py     recipes to scores in one process, and the pool of workers that a search can use instead of Ray's
contenders.py  how others search: mergekit-evolve, mergenetic, random, TPE
ours.py        heterosis' own search, at growing budgets
results.py     raw results as JSON lines, curves, tables
plot.py        the curves as SVG
coverage.py    how often reported intervals contain the true gain
"""
