"""From a plan to merged blocks.

executor.py      plan -> blocks, within a memory budget, on several threads
computation.py   the arithmetic of one operation: a program, merged blocks
input_blocks.py  what it reads
finite.py        refusing merged values that cannot be used
stages.py        an earlier merge as an input, computed as it is read
sinks.py         where blocks go
"""
