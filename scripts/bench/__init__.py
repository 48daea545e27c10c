"""The parts of bench_merge.py.

checkpoints.py  sizes and methods; makes the models and adapters that are merged, and writes the recipes
programs.py     what is measured: the floor, heterosis and mergekit, each a process of its own
results.py      the raw lines, and the tables made of them
plot.py         how time grows, as SVG
"""
