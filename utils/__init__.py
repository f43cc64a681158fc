"""Processes, checkpoints, learning rate, TensorBoard and pictures: one module for each job."""
