"""Models of losses, for optimizers that need them. Only these import it, as torch and scipy take seconds.

bayesian.py           proposes points by their expected improvement
gaussian_process.py   Gaussian processes of the terms of a loss
"""
