"""The parts of bench_driver.py.

clock.py        adds up what parts of a program take
cost.py         what a candidate costs the driver
sleeper.py      a worker that sleeps, without torch
utilisation.py  how busy workers are whose candidates take very different times
memory.py       what a worker's memory does
"""
