"""A run, seen while it goes on.

progress.py  on a terminal, live or in lines
standing.py  where it stands, read from its folder
pulse.py     what its driver does at the moment
trackers.py  what TensorBoard, MLflow and Weights & Biases are told
tracking.py  these as processes of their own
"""
