"""Training on a cluster of machines, through Ray (an extra: `pip install "treadle[cluster]"`)."""
