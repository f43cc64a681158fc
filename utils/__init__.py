"""Infrastructure: processes, checkpoints, learning rate, TensorBoard, files."""
