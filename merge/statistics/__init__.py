"""What a method may ask of a whole tensor, in few passes over its blocks.

statistics.py  dot products, sums, numbers of rows, cuts
quantities.py  numbers for every element, such as magnitudes, by segments of the tensor
selection.py   the k largest of them, exactly
reductions.py  what the candidates of a search have in common, shared by a machine's processes
"""

from heterosis.merge.statistics.statistics import Statistics

__all__ = ["Statistics"]
