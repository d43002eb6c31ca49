"""Fusing many concepts into one model: statistics, one least-squares problem per layer, solvers, held-out measures."""
