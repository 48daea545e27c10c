"""What is searched: points of the unit cube, named numbers and choices, and the recipes these stand for.

dimensions.py      coordinates with names, and the unit cube that optimizers see
space.py           a config's free numbers and choices <-> recipes
genes.py           which parameters are searched
depth.py           over which layers they are shared
inverse.py         recipes read back
paths.py           layers of models, in which order <-> slices recipes
path_encodings.py  how values stand for paths
"""
